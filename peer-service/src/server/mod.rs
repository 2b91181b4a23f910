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
//! 3. Open calls get some time to finish; then their connections are closed.
//! 4. The remaining tasks get some time to finish.

mod control_port;
mod endpoint;
mod open_port;
mod reload;
mod shutdown;

use std::{io::Write as _, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use potluck_core::{
    PeerId, Problem, Reason,
    configuration::{Configured, reload_on_hangup},
    grpc::transport::Endpoint,
    index_client::{self, IndexClient, IndexList},
    model::Address,
    monitoring::{self, Metrics, Readiness},
    network::{credentials, credentials_error::CredentialsError, identity::Role},
    process::{self, Hangups},
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    announce::{
        registrar::{Caller, IndexConnection, Registrar},
        set::AnnounceSet,
    },
    cache::{Cache, CachedLibrary},
    control::{ControlApi, listener::ControlListener},
    download::{
        context::{DownloadContext, LocalPeer, SharedResources},
        counters::DownloadCounters,
        engine::disk_pool::DiskPools,
        manager::DownloadManager,
        outgoing::Outgoing,
    },
    fs::blocking::blocking,
    home::Home,
    library::{Library, ShareEvent, ShareOptions},
    limits::{Limits, budget::InFlightBudget},
    metrics::PeerMetrics,
    network::PeerNetwork,
    options::{self, Config, Options},
    problem::cannot_listen,
    server::shutdown::{ShutdownSignals, Supervisor},
    store::Store,
    upload::{PeerApi, UploadCounters},
};

/// How long the first scan of the files folder waits for the index to acknowledge the known files.
/// Announcing a hundred thousand files takes less, and a user who added files while the peer was
/// off barely notices the delay.
const FIRST_SYNC_TIMEOUT: Duration = Duration::from_secs(2);

/// The reason why a peer did not start, or failed while running.
pub type StartError = Problem;

/// A running peer. Dropping this does not stop the peer: cancel the token passed to [`start`], then
/// call [`Running::join`].
#[derive(Debug)]
pub struct Running {
    /// The address of the open port; `None` for a peer that only downloads.
    pub local_addr: Option<SocketAddr>,
    /// The control endpoint.
    pub control: Endpoint,
    /// The token that the control service requires if it listens on TCP. Clients send it as
    /// `authorization: Bearer TOKEN`.
    pub control_token: Option<String>,
    /// The peer's public id.
    pub peer_id: PeerId,
    /// The peer's home folder.
    pub home: PathBuf,
    /// The peer's downloads.
    pub downloads: DownloadManager,
    /// The peer's library.
    pub library: Library,
    /// The peer's cache.
    pub cache: Cache,
    /// The client of the peer's index; `None` if it has no index.
    pub index: Option<IndexClient>,
    limits: Limits,
    supervisor: JoinHandle<()>,
}

impl Running {
    /// Waits until the peer has stopped: stores are flushed and the lease is returned.
    pub async fn join(self) {
        if let Err(error) = self.supervisor.await {
            tracing::error!(%error, "the peer's main task failed");
        }
    }
}

/// Starts a peer that serves on `listener` until `shutdown` is cancelled. Without a listener, the
/// peer only downloads: it accepts no connections from other peers, and registers nothing.
///
/// # Errors
/// Fails if the home is in use or cannot be created, if the store cannot be opened, or if the
/// control endpoint cannot be opened. The message says what to do.
pub async fn start(
    listener: impl Into<Option<TcpListener>>,
    config: Config,
    shutdown: CancellationToken,
) -> Result<Running, StartError> {
    let listener = listener.into();
    let local_addr = listener.as_ref().map(TcpListener::local_addr).transpose();
    let local_addr = local_addr.map_err(|error| {
        Problem::new(
            Reason::Internal,
            format!("cannot determine the address on which the peer listens: {error}"),
        )
    })?;
    let has_tls = config.network.is_some() || config.own_pki.is_some();
    let is_beyond = |address: &SocketAddr| !address.ip().to_canonical().is_loopback();
    if let Some(local_addr) = local_addr.filter(is_beyond)
        && !has_tls
    {
        if !config.plaintext {
            return Err(beyond_loopback(local_addr));
        }
        tracing::warn!(
            %local_addr,
            "this peer listens beyond this machine without encryption: anyone who reaches it can \
             download what it shares"
        );
    }
    let signals = ShutdownSignals::new(shutdown);
    let (servers, tasks) = (TaskTracker::new(), TaskTracker::new());
    let path = config.home.clone();
    let home = blocking(move || Home::open(&path)).await??;
    let network = match (config.network.clone(), config.own_pki.clone()) {
        (_, Some(files)) => {
            process::protect_memory();
            Some(Arc::new(PeerNetwork::with_own_pki(files).await?))
        }
        (Some(credentials), None) => {
            process::protect_memory();
            let index = config.index.as_ref();
            Some(Arc::new(
                PeerNetwork::open(credentials, home.state(), index).await?,
            ))
        }
        (None, None) => None,
    };
    let (control_listener, control) =
        ControlListener::open(&config.control, config.plaintext, network.as_deref(), &home).await?;
    if let Some(local_addr) = local_addr {
        warn_of_loopback(local_addr, &config);
    }

    let announce_set = AnnounceSet::new();
    if network.as_ref().and_then(|network| network.role()) == Some(Role::Reader) {
        _ = announce_set.hide_names();
    }
    let (store, library, cache, home) = {
        let (announce_set, threads) = (announce_set.clone(), config.hash_threads);
        let (stop, tasks) = (signals.stop_work.child_token(), tasks.clone());
        let settings = config.cache;
        let open = move || -> Result<_, Problem> {
            let store = Store::open(&home)?;
            let library =
                Library::open(store.clone(), announce_set, home.files(), threads, stop, &tasks)?;
            let cache = Cache::open(&home, store.clone(), library.clone(), settings)?;
            Ok((store, library, cache, home))
        };
        blocking(open).await??
    };
    let peer_id = network
        .as_ref()
        .map_or_else(|| home.peer_id(), |network| network.peer_id());
    let tls = network.as_ref().map(|network| network.tls().clone());
    let local = LocalPeer {
        id: peer_id,
        address: local_addr.map(Into::into),
        outgoing: Outgoing {
            local_address: local_addr
                .map(|address| address.ip())
                .filter(|ip| !ip.is_unspecified()),
            tls: tls.clone(),
            locality: config.locality.clone(),
        },
    };
    if let Some(network) = &network {
        let stop = signals.stop_work.child_token();
        let (index, hangups) = (config.index.clone(), config.hangups.clone());
        tasks.spawn(Arc::clone(network).keep_valid(index, hangups, stop));
    }
    let index = match (config.index.clone(), &tls) {
        (Some(index), Some(tls)) => Some(index.secured(tls)?),
        (index, _) => index,
    };
    let index =
        index.map(|index| IndexClient::with_local_address(index, local.outgoing.local_address));
    let registrar = index.clone().zip(local_addr).map(|(client, local_addr)| {
        let address = config.advertise.clone();
        let connection = IndexConnection::new(
            client,
            match &network {
                Some(network) => Caller::Member(Arc::clone(network)),
                None => Caller::Token(home.token().clone()),
            },
            address.unwrap_or_else(|| own_address(local_addr)),
            config.lease,
        );
        let stop = signals.stop_work.child_token();
        Registrar::start(connection, announce_set.clone(), stop, &tasks)
    });
    tasks.spawn(watch_after_first_sync(
        library.clone(),
        announce_set.clone(),
        registrar.clone(),
        signals.stop_work.child_token(),
        tasks.clone(),
    ));
    tasks.spawn(cache.clone().maintain(signals.stop_work.child_token()));
    let limits = Limits::with_max_share(
        config.limits.upload_bytes_per_second,
        config.limits.download_bytes_per_second,
        config.limits.upload_slots,
        config.address_share,
    );
    let running_index = index.clone();
    let context = Arc::new(DownloadContext {
        library: library.clone(),
        announce_set,
        index,
        cache: cache.clone(),
        store,
        files_folder: home.files(),
        local,
        resources: SharedResources {
            limits: limits.clone(),
            budget: InFlightBudget::default(),
            hash_threads: config.hash_threads,
            disk_pools: DiskPools::new(config.hash_threads),
        },
        downloaded_bytes: Arc::clone(&library.activity().downloaded),
        counters: DownloadCounters::default(),
        origins: Default::default(),
        aliases: Default::default(),
        tracker: tasks.clone(),
    });
    let downloads = DownloadManager::new(Arc::clone(&context), signals.stop_work.child_token());
    let counters = Arc::new(UploadCounters {
        uploaded_bytes: Arc::clone(&library.activity().uploaded),
        tallies: library.activity().tallies.clone(),
    });
    let metrics = PeerMetrics {
        library: library.clone(),
        cache: cache.clone(),
        downloads: downloads.clone(),
        registrar: registrar.clone(),
        limits: limits.clone(),
        counters: context.counters.clone(),
        disk_pools: context.resources.disk_pools.clone(),
        locality: config.locality.clone(),
    };
    metrics.register(&config.metrics);
    let peer_api = PeerApi::new(
        vec![
            Arc::new(CachedLibrary {
                library: library.clone(),
                cache: cache.clone(),
            }),
            Arc::new(downloads.clone()),
        ],
        peer_id,
        limits.clone(),
        Arc::clone(&counters),
        config.locality.clone(),
    );
    let control_api = ControlApi {
        context,
        transfers: downloads.clone(),
        registrar,
        counters,
        home: home.path().to_owned(),
        previous_peer_id: home.previous_peer_id(),
        started: Instant::now(),
        shutdown: signals.stop_work.child_token(),
    };

    let mut healths = Vec::new();
    if let Some(listener) = listener {
        let health = open_port::serve(listener, peer_api, &config, tls, &signals, &servers);
        healths.push(health.await?);
    }
    // Before the control service accepts new downloads, because those would reuse the restored
    // numbers.
    downloads.restore().await?;
    let control_port =
        control_port::serve(control_listener, control_api, &signals, &servers).await?;
    if !config.share.is_empty() {
        tasks.spawn(share_at_start(
            library.clone(),
            config.share,
            config.share_options,
        ));
    }
    tracing::info!(
        peer = %peer_id.short(), listening = local_addr.map(tracing::field::display), %control,
        home = %home.path().display(),
        "peer ready"
    );
    config.readiness.set(true);
    let home_path = home.path().to_owned();
    healths.push(control_port.health);
    let supervisor = Supervisor {
        signals,
        servers,
        tasks,
        healths,
        readiness: config.readiness,
        socket: control_port.socket,
        home,
    };
    Ok(Running {
        local_addr,
        control,
        control_token: control_port.token,
        peer_id,
        home: home_path,
        downloads,
        library,
        cache,
        index: running_index,
        limits,
        supervisor: tokio::spawn(supervisor.run()),
    })
}

fn beyond_loopback(address: SocketAddr) -> Problem {
    Problem::new(
        Reason::InvalidArgument,
        format!(
            "--listen {address} would let other machines download from this peer without \
             encryption: join a private network (`potluck network create` on the index's machine, \
             then `potluck network join CODE` here), or give --plaintext (POTLUCK_PEER_PLAINTEXT=1) \
             if everyone who reaches this machine may read everything that it shares"
        ),
    )
    .field("listen")
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
    let Some(Endpoint::Http(index)) = config.index.as_ref().map(IndexList::first) else {
        return;
    };
    let host = index.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_local =
        host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    if local.ip().is_loopback() && !is_local && config.advertise.is_none() {
        tracing::warn!(
            %local, index = host,
            "the index is on another machine, and only this machine can reach this peer: to share \
             with other machines, give --listen 0.0.0.0:{} or this machine's address",
            local.port()
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

async fn share_at_start(library: Library, paths: Vec<PathBuf>, options: ShareOptions) {
    let (sender, mut events) = mpsc::channel(64);
    let sharing = library.share(paths, options, sender);
    let log = async {
        while let Some(event) = events.recv().await {
            match event {
                ShareEvent::Shared(item) => {
                    tracing::info!(path = %item.path.display(), id = %item.record.id, "shared");
                }
                ShareEvent::Failed { path, problem } => {
                    tracing::warn!(path = %path.display(), %problem, "cannot share");
                }
                ShareEvent::Omitted { path, omitted } => omitted.warn(&path),
                ShareEvent::Progress { .. } => {}
            }
        }
    };
    tokio::join!(sharing, log);
}

/// Binds to the address in `options`, prints `listening on ADDR` to stdout when ready, and serves
/// until `shutdown` is cancelled. A peer that only downloads binds to nothing, and prints
/// `ready to download`. Reads the settings again at each of the `hangups`.
///
/// # Errors
/// Fails as [`start`] does, and with [`Reason::AddressInUse`], [`Reason::InvalidAddress`] or
/// [`Reason::PermissionDenied`] if the address cannot be bound.
pub async fn run(
    configured: Configured<Options>,
    hangups: Hangups,
    shutdown: CancellationToken,
) -> Result<(), StartError> {
    let options = configured.options.clone();
    let requested = options.listen;
    let failed = |error: std::io::Error| cannot_listen(requested, "--listen", &error);
    let (listener, port) = match options.download_only {
        true => (None, options::home_port(requested)),
        false => {
            let listener = TcpListener::bind(requested).await.map_err(failed)?;
            let port = listener.local_addr().map_err(failed)?.port();
            (Some(listener), port)
        }
    };
    let (readiness, metrics) = (Readiness::default(), Metrics::default());
    if let Some(address) = options.metrics {
        // Before the library is opened, which may take a while.
        monitoring::start(address, readiness.clone(), metrics.clone(), shutdown.clone()).await?;
    }
    join_first(&options).await?;
    let config = Config {
        readiness,
        metrics,
        hangups: hangups.clone(),
        ..Config::from_options(options, port)?
    };
    let locality = config.locality.clone();
    let running = start(listener, config, shutdown.clone()).await?;
    let (limits, cache) = (running.limits.clone(), running.cache.clone());
    let apply = move |options: &Options, changes: &[_]| {
        reload::apply(&limits, &cache, &locality, options, changes)
    };
    tokio::spawn(reload_on_hangup(configured, hangups, shutdown.clone(), apply));
    let mut out = std::io::stdout();
    let written = match running.local_addr {
        Some(address) => writeln!(out, "listening on {address}"),
        None => writeln!(out, "ready to download"),
    };
    let written = written.and_then(|()| out.flush());
    if let Err(error) = written {
        shutdown.cancel();
        running.join().await;
        return Err(Problem::new(
            Reason::Internal,
            format!("cannot print the peer's address: {error}"),
        ));
    }
    running.join().await;
    Ok(())
}

/// Joins the network of `--join-file`, unless this user did already.
async fn join_first(options: &Options) -> Result<(), Problem> {
    let Some(file) = &options.join_file else {
        return Ok(());
    };
    let folder = options.credentials.clone().or_else(credentials::default_folder);
    let folder = folder.ok_or(CredentialsError::NoFolder)?;
    let name = index_client::machine_name();
    let credentials = index_client::join_once(folder, file, &name).await?;
    tracing::info!(network = credentials.name(), "member of a private network");
    Ok(())
}
