//! The data path of one download: the driver around the swarm, requests, assembly, verification and
//! writing.

pub(crate) mod active;
pub(crate) mod assembler;
pub(crate) mod chunk_list;
pub mod disk_pool;
pub(crate) mod driver;
pub(crate) mod rate_limit;
pub(crate) mod request;
pub(crate) mod verifier;
