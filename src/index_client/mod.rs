//! Client of the index: domain types in and out, and a deadline for every call.

mod client;
mod limits;
mod membership;
mod responses;

pub use self::{
    client::IndexClient,
    limits::{INSTANCE, MAX_BATCH},
};
