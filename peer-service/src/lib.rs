//! The peer service: shares files, serves verified pieces, and downloads one file from many peers at once.
//!
//! | module | its one job |
//! |---|---|
//! | [`bits`] | a set of units as a bitfield |
//! | [`holdings`] | what this peer wants registered with the index |
//! | [`home`] | the peer's folder, its lock and its secret |
//! | [`library`] | what is shared: files, collections, their hashes, and whether they still are what they were |
//! | [`limits`] | bytes a second and uploads at once |
//! | [`offer`] | what can be served: the seam between the library, running transfers and the open port |
//! | [`registrar`] | keeps the index told of the holdings |
//! | [`serve`] | the service that is open to other peers |
//! | [`store`] | what the peer remembers over restarts |

pub mod bits;
pub mod holdings;
pub mod home;
pub mod library;
pub mod limits;
pub mod offer;
pub mod registrar;
pub mod serve;
pub mod store;
