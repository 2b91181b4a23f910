//! The index: the service that knows which peers have which files.
//!
//! | module | its one job |
//! |---|---|
//! | `options` | flags, environment, configuration |
//! | `limits` | limits per caller and for the whole index |
//! | `address` | the addresses that a peer may register, and which of them are one host |
//! | `rate_limiter` | limits the call rate of each source |
//! | `catalog` | peers, files, names and claims in memory, for queries |
//! | `leases` | how long each peer's registrations last |
//! | `store` | the data that survives a restart |
//! | `watch` | subscriptions to the providers of a file |
//! | `registry` | keeps catalog, leases and watchers consistent |
//! | `commit` | the one thread that makes changes, many per flush |
//! | `search_queue` | runs searches and long listings on a few threads |
//! | `network` | the members of a private network, their rights, and the audit log |
//! | `grpc` | the gRPC service: parses requests, answers calls, pages results |
//! | `problem` | maps errors to the problems that callers receive |
//! | `reload` | the settings that a running index can change |
//! | `server` | assembly: services, limits, shutdown |
//! | `fuzzing` | bodies of fuzz targets; not a stable interface |
//!
//! A change goes from `grpc` to `commit`, then to `store` and `registry`; the caller gets its
//! answer last. A query goes from `grpc` to `registry` and touches no disk.

mod address;
mod catalog;
mod commit;
#[doc(hidden)]
pub mod fuzzing;
mod grpc;
mod leases;
mod limits;
mod memory_limit;
mod metrics;
mod network;
mod options;
mod problem;
mod rate_limiter;
mod registration;
mod registry;
mod reload;
mod search_queue;
mod server;
mod store;
mod watch;

pub use crate::{
    address::{AllowedHost, AllowedHostError},
    limits::Limits,
    network::{
        admin::{MemberSummary, NetworkAdmin, NetworkAdminError, NewCode},
        private_network::NetworkError,
    },
    options::{Config, Options, OptionsError, StoreConfig, StoreKind, data_dir},
    server::{RunError, ServeError, run, serve},
    store::{
        ExportedRegistration, FolderError, MaintenanceError, RedisConfig, RedisOpenError,
        StoreSummary, StoredRegistrations, restore,
    },
};

/// Additional items for the measurements under `examples/`. Not a stable interface.
#[doc(hidden)]
pub mod internals {
    pub use crate::{
        catalog::{Catalog, Listing, ListingCursor, ListingPage, PutOutcome},
        catalog::{SearchCursor, SearchPage, SearchScan, SearchTerms, TermsError, terms},
        registry::RestoredPeers,
        store::{
            Change, IndexStore, PeerPart, PeerRecord, PeerSink, SledStore, StoreError, StoredPeer,
            StoredPeers,
        },
    };
}
