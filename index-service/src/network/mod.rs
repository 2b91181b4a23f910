//! The private network that an index serves: its members, their rights, and the audit log.
//!
//! | module | its one job |
//! |---|---|
//! | `membership` | members, peers, codes and revocations; pure |
//! | `journal` | the members on disk |
//! | `shared_members` | the log of members that several indexes share |
//! | `member_store` | both of them |
//! | `access` | which call needs which right; pure |
//! | `private_network` | certificates, the revocation list, and what connections may do |
//! | `admin` | work on the folder of a network without its index |
//! | `audit` | the log of who joined, registered, removed and was refused |

pub(crate) mod access;
pub(crate) mod admin;
pub(crate) mod audit;
pub(crate) mod journal;
pub(crate) mod member_store;
pub(crate) mod membership;
pub(crate) mod private_network;
pub(crate) mod shared_members;
