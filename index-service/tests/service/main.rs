//! An index in the process of the test, over loopback.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod failover;
mod leases;
mod limits;
mod peers;
mod provisional;
mod reachability;
mod reflection;
mod registrations;
mod untrusted_input;

use potluck_core::Problem;

/// The reason why a call was refused.
fn refusal<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, tonic::Status>) -> Problem {
    answer.expect_err("should have been refused").into()
}
