//! Bounds on what callers may use: how much one source may ask, and how much the index may hold.
//!
//! Pure: time is a parameter. Invariant: the table of sources never grows past its capacity.

/// Bounds on what callers may use. Each is an upper limit; what goes past it is refused with a reason.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Limits {
    /// Most files that one peer may register
    #[arg(long, env = "POTLUCK_INDEX_MAX_FILES_PER_PEER", value_name = "N", default_value_t = DEFAULT_FILES_PER_PEER)]
    pub max_files_per_peer: u64,

    /// Most peers with one host
    #[arg(long, env = "POTLUCK_INDEX_MAX_PEERS_PER_ADDRESS", value_name = "N", default_value_t = DEFAULT_PEERS_PER_ADDRESS)]
    pub max_peers_per_address: u64,

    /// Most calls a second from one source address; 0 for no limit
    #[arg(long, env = "POTLUCK_INDEX_MAX_CALLS_PER_SECOND", value_name = "N", default_value_t = DEFAULT_CALLS_PER_SECOND)]
    pub max_calls_per_second: u32,

    /// Most open Watch streams
    #[arg(long, env = "POTLUCK_INDEX_MAX_WATCHERS", value_name = "N", default_value_t = DEFAULT_WATCHERS)]
    pub max_watchers: usize,

    /// Most open connections
    #[arg(long, env = "POTLUCK_INDEX_MAX_CONNECTIONS", value_name = "N", default_value_t = DEFAULT_CONNECTIONS)]
    pub max_connections: usize,

    /// Most memory for registrations, in MiB; more are refused
    #[arg(long, env = "POTLUCK_INDEX_MAX_MEMORY_MIB", value_name = "MIB", default_value_t = DEFAULT_MEMORY_MIB)]
    pub max_memory_mib: u64,
}

/// Room for the largest data sets people share as folders of small files.
pub const DEFAULT_FILES_PER_PEER: u64 = 1_000_000;

/// Many peers can stand behind one address translation; a flood of made-up ones must not fill the index.
pub const DEFAULT_PEERS_PER_ADDRESS: u64 = 1_000;

/// What a thousand peers behind one address need, ten times over.
pub const DEFAULT_CALLS_PER_SECOND: u32 = 1_000;

/// Each costs a stream and a short queue: some 10 KiB.
pub const DEFAULT_WATCHERS: usize = 20_000;

/// One a peer, with room for callers that come and go.
pub const DEFAULT_CONNECTIONS: usize = 10_000;

/// Some 10 million registrations, on a machine that has this to spare.
pub const DEFAULT_MEMORY_MIB: u64 = 4096;

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_files_per_peer: DEFAULT_FILES_PER_PEER,
            max_peers_per_address: DEFAULT_PEERS_PER_ADDRESS,
            max_calls_per_second: DEFAULT_CALLS_PER_SECOND,
            max_watchers: DEFAULT_WATCHERS,
            max_connections: DEFAULT_CONNECTIONS,
            max_memory_mib: DEFAULT_MEMORY_MIB,
        }
    }
}
