//! Origins: where bytes come from that no peer has.
//!
//! | module | purpose |
//! |---|---|
//! | [`mod@reference`] | parses what a user types: a URL or `hf://…`; pure |
//! | [`policy`] | which hosts a request may go to; pure |
//! | [`reply`] | whether a response carries the requested range; pure |
//! | `challenge` | where a registry wants a token to come from; pure |
//! | [`client`] | requests, redirects and limits |
//! | [`mod@file`] | a file at an origin |
//! | `tokens` | tokens of registries, until they expire |
//! | `transport`, `body` | waiting for responses and reading them |
//! | [`hub`] | the files of a Hugging Face repository |
//! | [`registry`] | manifests and blobs of a registry of container images |
//! | [`credentials`] | tokens from the environment and from files |
//! | [`secret`] | a token that no log shows |
//! | [`error`] | what can go wrong |
//!
//! Invariants:
//!
//! - A body that is read to its end without an error has exactly the requested bytes of the range;
//!   whether they are the right ones is for the caller to verify.
//! - No request leaves for a private address that the operator did not name.
//! - Credentials go only to the host that they are for, and never into logs or errors.
//!
//! Non-goals: retries, and which bytes to ask for: the scheduler of a download decides that.

mod body;
mod challenge;
pub mod client;
pub mod credentials;
pub mod error;
pub mod file;
pub mod hub;
pub mod policy;
pub mod reference;
pub mod registry;
pub mod reply;
mod resolver;
pub mod secret;
mod tokens;
mod transport;

pub use self::{
    client::{OriginBody, OriginClient, OriginSettings},
    error::OriginError,
    file::OriginFile,
    reference::OriginReference,
};
