//! Fixtures: a library on temporary folders, served over loopback, and waits without blind sleeps.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use potluck_core::{
    FileId, Problem,
    grpc::transport,
    proto::v1::{self, peer_service_client::PeerServiceClient},
};
use potluck_peer::{
    announce::set::AnnounceSet,
    content::ContentSource,
    home::Home,
    library::{Item, Library, ShareEvent},
    limits::Limits,
    store::Store,
    upload::{PeerApi, UploadCounters},
};
use tokio::{net::TcpListener, sync::mpsc, time::Instant};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Channel;

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) async fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) struct Peer {
    pub(crate) home: Home,
    pub(crate) library: Library,
    pub(crate) holdings: AnnounceSet,
    pub(crate) limits: Limits,
    pub(crate) counters: Arc<UploadCounters>,
    pub(crate) shutdown: CancellationToken,
    tracker: TaskTracker,
}

impl Peer {
    pub(crate) async fn open(home: &Path) -> Self {
        let home = Home::open(home).unwrap();
        let shutdown = CancellationToken::new();
        let tracker = TaskTracker::new();
        let holdings = AnnounceSet::new();
        let library = tokio::task::spawn_blocking({
            let (holdings, shutdown, tracker) = (holdings.clone(), shutdown.clone(), tracker.clone());
            let store = Store::open(&home).unwrap();
            let files = home.files();
            move || {
                let library = Library::open(store, holdings, files, 2, shutdown, &tracker).unwrap();
                library.watch_files_folder(&tracker);
                library
            }
        })
        .await
        .unwrap();
        Self {
            home,
            library,
            holdings,
            limits: Limits::new(0, 0, 0),
            counters: Arc::default(),
            shutdown,
            tracker,
        }
    }

    /// Stops everything; the home can then be opened again.
    pub(crate) async fn close(self) {
        self.shutdown.cancel();
        self.tracker.close();
        tokio::time::timeout(DEADLINE, self.tracker.wait())
            .await
            .expect("no task is left");
        // Blocking work holds the database for a moment longer.
        let Self { home, library, .. } = self;
        drop(library);
        let state = home.state();
        wait_until("the database is closed", || {
            Store::open(&home).is_ok() || !state.exists()
        })
        .await;
    }

    pub(crate) async fn share(&self, paths: &[&Path]) -> Vec<Result<Item, (PathBuf, Problem)>> {
        let (sender, mut events) = mpsc::channel(16);
        let paths = paths.iter().map(|path| path.to_path_buf()).collect();
        let mut results = Vec::new();
        let collect = async {
            while let Some(event) = events.recv().await {
                match event {
                    ShareEvent::Progress { done, total, .. } => assert!(done <= total),
                    ShareEvent::Shared(item) => results.push(Ok(item)),
                    ShareEvent::Failed { path, problem } => results.push(Err((path, problem))),
                }
            }
        };
        tokio::join!(self.library.share(paths, sender), collect);
        results
    }

    pub(crate) async fn share_one(&self, path: &Path) -> Item {
        self.share(&[path]).await.remove(0).unwrap()
    }

    /// Serves the library; returns a client.
    pub(crate) async fn serve(&self) -> PeerServiceClient<Channel> {
        self.serve_at().await.1
    }

    /// Serves the library; returns its address and a client.
    pub(crate) async fn serve_at(&self) -> (SocketAddr, PeerServiceClient<Channel>) {
        let shelves: Vec<Arc<dyn ContentSource>> = vec![Arc::new(self.library.clone())];
        let api = PeerApi::new(
            shelves,
            self.home.peer_id(),
            self.limits.clone(),
            self.counters.clone(),
        );
        serve_at(api, self.shutdown.clone()).await
    }

    pub(crate) fn registered(&self, id: &FileId) -> Option<Vec<String>> {
        let all = self.holdings.snapshot();
        all.into_iter().find(|one| one.file.id == *id).map(|one| {
            let mut names = one.names;
            names.sort();
            names
        })
    }
}

pub(crate) async fn serve(api: PeerApi, shutdown: CancellationToken) -> PeerServiceClient<Channel> {
    serve_at(api, shutdown).await.1
}

async fn serve_at(api: PeerApi, shutdown: CancellationToken) -> (SocketAddr, PeerServiceClient<Channel>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = transport::server().add_service(api.into_service());
    tokio::spawn(
        server.serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown.cancelled_owned()),
    );
    let endpoint: transport::Endpoint = address.to_string().parse().unwrap();
    let client = PeerServiceClient::new(endpoint.connect().await.unwrap())
        .max_decoding_message_size(transport::MAX_MESSAGE);
    (address, client)
}

pub(crate) fn span(id: FileId, offset: u64, length: u64) -> v1::Span {
    v1::Span {
        file_id: id.to_bytes(),
        offset,
        length,
    }
}

/// Downloads spans; returns the bytes of each.
pub(crate) async fn download(
    client: &mut PeerServiceClient<Channel>,
    spans: Vec<v1::Span>,
) -> Result<Vec<Vec<u8>>, Problem> {
    let mut bytes = vec![Vec::new(); spans.len()];
    let starts: Vec<_> = spans.iter().map(|span| span.offset).collect();
    let mut stream = client.download(v1::DownloadRequest { spans }).await?.into_inner();
    while let Some(chunk) = stream.message().await? {
        let span = chunk.span as usize;
        assert_eq!(
            chunk.offset,
            starts[span] + bytes[span].len() as u64,
            "in order, without gaps"
        );
        assert!(!chunk.data.is_empty() && chunk.data.len() <= 1 << 20);
        bytes[span].extend_from_slice(&chunk.data);
    }
    Ok(bytes)
}

/// Bytes without repetition.
pub(crate) fn bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed)
        .collect()
}
