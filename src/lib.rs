//! Shared building blocks of Potluck: the gRPC contract, file identity, and transport.
//!
//! | module | contents |
//! |---|---|
//! | [`proto`] | the generated messages, clients and servers of `proto/potluck/v1` |
//! | [`identity`] | ids, the Merkle tree, the piece layout, and hashing |
//! | [`collection`] | safe paths, folder manifests, and download plans |
//! | [`bitfield`], [`availability`] | sets of units; the units that a peer has and is downloading |
//! | [`durable`], [`files`] | writes that survive a power failure; opens regular files only |
//! | [`generation`] | the number of the last acknowledged change of a store |
//! | [`network`] | private networks: the authority, certificates, credentials, TLS |
//! | [`monitoring`] | the HTTP endpoint for health checks and Prometheus |
//! | [`model`] | data that the index stores and returns: files, providers, registrations, leases |
//! | [`index_client`] | calls to the index, in domain types |
//! | [`configuration`] | settings from flags, environment and a file; reading them again |
//! | [`convert`] | conversions between protobuf messages and domain types |
//! | [`grpc`] | endpoints and servers, the download codec, limits per client address |
//! | [`problem`] | failures with a stable reason, and their encoding as a gRPC status |
//! | [`process`] | log, traces, and signals |
//! | [`read_buffer`] | memory aligned for fast file reads |
//! | [`units`] | rates and times as people write them |
//!
//! All modules are pure except [`identity::hash`], [`durable`], [`files`], [`generation`],
//! [`network`], [`configuration`], [`process`], [`grpc`], [`monitoring`] and [`index_client`]. Generating a [`Token`]
//! needs randomness.

pub mod availability;
pub mod bitfield;
pub mod collection;
pub mod configuration;
pub mod convert;
pub mod durable;
pub mod files;
pub mod generation;
pub mod grpc;
pub mod identity;
pub mod index_client;
pub mod model;
pub mod monitoring;
pub mod network;
pub mod problem;
pub mod process;
pub mod proto;
pub mod read_buffer;
pub mod units;

/// The version for `--version`, with the commit.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("POTLUCK_COMMIT"), ")");

pub use crate::identity::id::{FileId, PeerId, Root, Sha256, Token};
pub use crate::identity::id_prefix::IdPrefix;
pub use crate::identity::layout::{FileLayout, PieceIndex};
pub use crate::model::SetDigest;
pub use crate::problem::{Problem, Reason};
