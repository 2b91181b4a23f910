//! The library of a peer and its open port, without the rest of the peer.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::StreamExt as _;
use potluck_core::{
    FileId, Problem,
    grpc::transport,
    proto::v1::{self, peer_service_client::PeerServiceClient},
};
use potluck_peer::{
    announce::set::AnnounceSet,
    content::ContentSource,
    home::Home,
    library::{Item, Library, OmissionKind, ShareEvent, ShareOptions},
    limits::Limits,
    store::Store,
    upload::{EvictableConnection, PeerApi, SendScheduler, UploadCounters},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Channel;

use crate::{
    network::endpoint_at,
    wait::{in_time, wait_until},
};

/// A library with a home of its own.
#[derive(Debug)]
pub struct LibraryPeer {
    /// Its home.
    pub home: Home,
    /// The library.
    pub library: Library,
    /// The registrations that a peer would announce.
    pub announce_set: AnnounceSet,
    /// Limits of its uploads.
    pub limits: Limits,
    /// Counts its uploads.
    pub counters: Arc<UploadCounters>,
    /// Ends its tasks and servers.
    pub shutdown: CancellationToken,
    tracker: TaskTracker,
}

impl LibraryPeer {
    /// Opens the library in this home.
    pub async fn open(home: &Path) -> Self {
        let home = Home::open(home).unwrap();
        let shutdown = CancellationToken::new();
        let tracker = TaskTracker::new();
        let announce_set = AnnounceSet::new();
        let library = tokio::task::spawn_blocking({
            let (announce_set, shutdown, tracker) =
                (announce_set.clone(), shutdown.clone(), tracker.clone());
            let store = Store::open(&home).unwrap();
            let files = home.files();
            move || {
                let library =
                    Library::open(store, announce_set, files, 2, shutdown, &tracker).unwrap();
                library.watch_files_folder(&tracker);
                library
            }
        })
        .await
        .unwrap();
        Self {
            home,
            library,
            announce_set,
            limits: Limits::new(0, 0, 0),
            counters: Arc::default(),
            shutdown,
            tracker,
        }
    }

    /// Stops everything; the home can then be opened again.
    pub async fn close(self) {
        self.shutdown.cancel();
        self.tracker.close();
        in_time("all tasks end", self.tracker.wait()).await;
        // Blocking work holds the database for a moment longer.
        let Self { home, library, .. } = self;
        drop(library);
        let state = home.state();
        wait_until("the database is closed", async || {
            Store::open(&home).is_ok() || !state.exists()
        })
        .await;
    }

    /// Shares paths; returns the result of each.
    pub async fn share(&self, paths: &[&Path]) -> Vec<Result<Item, (PathBuf, Problem)>> {
        self.share_with(paths, ShareOptions::default()).await.0
    }

    /// Shares paths with these options; returns the result of each, and the number of omissions of
    /// each kind over all of them.
    pub async fn share_with(
        &self,
        paths: &[&Path],
        options: ShareOptions,
    ) -> (Vec<Result<Item, (PathBuf, Problem)>>, BTreeMap<OmissionKind, u64>) {
        let mut counts = BTreeMap::new();
        let (sender, mut events) = mpsc::channel(16);
        let paths = paths.iter().map(|path| path.to_path_buf()).collect();
        let mut results = Vec::new();
        let collect = async {
            while let Some(event) = events.recv().await {
                match event {
                    ShareEvent::Progress { done, total, .. } => assert!(done <= total),
                    ShareEvent::Omitted { omitted, .. } => {
                        for (kind, count) in omitted.counts() {
                            *counts.entry(kind).or_default() += count;
                        }
                    }
                    ShareEvent::Shared(item) => results.push(Ok(item)),
                    ShareEvent::Failed { path, problem } => results.push(Err((path, problem))),
                }
            }
        };
        tokio::join!(self.library.share(paths, options, sender), collect);
        (results, counts)
    }

    /// Shares one path.
    pub async fn share_one(&self, path: &Path) -> Item {
        self.share(&[path]).await.remove(0).unwrap()
    }

    /// The names under which a peer would announce this file, sorted.
    pub fn announced_names(&self, id: &FileId) -> Option<Vec<String>> {
        let all = self.announce_set.snapshot();
        all.into_iter().find(|one| one.file.id == *id).map(|one| {
            let mut names = one.names;
            names.sort();
            names
        })
    }

    /// The service of its open port.
    pub fn peer_api(&self) -> PeerApi {
        let sources: Vec<Arc<dyn ContentSource>> = vec![Arc::new(self.library.clone())];
        PeerApi::new(
            sources,
            self.home.peer_id(),
            self.limits.clone(),
            self.counters.clone(),
            Default::default(),
        )
    }

    /// Serves the library; returns its address and a client.
    pub async fn serve(&self) -> (SocketAddr, PeerServiceClient<Channel>) {
        let (address, connections) = listen().await;
        let server = transport::server().add_service(self.peer_api().into_service());
        let shutdown = self.shutdown.clone().cancelled_owned();
        tokio::spawn(server.serve_with_incoming_shutdown(connections, shutdown));
        (address, peer_client(address).await)
    }

    /// Serves this service over connections of one send scheduler, as a peer does. `client_of` says
    /// whose connection each counts as. Returns the address.
    pub async fn serve_scheduled(
        &self,
        api: PeerApi,
        client_of: impl Fn(&TcpStream) -> std::net::IpAddr + Send + 'static,
    ) -> SocketAddr {
        let (address, connections) = listen().await;
        let scheduler = SendScheduler::new();
        let connections = connections.map(move |stream| {
            stream.map(|stream| {
                stream.set_nodelay(true).unwrap();
                let client = client_of(&stream).into();
                EvictableConnection::new(stream, scheduler.add_connection(client))
            })
        });
        let server = transport::server().add_service(api.into_service());
        let shutdown = self.shutdown.clone().cancelled_owned();
        tokio::spawn(server.serve_with_incoming_shutdown(connections, shutdown));
        address
    }
}

async fn listen() -> (SocketAddr, TcpListenerStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap(), TcpListenerStream::new(listener))
}

/// A client of the open port at this address.
pub async fn peer_client(address: impl ToString) -> PeerServiceClient<Channel> {
    PeerServiceClient::new(endpoint_at(address).connect().await.unwrap())
        .max_decoding_message_size(transport::MAX_MESSAGE)
}

/// A part of a file.
pub fn span(id: FileId, offset: u64, length: u64) -> v1::Span {
    v1::Span {
        file_id: id.to_bytes(),
        offset,
        length,
    }
}

/// Downloads spans; returns the bytes of each.
///
/// # Errors
/// The reason of the refusal.
pub async fn download(
    client: &mut PeerServiceClient<Channel>,
    spans: Vec<v1::Span>,
) -> Result<Vec<Vec<u8>>, Problem> {
    let mut bytes = vec![Vec::new(); spans.len()];
    let starts: Vec<_> = spans.iter().map(|span| span.offset).collect();
    let mut stream = client
        .download(v1::DownloadRequest {
            spans,
            ..Default::default()
        })
        .await?
        .into_inner();
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
