//! Following a download at a peer, and reporting its result.

mod follow;
mod progress;
mod report;

pub(crate) use self::{
    follow::{WaitLimit, follow},
    report::report,
};
