//! What every part of Potluck shares: the gRPC contract, file identity, and how programs reach each other.
//!
//! | module | its one job |
//! |---|---|
//! | [`proto`] | the generated messages, clients and servers of `proto/potluck/v1` |
//! | [`identity`] | ids, the Merkle tree, the cut into pieces, and hashing |
//! | [`collection`] | safe paths, manifests of folders, and the plan of a download |
//! | [`bitfield`], [`availability`] | sets of units; which units a peer has and is fetching |
//! | [`model`] | what the index stores and answers: files, addresses, providers, registrations |
//! | [`index_client`] | calls to the index, in domain types |
//! | [`convert`] | messages to domain types and back |
//! | [`grpc`] | endpoints and servers, the codec of downloads, limits per client address |
//! | [`problem`] | failures with a stable reason, and their form as a gRPC status |
//! | [`process`] | logs, and an orderly end on a signal |
//! | [`read_buffer`] | page-aligned memory to read files into |
//!
//! Pure apart from [`hash`], [`files`], [`process`], [`transport`], [`index_client`], and making a [`Token`].

pub mod availability;
pub mod bitfield;
pub mod collection;
pub mod convert;
pub mod files;
pub mod grpc;
pub mod identity;
pub mod index_client;
pub mod model;
pub mod problem;
pub mod process;
pub mod proto;
pub mod read_buffer;
pub mod set_digest;

pub use crate::identity::id::{FileId, PeerId, Root, Sha256, Token};
pub use crate::identity::layout::{FileLayout, PieceIndex};
pub use crate::problem::{Problem, Reason};
pub use crate::set_digest::SetDigest;
