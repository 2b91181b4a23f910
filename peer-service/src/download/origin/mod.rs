//! Bytes from an origin, and content whose root is not known yet.
//!
//! | module | purpose |
//! |---|---|
//! | [`spec`] | the origin in a request for a download |
//! | [`source`] | an origin that a run reads from |
//! | `request` | requests units from the origin |
//! | `pieces` | the state of provisional content: hash and sender of each piece; pure |
//! | [`early`] | what became of bytes that were handed out before the end; pure |
//! | `checks` | which pieces of peers are compared with the origin; pure |
//! | `running_sum` | the SHA-256 of the content, in order, while pieces arrive |
//! | `settle` | what happens once all pieces are there |
//! | `aliases` | serves content under its provisional id after it got its real one |
//!
//! The states of such a download are in docs/decisions/0055-origins.md.

pub(crate) mod aliases;
pub(crate) mod checks;
pub mod early;
pub(crate) mod pieces;
pub(crate) mod request;
pub(crate) mod running_sum;
pub(crate) mod settle;
pub mod source;
pub mod spec;
