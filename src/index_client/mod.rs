//! Client of the index: domain types in and out, and a deadline for every call.

mod batches;
mod client;
mod responses;

pub use self::{
    batches::{MAX_BATCH, batches},
    client::{INSTANCE, IndexClient},
};
