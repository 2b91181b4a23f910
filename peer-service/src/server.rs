//! Assembles a peer from its parts, serves its two endpoints, and shuts it down.
//!
//! Invariant: the control endpoint serves only the control service, and the open port serves only
//! the peer service.
//!
//! Shutdown order:
//!
//! 1. Health reports NOT_SERVING.
//! 2. Downloads save their progress, the registrar unregisters from the index, and the servers stop
//!    accepting connections.
//! 3. Open calls get `GRACE` to finish; then their connections are closed.
//! 4. The remaining tasks get `LAST_GRACE` to finish.

use std::{io::Write as _, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use potluck_core::{
    PeerId, Problem, Reason,
    grpc::{
        limiter::{MaxShare, PerAddressLimiter},
        transport::{
            self, Accept, Endpoint, Health,
            admission::{Admission, Budgets, MAX_HEADERS},
            connections, with_health_and_reflection,
        },
    },
    index_client::IndexClient,
    model::Address,
    proto::v1::control_service_server::ControlServiceServer,
};
use tokio::{net::TcpListener, sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    announce::{registrar::Registrar, set::AnnounceSet},
    control::{
        ControlApi,
        listener::{ControlListener, TokenInterceptor},
    },
    download::{context::DownloadContext, engine::disk_pool::DiskPools, manager::DownloadManager},
    fs::blocking::blocking,
    home::Home,
    library::{Library, ShareEvent},
    limits::{Limits, budget::InFlightBudget},
    options::{Config, Options},
    problem::cannot_listen,
    store::Store,
    upload::{self, EvictableConnection, PeerApi, SendScheduler, UploadCounters},
};

/// How long open calls may take to finish at shutdown. Short, because downloaders resume from other
/// peers.
const GRACE: Duration = Duration::from_secs(3);

/// How long the remaining tasks may take after [`GRACE`]; this includes unregistering from the
/// index.
const LAST_GRACE: Duration = Duration::from_secs(10);

/// How long the first scan of the files folder waits for the index to acknowledge the known files.
/// Announcing a hundred thousand files takes less, and a user who added files while the peer was
/// off barely notices the delay.
const FIRST_SYNC_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum connections to the control endpoint; each running `get` uses one.
const CONTROL_CONNECTIONS: usize = 512;

/// Maximum streams per connection. A downloader uses a few dozen; the limit bounds the memory that
/// one peer can take.
const MAX_STREAMS: u32 = 256;

/// Memory on the open port, in bytes, for requests being received and for small answers not yet
/// read: enough for hundreds of the largest requests and for the availability of many large files.
/// `Download` and `GetPieceHashes` have limits of their own.
const MAX_INCOMING: usize = 32 * 1024 * 1024;
const MAX_UNREAD: usize = 64 * 1024 * 1024;

/// Receive window per stream on the open port, in bytes. Streams there carry only requests. A
/// connection's window is four times this, which bounds its unread bytes.
const REQUEST_WINDOW: u32 = 256 * 1024;

/// Why a peer did not start, or failed while running.
pub type StartError = Problem;

/// A running peer. Dropping this does not stop the peer: cancel the token passed to [`start`], then
/// call [`Running::join`].
#[derive(Debug)]
pub struct Running {
    /// The address of the open port.
    pub local_addr: SocketAddr,
    /// The control endpoint.
    pub control: Endpoint,
    /// The token that the control service requires if it listens on TCP. Clients send it as
    /// `authorization: Bearer TOKEN`.
    pub control_token: Option<String>,
    /// The peer's public id.
    pub peer_id: PeerId,
    /// The peer's home folder.
    pub home: PathBuf,
    supervisor: tokio::task::JoinHandle<()>,
}

impl Running {
    /// Waits until the peer has stopped: stores are flushed and the lease is returned.
    pub async fn join(self) {
        if let Err(error) = self.supervisor.await {
            tracing::error!(%error, "the peer's main task failed");
        }
    }
}

/// Starts a peer that serves on `listener` until `shutdown` is cancelled.
///
/// # Errors
/// Fails if the home is in use or cannot be created, if the store cannot be opened, or if the
/// control endpoint cannot be opened. The message says what to do.
pub async fn start(
    listener: TcpListener,
    config: Config,
    shutdown: CancellationToken,
) -> Result<Running, StartError> {
    let local_addr = listener.local_addr().map_err(|error| {
        Problem::new(
            Reason::Internal,
            format!("cannot tell where the peer listens: {error}"),
        )
    })?;
    let tracker = TaskTracker::new();
    // Cancelled first: it stops the tasks that do work. Servers keep running a little longer, so
    // that they can report the shutdown.
    let work = CancellationToken::new();
    let path = config.home.clone();
    let home = blocking(move || Home::open(&path)).await??;
    let (listening, control) = ControlListener::open(&config.control, config.plaintext, &home).await?;
    warn_of_loopback(local_addr, &config);

    let limits = Limits::with_max_share(
        config.limits.upload_bytes_per_second,
        config.limits.download_bytes_per_second,
        config.limits.upload_slots,
        config.address_share,
    );
    let announce_set = AnnounceSet::new();
    let (store, library, home) = {
        let (announce_set, threads) = (announce_set.clone(), config.hash_threads);
        let (stop, tasks) = (work.child_token(), tracker.clone());
        let open = move || -> Result<_, Problem> {
            let store = Store::open(&home)?;
            let library = Library::open(store.clone(), announce_set, home.files(), threads, stop, &tasks)?;
            Ok((store, library, home))
        };
        blocking(open).await??
    };
    let leave_from = Some(local_addr.ip()).filter(|ip| !ip.is_unspecified());
    let index = config.index.clone();
    let index = index.map(|index| IndexClient::leaving_from(index, leave_from));
    let registrar = index.clone().map(|index| {
        let address = config
            .advertise
            .clone()
            .unwrap_or_else(|| own_address(local_addr));
        let (token, lease) = (home.token().clone(), config.lease);
        Registrar::start(
            index,
            token,
            address,
            lease,
            announce_set.clone(),
            work.child_token(),
            &tracker,
        )
    });
    tracker.spawn(watch_after_first_sync(
        library.clone(),
        announce_set.clone(),
        registrar.clone(),
        work.child_token(),
        tracker.clone(),
    ));
    let context = Arc::new(DownloadContext {
        library: library.clone(),
        announce_set,
        limits: limits.clone(),
        budget: InFlightBudget::default(),
        index,
        store,
        files_folder: home.files(),
        peer_id: home.peer_id(),
        local_addr: local_addr.into(),
        leave_from,
        hash_threads: config.hash_threads,
        disk_pools: DiskPools::new(config.hash_threads),
        downloaded_bytes: Arc::clone(&library.activity().downloaded),
        tracker: tracker.clone(),
    });
    let transfers = DownloadManager::new(Arc::clone(&context), work.child_token());
    let counters = Arc::new(UploadCounters {
        uploaded_bytes: Arc::clone(&library.activity().uploaded),
    });
    let api = PeerApi::new(
        vec![Arc::new(library.clone()), Arc::new(transfers.clone())],
        home.peer_id(),
        limits,
        Arc::clone(&counters),
    );
    let owner = ControlApi {
        context: Arc::clone(&context),
        transfers: transfers.clone(),
        registrar,
        counters,
        home: home.path().to_owned(),
        previous_peer_id: home.previous_peer_id(),
        started: Instant::now(),
        shutdown: work.child_token(),
    };

    let stop_accepting = CancellationToken::new();
    let disconnect = CancellationToken::new();
    let servers = TaskTracker::new();
    let (health, routes) = with_health_and_reflection(api.into_service(), config.reflection)
        .await
        .map_err(internal_error)?;
    let scheduler = SendScheduler::new();
    servers.spawn(scheduler.clone().run_eviction(stop_accepting.clone()));
    let budgets = Budgets {
        incoming: MAX_INCOMING,
        unread: MAX_UNREAD,
        max_share: config.address_share,
    };
    let open_port = transport::server()
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(REQUEST_WINDOW)
        .initial_connection_window_size(4 * REQUEST_WINDOW)
        .max_frame_size(None)
        .http2_max_header_list_size(MAX_HEADERS)
        .layer(tower::util::MapRequestLayer::new(upload::name_client))
        .layer(Admission::new(budgets, upload::call_kind))
        .add_routes(routes)
        .serve_with_incoming_shutdown(
            connections(
                listener,
                PerAddressLimiter::new(config.max_connections, config.address_share),
                disconnect.clone(),
            )
            .map(move |stream| {
                stream.map(|stream| {
                    let connection = scheduler.add_client(stream.client().clone());
                    EvictableConnection::new(stream, connection)
                })
            }),
            stop_accepting.clone().cancelled_owned(),
        );
    servers.spawn(async move {
        if let Err(error) = open_port.await {
            tracing::error!(%error, "the open port failed");
        }
    });
    // Before the control service accepts new downloads, because those would reuse the restored
    // numbers.
    transfers.restore().await?;
    let (control_token, socket, control_health) = match listening {
        ControlListener::Unix { listener, path } => {
            let health =
                serve_control(&servers, listener, owner, None, (&stop_accepting, &disconnect)).await?;
            (None, Some(path), health)
        }
        ControlListener::Tcp { listener, token } => {
            let token_required = Some(token.clone());
            let health = serve_control(
                &servers,
                listener,
                owner,
                token_required,
                (&stop_accepting, &disconnect),
            )
            .await?;
            (Some(token), None, health)
        }
    };
    if !config.share.is_empty() {
        tracker.spawn(share_at_start(library, config.share));
    }
    tracing::info!(peer = %home.peer_id().short(), %local_addr, %control, home = %home.path().display(), "peer ready");

    let running = Running {
        local_addr,
        control,
        control_token,
        peer_id: home.peer_id(),
        home: home.path().to_owned(),
        supervisor: tokio::spawn(supervise(ShutdownParts {
            shutdown,
            work,
            stop_accepting,
            cut: disconnect,
            health: [health, control_health],
            servers,
            tracker,
            socket,
            home,
        })),
    };
    Ok(running)
}

/// Serves the control service with its own health and reflection services.
async fn serve_control<L: Accept>(
    servers: &TaskTracker,
    listener: L,
    owner: ControlApi,
    token: Option<String>,
    (stop_accepting, disconnect): (&CancellationToken, &CancellationToken),
) -> Result<Health, Problem> {
    let guard = TokenInterceptor::new(token);
    let service = ControlServiceServer::new(owner)
        .max_decoding_message_size(transport::MAX_MESSAGE)
        .max_encoding_message_size(transport::MAX_MESSAGE);
    let (health, routes) = with_health_and_reflection(service, true)
        .await
        .map_err(internal_error)?;
    let server = transport::server()
        .max_concurrent_streams(MAX_STREAMS)
        .layer(tonic::service::InterceptorLayer::new(guard))
        .layer(Admission::trusting())
        .add_routes(routes)
        .serve_with_incoming_shutdown(
            connections(
                listener,
                PerAddressLimiter::new(CONTROL_CONNECTIONS, MaxShare::ALL),
                disconnect.clone(),
            ),
            stop_accepting.clone().cancelled_owned(),
        );
    servers.spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "the control endpoint failed");
        }
    });
    Ok(health)
}

fn internal_error(error: tonic_reflection::server::Error) -> Problem {
    Problem::new(
        Reason::Internal,
        format!("the services' own description cannot be read: {error}"),
    )
}

/// What a shutdown stops, waits for and removes.
struct ShutdownParts {
    shutdown: CancellationToken,
    work: CancellationToken,
    stop_accepting: CancellationToken,
    cut: CancellationToken,
    health: [Health; 2],
    servers: TaskTracker,
    tracker: TaskTracker,
    socket: Option<PathBuf>,
    home: Home,
}

async fn supervise(parts: ShutdownParts) {
    parts.shutdown.cancelled().await;
    tracing::info!("peer stopping");
    for health in &parts.health {
        health.set_not_serving().await;
    }
    parts.work.cancel();
    parts.stop_accepting.cancel();
    parts.servers.close();
    if tokio::time::timeout(GRACE, parts.servers.wait()).await.is_err() {
        tracing::debug!("calls are still open: cutting their connections");
    }
    parts.cut.cancel();
    parts.tracker.close();
    if tokio::time::timeout(LAST_GRACE, parts.tracker.wait())
        .await
        .is_err()
    {
        tracing::warn!("not everything ended in time; whatever was verified is resumed from");
    }
    if let Some(socket) = parts.socket {
        // The home is still locked, so this cannot be another peer's socket.
        let _ = std::fs::remove_file(socket);
    }
    drop(parts.home);
    tracing::info!("peer stopped");
}

/// The address to register: the listening address. For a wildcard address, the host is empty, and
/// the index fills in the address that it sees.
fn own_address(local: SocketAddr) -> Address {
    match local.ip().is_unspecified() {
        true => Address {
            host: String::new(),
            port: local.port(),
        },
        false => local.into(),
    }
}

/// Warns if the index is on another machine while this peer listens on loopback only: other
/// machines could not reach it.
fn warn_of_loopback(local: SocketAddr, config: &Config) {
    let Some(Endpoint::Http(index)) = &config.index else {
        return;
    };
    let host = index.host().unwrap_or_default().trim_matches(['[', ']']);
    let near = host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    if local.ip().is_loopback() && !near && config.advertise.is_none() {
        tracing::warn!(
            %local, index = host,
            "this peer listens for this machine only, and the index is on another: nobody there can fetch from it; \
             give --listen 0.0.0.0:{} or this machine's address", local.port()
        );
    }
}

/// Starts watching the files folder once the index has acknowledged the files known before, or
/// after [`FIRST_SYNC_TIMEOUT`]. Doing both at the same time would delay the announcement.
async fn watch_after_first_sync(
    library: Library,
    announce_set: AnnounceSet,
    registrar: Option<Registrar>,
    shutdown: CancellationToken,
    tracker: TaskTracker,
) {
    if let Some(registrar) = registrar.filter(|_| !announce_set.is_empty()) {
        // Both arms are cancel-safe: they only wait. The registrar logs its own errors.
        tokio::select! {
            _ = registrar.synced(FIRST_SYNC_TIMEOUT) => {}
            () = shutdown.cancelled() => return,
        }
    }
    library.watch_files_folder(&tracker);
}

async fn share_at_start(library: Library, paths: Vec<PathBuf>) {
    let (sender, mut events) = mpsc::channel(64);
    let sharing = library.share(paths, sender);
    let telling = async {
        while let Some(event) = events.recv().await {
            match event {
                ShareEvent::Shared(item) => {
                    tracing::info!(path = %item.path.display(), id = %item.record.id, "shared");
                }
                ShareEvent::Failed { path, problem } => {
                    tracing::warn!(path = %path.display(), %problem, "not shared");
                }
                ShareEvent::Progress { .. } => {}
            }
        }
    };
    tokio::join!(sharing, telling);
}

/// Binds to the address in `options`, prints `listening on ADDR` to stdout when ready, and serves
/// until `shutdown` is cancelled.
///
/// # Errors
/// Fails as [`start`] does, and with [`Reason::AddressInUse`], [`Reason::InvalidAddress`] or
/// [`Reason::PermissionDenied`] if the address cannot be bound.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), StartError> {
    let requested = options.listen;
    let failed = |error: std::io::Error| cannot_listen(requested, "--listen", &error);
    let listener = TcpListener::bind(requested).await.map_err(failed)?;
    let port = listener.local_addr().map_err(failed)?.port();
    let running = start(listener, Config::from_options(options, port)?, shutdown.clone()).await?;
    let mut out = std::io::stdout();
    let written = writeln!(out, "listening on {}", running.local_addr).and_then(|()| out.flush());
    if let Err(error) = written {
        shutdown.cancel();
        running.join().await;
        return Err(Problem::new(
            Reason::Internal,
            format!("cannot say where the peer listens: {error}"),
        ));
    }
    running.join().await;
    Ok(())
}
