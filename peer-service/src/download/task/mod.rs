//! One run of a download, from its start to its end, a pause or a failure.
//!
//! | module | purpose |
//! |---|---|
//! | [`run`] | the steps of a run, and when it starts over |
//! | `run_context` | the context of every step |
//! | `planning` | the content and the target |
//! | `metadata` | the metadata that comes from peers |
//! | `piece_layers` | the piece layers, from the library or from peers |
//! | `preexisting` | existing content at the target |
//! | `preparation` | opens the part file and recovers units |
//! | `recovery` | finds valid units on this machine |
//! | `fetching` | runs the swarm |
//! | `provisional` | runs the swarm for content whose root is not known |
//! | `comparison` | finds the wrong pieces of such content |
//! | `checkpoints` | writes the resume state at intervals |
//! | `finishing` | gives the content its name and shares it |
//! | [`reading`] | another kind of run: sends the bytes of a file in order and keeps nothing |

mod checkpoints;
mod comparison;
mod fetching;
mod finishing;
mod metadata;
mod piece_layers;
mod planning;
mod preexisting;
mod preparation;
mod provisional;
pub(crate) mod reading;
mod recovery;
pub(crate) mod run;
pub(crate) mod run_context;
