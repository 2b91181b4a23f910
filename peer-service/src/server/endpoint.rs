//! Code shared by the open port and the control endpoint.

use potluck_core::{Problem, Reason};

/// Maximum streams per connection. A downloader uses a few dozen; the limit bounds the memory that
/// one peer can take.
pub(super) const MAX_STREAMS: u32 = 256;

/// The problem if the descriptions for gRPC reflection cannot be read.
pub(super) fn reflection_problem(error: tonic_reflection::server::Error) -> Problem {
    Problem::new(
        Reason::Internal,
        format!("the descriptions of the services are invalid: {error}"),
    )
}
