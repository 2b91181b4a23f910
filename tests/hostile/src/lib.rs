//! A hostile client and a hostile peer.
//!
//! | module | contents |
//! |---|---|
//! | [`client`] | attacks of a client on an index or a peer |
//! | [`peer`] | attacks of a peer on those that download from it |
//! | [`target`] | the program under attack, and connections to it |
//! | [`bystander`] | an honest client that must be served meanwhile |
//! | [`process`] | memory and connections of the program under attack |
//! | [`membership`] | keys and certificates of an attacker who is a member |
//!
//! Each attack is one small function with a line that describes it. It runs for a given time, over
//! plaintext, or over TLS with the certificate of a member. The programs `hostile-client` and
//! `hostile-peer` run attacks by hand; the tests of the command line run all of them.
//!
//! Non-goal: attacks that need the network between two honest programs.

pub mod bystander;
pub mod client;
mod frames;
pub mod membership;
pub mod peer;
pub mod process;
pub mod target;
