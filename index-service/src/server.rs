//! Assembly: store, committer, services, limits and graceful shutdown.
//!
//! Shutdown order:
//!
//! 1. Health reports NOT_SERVING, and watch streams end.
//! 2. The listener stops accepting connections.
//! 3. Running calls get the configured grace period; then their connections are closed.
//! 4. The committer finishes its queue and closes the store.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use potluck_core::{
    Problem,
    configuration::{Configured, reload_on_hangup},
    grpc::{
        limiter::{MaxShare, PerAddressLimiter},
        transport::{
            self, Health,
            admission::{Admission, Budgets, CallKind, MAX_HEADERS},
            connections, with_health_and_reflection,
        },
    },
    model::ClusterId,
    monitoring::{self, CallMetrics, Readiness},
    network::tls::follow_files,
    process::{self, Hangups, traces::server_span},
    proto::v1::{
        index_service_server::IndexServiceServer, network_service_server::NetworkServiceServer,
    },
};
use tokio::{net::TcpListener, runtime::Handle, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    Config, Options, OptionsError, StoreConfig,
    commit::Committer,
    grpc::{
        access_layer::AccessLayer,
        api::IndexApi,
        network_api::NetworkApi,
        page_tokens::PageTokens,
        prechecked::{PrecheckedService, REGISTER, UNREGISTER, WATCH},
        reachability::ReachabilityChecker,
    },
    limits::Limits,
    metrics::{IndexMetrics, MeasuredStore},
    network::{
        audit::{self, AuditLog},
        private_network::{NetworkError, PrivateNetwork},
    },
    rate_limiter::RateLimiter,
    registry::{Registry, RestoredPeers},
    reload::{LIMIT_KEYS, LimitChanger},
    search_queue::SearchQueue,
    store::{
        FolderError, IndexStore, MemoryStore, RedisConfig, RedisLog, RedisOpenError, RedisStore,
        SledStore, shared_log::SharedLog,
    },
};

/// Timeout of a call, except for the events of a watch stream: longer than a flush on a slow disk,
/// and than a large request on a slow link.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Receive window per stream, in bytes. Requests are small; even the largest needs only a few round
/// trips on a fast link.
const STREAM_WINDOW: u32 = 256 * 1024;

/// Receive window per connection, in bytes: four full stream windows.
const CONNECTION_WINDOW: u32 = 4 * STREAM_WINDOW;

/// Memory for requests and responses in flight: dozens of the largest, of which one address may
/// hold at most half.
const BUDGETS: Budgets = Budgets {
    incoming: 48 * 1024 * 1024,
    unread: 64 * 1024 * 1024,
    max_share: MaxShare::from_percent(potluck_core::grpc::limiter::DEFAULT_MAX_SHARE)
        .expect("the default is a percentage"),
};

/// Maximum size of an `Unregister` request, in bytes: the maximum number of ids, 34 bytes each.
const MAX_UNREGISTER: usize = 512 * 1024;

/// The reason why an index stopped without a shutdown request.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The data folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The Redis Cluster cannot be used.
    #[error(transparent)]
    Redis(#[from] RedisOpenError),
    /// The private network cannot be served.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The audit log cannot be opened.
    #[error("cannot open the audit log {}: {source}; give another --audit-log", path.display())]
    Audit {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The system cannot start a thread.
    #[error("cannot start the committer's thread: {0}")]
    Thread(std::io::Error),
    /// The thread that opens the store panicked.
    #[error("opening the store failed because of a defect: see the log")]
    Opening,
    /// The descriptors for reflection cannot be read.
    #[error("the service descriptors for reflection cannot be read: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The listener failed.
    #[error("the server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// The reason why `potluck-index` stopped without a shutdown request.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The flags do not yield a configuration.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// Another program listens on this address.
    #[error("{0} is in use by another program: stop it, or give another --listen")]
    AddressInUse(SocketAddr),
    /// The index cannot listen on this address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The requested address.
        address: SocketAddr,
        /// The system's error.
        source: std::io::Error,
    },
    /// The index would serve other machines without encryption.
    #[error(
        "--listen {0} would serve other machines without encryption or membership: make a private \
         network with `potluck network create DIR --index URL` and serve it with --network DIR, or \
         give --plaintext (POTLUCK_INDEX_PLAINTEXT=1) if everyone who reaches this machine may see \
         and register files"
    )]
    BeyondLoopback(SocketAddr),
    /// The monitoring endpoint cannot be served.
    #[error(transparent)]
    Monitoring(Problem),
    /// Standard output is closed.
    #[error("cannot print the listen address to standard output: {0}")]
    Output(std::io::Error),
    /// The index could not be opened, or failed while running.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Serves an index on `listener` until `shutdown`, then stops within the configured grace period.
///
/// # Errors
/// [`ServeError`] if the store cannot be opened or the listener fails.
pub async fn serve(
    listener: TcpListener,
    config: Config,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    RunningIndex::open(config).await?.serve(listener, shutdown).await
}

/// Binds the listen address, prints `listening on ADDR` to standard output when ready, and serves
/// until `shutdown`. Reads the settings again at each of the `hangups`.
///
/// # Errors
/// [`RunError`]; its message says what the user can do.
pub async fn run(
    configured: Configured<Options>,
    hangups: Hangups,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let options = configured.options.clone();
    let config = options.config()?;
    let is_private = config.tls.is_some() || config.network.is_some();
    if is_private {
        process::protect_memory();
    }
    let listen = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AddrInUse => RunError::AddressInUse(options.listen),
        _ => RunError::Listen {
            address: options.listen,
            source,
        },
    };
    let listener = TcpListener::bind(options.listen).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    if !address.ip().to_canonical().is_loopback() && !is_private {
        if !config.plaintext {
            return Err(RunError::BeyondLoopback(address));
        }
        tracing::warn!(
            %address,
            "this index listens beyond this machine without encryption: anyone who reaches it can see \
             and register files"
        );
    }
    if let (Some(tls), Some(files)) = (&config.tls, options.own_pki()) {
        let (tls, hangups) = (tls.clone(), hangups.clone());
        tokio::spawn(follow_files(tls, files, None, hangups, shutdown.clone()));
    }
    if let Some(address) = options.metrics {
        // Before the store is opened, which may take a while.
        monitoring::start(
            address,
            config.readiness.clone(),
            config.metrics.clone(),
            shutdown.clone(),
        )
        .await
        .map_err(RunError::Monitoring)?;
    }
    let index = RunningIndex::open(config).await?;
    let limits = index.limit_changer();
    let apply = move |options: &Options, _: &_| {
        limits.change(&options.limits);
        LIMIT_KEYS.to_vec()
    };
    tokio::spawn(reload_on_hangup(configured, hangups, shutdown.clone(), apply));
    let mut out = std::io::stdout();
    writeln!(out, "listening on {address}")
        .and_then(|()| out.flush())
        .map_err(RunError::Output)?;
    Ok(index.serve(listener, shutdown).await?)
}

/// An index with an open store.
struct RunningIndex {
    config: Config,
    registry: Arc<Registry>,
    committer: Committer,
    committer_thread: JoinHandle<()>,
    store_kind: &'static str,
    cluster_id: ClusterId,
    network: Option<Arc<PrivateNetwork>>,
    audit: AuditLog,
    rate_limiter: Arc<Mutex<RateLimiter>>,
    connection_limiter: PerAddressLimiter,
}

impl RunningIndex {
    /// Changes the limits of this index.
    fn limit_changer(&self) -> LimitChanger {
        LimitChanger {
            registry: Arc::clone(&self.registry),
            committer: self.committer.clone(),
            rate_limiter: Arc::clone(&self.rate_limiter),
            connections: self.connection_limiter.clone(),
        }
    }

    async fn open(config: Config) -> Result<Self, ServeError> {
        let runtime = Handle::current();
        let opened = tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            let (store, restored): (Box<dyn IndexStore>, RestoredPeers) = match &config.store {
                StoreConfig::Memory => (Box::new(MemoryStore::default()), RestoredPeers::default()),
                StoreConfig::Redis(redis) => open_redis(&runtime, redis)?,
                StoreConfig::Sled(folder) => {
                    let (store, restored) = SledStore::open_into(
                        folder,
                        config.limits.store_cache_bytes(),
                        RestoredPeers::with_room_for,
                    )?;
                    (Box::new(store), restored)
                }
            };
            let network = config.network.as_deref().map(|path| {
                let log: Option<Box<dyn SharedLog>> = match &config.store {
                    StoreConfig::Redis(redis) => {
                        Some(Box::new(RedisLog::open(runtime.clone(), redis)?))
                    }
                    StoreConfig::Memory | StoreConfig::Sled(_) => None,
                };
                let network = PrivateNetwork::open(path, config.certificate_lifetime, log)?;
                Ok::<_, ServeError>(Arc::new(network))
            });
            let network = network.transpose()?;
            // After the store, which creates its folder.
            let audit = match config.audit_log_path() {
                Some(path) => AuditLog::open(path.clone())
                    .map_err(|source| ServeError::Audit { path, source })?,
                None => AuditLog::disabled(),
            };
            if let Some(folder) = &config.network {
                let stored = audit::store_location(folder, config.audit_log.as_deref());
                stored.map_err(|source| ServeError::Audit {
                    path: folder.clone(),
                    source,
                })?;
            }
            let (store_kind, cluster_id) = (store.kind(), store.cluster_id());
            let registry = Arc::new(Registry::new(
                restored,
                config.limits.max_watchers,
                Instant::now(),
            ));
            {
                let catalog = registry.catalog();
                tracing::info!(
                    store = store_kind,
                    peers = catalog.peer_count(),
                    registrations = catalog.registration_count(),
                    seconds = started.elapsed().as_secs_f64(),
                    "store open"
                );
            }
            let store = Box::new(MeasuredStore::new(store, &config.metrics));
            let (committer, committer_thread) =
                Committer::start(store, Arc::clone(&registry), config.limits.clone())
                    .map_err(ServeError::Thread)?;
            config.metrics.register(
                "index_lock_seconds",
                "Time for which a change kept queries waiting",
                registry.lock_seconds().clone(),
            );
            config.metrics.gather_from(IndexMetrics {
                registry: Arc::clone(&registry),
                committer: committer.clone(),
                folder: match &config.store {
                    StoreConfig::Memory | StoreConfig::Redis(_) => None,
                    StoreConfig::Sled(folder) => Some(folder.clone()),
                },
            });
            let limits = &config.limits;
            let rate_limiter = RateLimiter::new(limits.max_calls_per_second);
            let connection_limiter = connection_limiter(limits);
            Ok(Self {
                config,
                registry,
                committer,
                committer_thread,
                store_kind,
                cluster_id,
                network,
                audit,
                rate_limiter: Arc::new(Mutex::new(rate_limiter)),
                connection_limiter,
            })
        });
        opened.await.map_err(|_| ServeError::Opening)?
    }

    async fn serve(
        self,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError> {
        let Self {
            config,
            registry,
            committer,
            committer_thread,
            store_kind,
            cluster_id,
            network,
            audit,
            rate_limiter,
            connection_limiter,
        } = self;
        let tls = network
            .as_ref()
            .map(|network| network.tls().clone())
            .or_else(|| config.tls.clone());
        let service = Arc::new(IndexApi {
            registry: Arc::clone(&registry),
            committer: committer.clone(),
            rate_limiter,
            searches: SearchQueue::new(),
            page_tokens: PageTokens::default(),
            allowed_hosts: config.allowed_hosts,
            ttl: config.ttl,
            reachability: ReachabilityChecker::new(config.reachability_checks, tls.clone()),
            started: Instant::now(),
            store_kind,
            cluster_id,
            is_store_shared: matches!(config.store, StoreConfig::Redis(_)),
            network: network.clone(),
            audit: audit.clone(),
            is_private: tls.is_some(),
        });
        let network_service = tls.is_some().then(|| {
            let (network, registry) = (network.clone(), Arc::clone(&registry));
            let api = NetworkApi::new(network, audit.clone(), registry, committer.clone());
            NetworkServiceServer::new(api)
                .max_decoding_message_size(transport::admission::SMALL_REQUEST)
                .max_encoding_message_size(transport::MAX_MESSAGE)
        });
        let charged = Arc::clone(&service);
        let admission = Admission::with_rate_limiter(BUDGETS, call_kind, move |source, cost| {
            charged.charge_cost(source, cost)
        });
        let generated = IndexServiceServer::from_arc(Arc::clone(&service))
            .max_decoding_message_size(transport::admission::SMALL_REQUEST)
            .max_encoding_message_size(transport::MAX_MESSAGE);
        let prechecked = PrecheckedService::new(service, generated);
        let (health, mut routes) =
            with_health_and_reflection(prechecked, config.reflection).await?;
        if let Some(service) = network_service {
            routes = routes.add_service(service);
        }

        let stop_reporting = CancellationToken::new();
        let health_reports = report_health(
            health.clone(),
            config.readiness.clone(),
            committer.store_works(),
            stop_reporting.clone(),
        );
        let health_reports = tokio::spawn(health_reports);
        let access = AccessLayer {
            network: network.clone(),
            is_private: tls.is_some(),
            audit,
        };
        let stop_following = stop_reporting.clone();
        let following = network.map(|network| tokio::spawn(network.maintain(stop_following)));
        let address = listener.local_addr().ok();
        let close_connections = CancellationToken::new();
        let incoming = connections(listener, tls, connection_limiter, close_connections.clone());
        let stop_accepting = CancellationToken::new();
        let server = transport::server()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            // hyper buffers a frame until it is complete, so frames keep their default size.
            .max_frame_size(None)
            .http2_max_header_list_size(MAX_HEADERS)
            .timeout(CALL_TIMEOUT)
            .trace_fn(server_span)
            .layer(CallMetrics::new(&config.metrics))
            .layer(admission)
            .layer(access)
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, stop_accepting.clone().cancelled_owned());
        tokio::pin!(server);
        config.readiness.set(true);
        if let Some(address) = address {
            tracing::info!(%address, "index ready");
        }

        // Not cancel-safe, but nothing is lost: the same future is polled again below.
        let served = tokio::select! {
            served = &mut server => Some(served),
            () = shutdown.cancelled() => None,
        };
        tracing::info!("index stopping");
        stop_reporting.cancel();
        if let Err(error) = health_reports.await {
            tracing::error!(%error, "the task that reports the index's health panicked");
        }
        if let Some(following) = following
            && let Err(error) = following.await
        {
            tracing::error!(%error, "the task that follows the network's members panicked");
        }
        health.set_not_serving().await;
        config.readiness.set(false);
        registry.watch_hub().close();
        stop_accepting.cancel();
        let served = match served {
            Some(served) => served,
            None => tokio::time::timeout(config.grace, &mut server)
                .await
                .unwrap_or(Ok(())),
        };
        close_connections.cancel();
        let stopped = tokio::task::spawn_blocking(move || {
            committer.stop();
            committer_thread.join()
        });
        match tokio::time::timeout(config.grace, stopped).await {
            Ok(Ok(Ok(()))) => tracing::info!("index stopped"),
            Ok(_) => tracing::error!("the committer panicked; all acknowledged changes are stored"),
            Err(_) => tracing::warn!(
                "the store did not close in time; all acknowledged changes are stored"
            ),
        }
        Ok(served?)
    }
}

/// Opens the store in a Redis Cluster, and reads all peers.
fn open_redis(
    runtime: &Handle,
    config: &RedisConfig,
) -> Result<(Box<dyn IndexStore>, RestoredPeers), RedisOpenError> {
    let mut store = RedisStore::open(runtime.clone(), config)?;
    let mut restored = RestoredPeers::default();
    store
        .load(&mut |peer| restored.add_stored(&peer))
        .map_err(|error| RedisOpenError::Damaged(error.to_string()))?;
    Ok((Box::new(store), restored))
}

/// Updates the health status whenever the store fails or recovers.
async fn report_health(
    health: Health,
    readiness: Readiness,
    mut store_works: watch::Receiver<bool>,
    stop: CancellationToken,
) {
    loop {
        // Both arms are cancel-safe.
        tokio::select! {
            () = stop.cancelled() => return,
            // The committer outlives this task, so an error means that it panicked.
            changed = store_works.changed() => if changed.is_err() { return },
        }
        let is_serving = *store_works.borrow_and_update();
        health.set_serving(is_serving).await;
        readiness.set(is_serving);
    }
}

/// Limits connections in total and per address.
fn connection_limiter(limits: &Limits) -> PerAddressLimiter {
    PerAddressLimiter::new(limits.max_connections, MaxShare::default())
}

/// The limits that apply to a call, by its path.
fn call_kind(path: &str) -> CallKind {
    match path {
        REGISTER => CallKind::Unary {
            max_request: transport::MAX_MESSAGE,
        },
        UNREGISTER => CallKind::Unary {
            max_request: MAX_UNREGISTER,
        },
        WATCH => CallKind::Watch,
        other => CallKind::of_common(other),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn one_address_gets_at_most_half_of_the_connections() {
        let limiter = connection_limiter(&Limits {
            max_connections: 8,
            ..Limits::default()
        });
        let source = |n| IpAddr::from([192, 0, 2, n]).into();
        let permits: Vec<_> = (0..8)
            .map_while(|_| limiter.try_acquire(source(1)).ok())
            .collect();
        assert_eq!(permits.len(), 4);
        assert!(limiter.try_acquire(source(2)).is_ok());
    }
}
