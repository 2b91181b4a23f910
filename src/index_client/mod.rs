//! Client of the index: domain types in and out, and a deadline for every call.

mod client;
mod failover;
mod index_list;
mod indexes;
mod join;
mod limits;
mod membership;
mod responses;

pub use self::{
    client::IndexClient,
    index_list::IndexList,
    join::{join, join_once, machine_name, member_context, read_code, renew_member, secured},
    limits::{INSTANCE, MAX_BATCH},
    membership::{Enrolled, ListedMember},
};
