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
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use potluck_core::{
    grpc::{
        limiter::{MaxShare, PerAddressLimiter},
        transport::{
            self, ClientConnection, Health,
            admission::{Admission, Budgets, CallKind, MAX_HEADERS},
            connections, with_health_and_reflection,
        },
    },
    network::tls::follow_files,
    process,
    proto::v1::{
        index_service_server::IndexServiceServer, network_service_server::NetworkServiceServer,
    },
};
use tokio::{net::TcpListener, sync::watch};
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
    network::private_network::{NetworkError, PrivateNetwork},
    rate_limiter::RateLimiter,
    registry::{Registry, RestoredPeers},
    search_queue::SearchQueue,
    store::{FolderError, IndexStore, MemoryStore, SledStore},
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
    /// The private network cannot be served.
    #[error(transparent)]
    Network(#[from] NetworkError),
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
/// until `shutdown`.
///
/// # Errors
/// [`RunError`]; its message says what the user can do.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), RunError> {
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
        tokio::spawn(follow_files(tls.clone(), files, None, shutdown.clone()));
    }
    let index = RunningIndex::open(config).await?;
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
    network: Option<Arc<PrivateNetwork>>,
}

impl RunningIndex {
    async fn open(config: Config) -> Result<Self, ServeError> {
        let opened = tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            let network = config.network.as_deref().map(PrivateNetwork::open);
            let network = network.transpose()?.map(Arc::new);
            let (store, restored): (Box<dyn IndexStore>, RestoredPeers) = match &config.store {
                StoreConfig::Memory => (Box::new(MemoryStore::default()), RestoredPeers::default()),
                StoreConfig::Sled(folder) => {
                    let (store, restored) = SledStore::open(folder, RestoredPeers::add)?;
                    (Box::new(store), restored)
                }
            };
            let store_kind = store.kind();
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
                    took = ?started.elapsed(),
                    "store open"
                );
            }
            let (committer, committer_thread) =
                Committer::start(store, Arc::clone(&registry), config.limits.clone())
                    .map_err(ServeError::Thread)?;
            Ok(Self {
                config,
                registry,
                committer,
                committer_thread,
                store_kind,
                network,
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
            network,
        } = self;
        let tls = network
            .as_ref()
            .map(|network| network.tls().clone())
            .or_else(|| config.tls.clone());
        let service = Arc::new(IndexApi {
            registry: Arc::clone(&registry),
            committer: committer.clone(),
            rate_limiter: Arc::new(Mutex::new(RateLimiter::new(
                config.limits.max_calls_per_second,
            ))),
            searches: SearchQueue::new(),
            page_tokens: PageTokens::default(),
            allowed_hosts: config.allowed_hosts,
            ttl: config.ttl,
            reachability: ReachabilityChecker::new(config.reachability_checks, tls.clone()),
            started: Instant::now(),
            store_kind,
            network: network.clone(),
            is_private: tls.is_some(),
        });
        let network_service = network.as_ref().map(|network| {
            let api =
                NetworkApi::new(Arc::clone(network), Arc::clone(&registry), committer.clone());
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
        let health_reports =
            report_health(health.clone(), committer.store_works(), stop_reporting.clone());
        let health_reports = tokio::spawn(health_reports);
        let access = AccessLayer {
            network: network.clone(),
            is_private: tls.is_some(),
        };
        let stop_following = stop_reporting.clone();
        let following = network.map(|network| tokio::spawn(network.maintain(stop_following)));
        let address = listener.local_addr().ok();
        let close_connections = CancellationToken::new();
        let incoming = connections(
            listener,
            tls,
            connection_limiter(&config.limits),
            close_connections.clone(),
        );
        let stop_accepting = CancellationToken::new();
        let server = transport::server()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            // hyper buffers a frame until it is complete, so frames keep their default size.
            .max_frame_size(None)
            .http2_max_header_list_size(MAX_HEADERS)
            .timeout(CALL_TIMEOUT)
            .trace_fn(call_span)
            .layer(admission)
            .layer(access)
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, stop_accepting.clone().cancelled_owned());
        tokio::pin!(server);
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

/// Updates the health status whenever the store fails or recovers.
async fn report_health(
    health: Health,
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

/// A tracing span for a call, with the caller's address.
fn call_span(request: &http::Request<()>) -> tracing::Span {
    let client = request
        .extensions()
        .get::<ClientConnection>()
        .and_then(ClientConnection::address);
    tracing::debug_span!(
        "call",
        method = request.uri().path(),
        client = client.map(tracing::field::display)
    )
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
