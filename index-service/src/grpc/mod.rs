//! `IndexService` over gRPC: counts checked, requests parsed, calls answered, pages continued.

pub(crate) mod api;
pub mod page_tokens;
pub(crate) mod prechecked;
pub(crate) mod request;
