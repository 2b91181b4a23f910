//! How programs talk: endpoints and servers, the codec of downloads, and limits per client address.

pub mod counting_codec;
pub mod download_codec;
pub mod limiter;
pub mod transport;
