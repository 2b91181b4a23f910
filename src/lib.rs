//! What every part of Potluck shares: the gRPC contract, file identity, and how programs reach each other.
//!
//! | module | its one job |
//! |---|---|
//! | [`proto`] | the generated messages, clients and servers of `proto/potluck/v1` |
//! | [`id`] | 32-byte names: [`FileId`], [`PeerId`], [`Root`], [`Sha256`], and a peer's secret [`Token`] |
//! | [`merkle`] | the BitTorrent v2 Merkle tree over a file's bytes |
//! | [`layout`] | how a file is cut into pieces; the only mint of [`PieceIndex`] |
//! | [`hash`] | hashing whole files, in bounded memory and on several threads |
//! | [`path`] | names that are safe to create: [`path::RelPath`] and [`path::Label`] |
//! | [`manifest`] | a folder as a file: the canonical manifest of a collection |
//! | [`plan`] | what a transfer is cut into |
//! | [`counted`] | messages whose lists are counted before they are decoded |
//! | [`files`] | opening files where others may have put something else |
//! | [`places`] | connections and the like: so many in all, and no address all of them |
//! | [`problem`] | failures with a stable reason, and their form as a gRPC status |
//! | [`program`] | logs, and an end on a signal |
//! | [`read_buffer`] | memory that files are read into, placed in its page |
//! | [`set_digest`] | a digest of the registrations of a peer, for it and the index to compare |
//! | [`transport`] | endpoints, channels and servers with the HTTP/2 settings that all use |
//! | [`index_client`] | the index as its clients see it, in domain types |
//! | [`chunk`] | a download's messages on the wire, without a copy of the bytes in them |
//! | [`wire`] | messages to domain types and back |
//!
//! Pure apart from [`hash`], [`files`], [`program`], [`transport`], [`index_client`], and making a [`Token`].

pub mod chunk;
pub mod counted;
pub mod files;
pub mod hash;
pub mod id;
pub mod index_client;
pub mod layout;
pub mod manifest;
pub mod merkle;
pub mod path;
pub mod places;
pub mod plan;
pub mod problem;
pub mod program;
pub mod proto;
pub mod read_buffer;
pub mod set_digest;
pub mod transport;
pub mod wire;

pub use id::{FileId, PeerId, Root, Sha256, Token};
pub use layout::{FileLayout, PieceIndex};
pub use problem::{Problem, Reason};
pub use set_digest::SetDigest;
