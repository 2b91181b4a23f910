//! The gRPC service: list counts are checked before decoding, requests parsed, calls answered and
//! results paged.

pub(crate) mod access_layer;
pub(crate) mod api;
pub(crate) mod network_api;
pub(crate) mod page_tokens;
pub(crate) mod prechecked;
pub(crate) mod reachability;
pub(crate) mod request;
