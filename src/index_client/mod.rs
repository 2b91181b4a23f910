//! Client of the index: domain types in and out, and a deadline for every call.

mod client;
mod responses;

pub use self::client::{INSTANCE, IndexClient, MAX_BATCH};
