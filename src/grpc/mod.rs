//! gRPC between processes: endpoints and servers, the download codec, and limits per client
//! address.

pub mod counting_codec;
pub mod download_codec;
pub mod limiter;
pub mod transport;
