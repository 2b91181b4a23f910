//! TLS 1.3 with the certificates of a network, or of a PKI of one's own.
//!
//! [`TlsContext`] holds the settings of one process. They can be replaced while it runs: new
//! connections use the new ones, and connections that a list of revocations names are closed.
//!
//! Invariants:
//! - TLS 1.3 only. No resumption, no tickets and no early data: each would skip verification.
//! - A client requires the expected name and sends none.
//! - A handshake fails if the certificate at the other end is revoked.

mod context;
mod failure;
mod reload;
mod rules;
mod verify;

pub use self::{
    context::{ClientCertificates, ConnectionGuard, TlsContext, TlsError, TlsMaterial},
    failure::explain,
    reload::follow_files,
    rules::{Naming, ServerIdentity},
};
