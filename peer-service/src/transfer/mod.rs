//! Downloads: from what was asked for to a verified file in its place.
//!
//! | module | its one job |
//! |---|---|
//! | [`target`] | where a download goes |
//! | [`part`] | its bytes on disk while it runs |
//! | [`tree`] | the folder that a collection is written into |
//! | [`resume`] | which units are on disk, kept beside them |
//! | [`place`] | the end: under its name, overwriting nothing |

mod part;
mod place;
mod resume;
mod target;
mod tree;
