//! Limits on the use of the index, set by flags.

use std::sync::Arc;

use parking_lot::RwLock;

use crate::{memory_limit::memory_limit, store::MIN_CACHE_BYTES};

/// Limits on the use of the index. A request beyond a limit is refused with a reason.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Limits {
    /// Maximum files that one peer may register
    #[arg(
        long,
        env = "POTLUCK_INDEX_MAX_FILES_PER_PEER",
        hide_env_values = true,
        value_name = "N",
        default_value_t = DEFAULT_FILES_PER_PEER
    )]
    pub max_files_per_peer: u64,

    /// Maximum peers at one address
    #[arg(
        long,
        env = "POTLUCK_INDEX_MAX_PEERS_PER_ADDRESS",
        hide_env_values = true,
        value_name = "N",
        default_value_t = DEFAULT_PEERS_PER_ADDRESS
    )]
    pub max_peers_per_address: u64,

    /// Maximum calls per second from one address; 0 for no limit
    #[arg(
        long,
        env = "POTLUCK_INDEX_MAX_CALLS_PER_SECOND",
        hide_env_values = true,
        value_name = "N",
        default_value_t = DEFAULT_CALLS_PER_SECOND
    )]
    pub max_calls_per_second: u32,

    /// Maximum open watch streams
    #[arg(
        long,
        env = "POTLUCK_INDEX_MAX_WATCHERS",
        hide_env_values = true,
        value_name = "N",
        default_value_t = DEFAULT_WATCHERS
    )]
    pub max_watchers: usize,

    /// Maximum open connections; one address may hold at most half of those that others leave, this
    /// machine any number
    #[arg(
        long,
        env = "POTLUCK_INDEX_MAX_CONNECTIONS",
        hide_env_values = true,
        value_name = "N",
        default_value_t = DEFAULT_CONNECTIONS
    )]
    pub max_connections: usize,

    /// Maximum memory for registrations, in MiB; further registrations are refused
    #[arg(
        long,
        env = "POTLUCK_INDEX_MAX_MEMORY_MIB",
        hide_env_values = true,
        value_name = "MIB",
        default_value_t = DEFAULT_MEMORY_MIB
    )]
    pub max_memory_mib: u64,
    /// Memory for the store's cache, in MiB [default: a 256th of the machine's memory, from 8 to 64]
    #[arg(
        long,
        env = "POTLUCK_INDEX_STORE_CACHE_MIB",
        hide_env_values = true,
        value_name = "N"
    )]
    pub store_cache_mib: Option<u64>,
}

/// Enough for the largest data sets that people share as folders of small files.
const DEFAULT_FILES_PER_PEER: u64 = 1_000_000;

/// Many peers may share one NAT address, but a flood of fake peers must not fill the index.
const DEFAULT_PEERS_PER_ADDRESS: u64 = 1_000;

/// Ten times the need of a thousand peers behind one address.
const DEFAULT_CALLS_PER_SECOND: u32 = 1_000;

/// Each watcher costs a stream and a short queue: about 10 KiB.
const DEFAULT_WATCHERS: usize = 20_000;

/// One connection per peer, with room for short-lived callers.
const DEFAULT_CONNECTIONS: usize = 10_000;

/// About 10 million registrations, on a machine with this much memory to spare.
const DEFAULT_MEMORY_MIB: u64 = 4096;

/// A 256th of 16 GiB. sled uses several times its cache for small entries, so it is never large.
const MAX_STORE_CACHE: u64 = 64 * 1024 * 1024;

/// Part of the memory that the store's cache takes.
const MEMORY_PER_STORE_CACHE: u64 = 256;

impl Limits {
    /// Size of the store's cache, in bytes.
    pub(crate) fn store_cache_bytes(&self) -> u64 {
        let default = || {
            let memory = memory_limit().unwrap_or_default();
            (memory / MEMORY_PER_STORE_CACHE).clamp(MIN_CACHE_BYTES, MAX_STORE_CACHE)
        };
        let chosen = self.store_cache_mib.map(|mib| mib.saturating_mul(1024 * 1024));
        chosen.map_or_else(default, |bytes| bytes.max(MIN_CACHE_BYTES))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_files_per_peer: DEFAULT_FILES_PER_PEER,
            max_peers_per_address: DEFAULT_PEERS_PER_ADDRESS,
            max_calls_per_second: DEFAULT_CALLS_PER_SECOND,
            max_watchers: DEFAULT_WATCHERS,
            max_connections: DEFAULT_CONNECTIONS,
            max_memory_mib: DEFAULT_MEMORY_MIB,
            store_cache_mib: None,
        }
    }
}

/// The limits in force, which can change. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct LimitsInForce(Arc<RwLock<Limits>>);

impl From<Limits> for LimitsInForce {
    fn from(limits: Limits) -> Self {
        Self(Arc::new(RwLock::new(limits)))
    }
}

impl LimitsInForce {
    /// The limits now.
    pub(crate) fn get(&self) -> Limits {
        self.0.read().clone()
    }

    /// Changes the limits.
    pub(crate) fn set(&self, limits: Limits) {
        *self.0.write() = limits;
    }
}

/// Maximum percentage of the memory not used by others that one peer, or all peers of one host
/// together, may use. It equals the limit for connections and leaves memory for later peers.
pub(crate) const MAX_MEMORY_PERCENT: u64 = potluck_core::grpc::limiter::DEFAULT_MAX_SHARE as u64;
