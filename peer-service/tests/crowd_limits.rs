//! A crowd at one peer: the peer announces what it sends, few requests wait, and one address never
//! takes everything.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod served_library;

use std::{net::IpAddr, path::Path, time::Duration};

use futures_util::StreamExt as _;
use potluck_core::{
    FileId, Problem, Reason,
    grpc::transport,
    identity::hash::hash_bytes,
    proto::v1::{self, peer_service_client::PeerServiceClient, watch_availability_response::Event},
};
use potluck_peer::upload::{EvictableConnection, PeerApi, SendScheduler, UploadCounters};
use served_library::{DEADLINE, Peer, bytes, span, wait_until};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Channel;

const MIB: usize = 1 << 20;

const FAR: [u8; 4] = [192, 0, 2, 1];
const OTHER: [u8; 4] = [192, 0, 2, 2];

/// A client whose connection counts as one from `address`.
async fn from(peer: &Peer, api: &PeerApi, address: [u8; 4]) -> PeerServiceClient<Channel> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at: transport::Endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
    let turns = SendScheduler::new();
    let source = IpAddr::from(address).into();
    let connections = TcpListenerStream::new(listener).map(move |stream| {
        stream.map(|stream| EvictableConnection::new(stream, turns.add_connection(source)))
    });
    let server = transport::server().add_service(api.clone().into_service());
    let stop = peer.shutdown.clone().cancelled_owned();
    tokio::spawn(server.serve_with_incoming_shutdown(connections, stop));
    PeerServiceClient::new(at.connect().await.unwrap())
}

async fn world() -> (tempfile::TempDir, Peer, PeerApi, FileId) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), bytes(5, 1 << 20)).unwrap();
    let peer = Peer::open(&dir.path().join("home")).await;
    let id = peer.share_one(&dir.path().join("file")).await.record.id;
    let shelf = std::sync::Arc::new(peer.library.clone());
    let counters = std::sync::Arc::<UploadCounters>::default();
    let api = PeerApi::new(vec![shelf], peer.home.peer_id(), peer.limits.clone(), counters);
    (dir, peer, api, id)
}

fn assert_busy(problem: &Problem) {
    assert_eq!(problem.reason, Reason::Busy);
    assert!(problem.message.contains("address"), "it says why: {problem}");
    assert!(problem.retry_after.is_some_and(|wait| wait > Duration::ZERO));
}

#[tokio::test]
async fn one_address_leaves_upload_slots_to_others() {
    let (_dir, peer, api, id) = world().await;
    peer.limits.set(1, 0, 8);
    let (mut far, mut other) = (from(&peer, &api, FAR).await, from(&peer, &api, OTHER).await);
    let request = || v1::DownloadRequest {
        spans: vec![span(id, 0, 1 << 20)],
    };
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(far.download(request()).await.unwrap());
    }
    assert_busy(&far.download(request()).await.unwrap_err().into());
    held.push(other.download(request()).await.unwrap());
    drop(held);
}

/// Shares a folder of files of these sizes; returns its id and theirs.
async fn share_folder(dir: &Path, peer: &Peer, name: &str, sizes: &[usize]) -> (FileId, Vec<FileId>) {
    let folder = dir.join(name);
    std::fs::create_dir(&folder).unwrap();
    let files = sizes.iter().enumerate().map(|(n, &size)| {
        let content = bytes(n as u8, size);
        std::fs::write(folder.join(n.to_string()), &content).unwrap();
        hash_bytes(&content).id()
    });
    let files = files.collect();
    (peer.share_one(&folder).await.record.id, files)
}

/// While several clients watch `id`, only a few requests for `spans` wait, and one address leaves
/// room for others.
async fn few_wait(peer: &Peer, api: &PeerApi, id: FileId, spans: Vec<v1::Span>) {
    peer.limits.set(1, 0, 0);
    let (mut far, mut other) = (from(peer, api, FAR).await, from(peer, api, OTHER).await);
    let watched = v1::WatchAvailabilityRequest {
        file_id: id.to_bytes(),
    };
    let request = || v1::DownloadRequest { spans: spans.clone() };
    let mut watches = vec![far.watch_availability(watched.clone()).await.unwrap()];
    let mut held = Vec::new();
    // A single client may send as many requests as it likes.
    for _ in 0..20 {
        held.push(far.download(request()).await.unwrap());
    }
    watches.push(other.watch_availability(watched).await.unwrap());
    for _ in 0..6 {
        held.push(far.download(request()).await.unwrap());
    }
    assert_busy(&far.download(request()).await.unwrap_err().into());
    let waits = other.download(request()).await.unwrap();
    drop((waits, held));
    wait_until("the calls have ended", || peer.limits.active_uploads() == 0).await;
    assert!(far.download(request()).await.is_ok());
}

#[tokio::test]
async fn few_of_a_crowd_wait_for_a_file_and_an_address_leaves_places_to_others() {
    let (_dir, peer, api, id) = world().await;
    few_wait(&peer, &api, id, vec![span(id, 0, 128 * 1024)]).await;
}

#[tokio::test]
async fn few_of_a_crowd_wait_for_a_collection_as_for_a_file() {
    let (dir, peer, api, _) = world().await;
    let (id, files) = share_folder(dir.path(), &peer, "folder", &[1000, 3 * MIB]).await;
    let spans = vec![span(files[0], 0, 1000), span(files[1], 0, 3 * MIB as u64)];
    few_wait(&peer, &api, id, spans).await;
}

#[tokio::test]
async fn one_address_leaves_watches_to_others() {
    let (_dir, peer, api, id) = world().await;
    let request = v1::WatchAvailabilityRequest {
        file_id: id.to_bytes(),
    };
    let mut held = Vec::new();
    let refused = 'full: loop {
        // As many streams as one connection may open.
        let mut far = from(&peer, &api, FAR).await;
        for _ in 0..1000 {
            match far.watch_availability(request.clone()).await {
                Ok(stream) => held.push(stream),
                Err(status) => break 'full Problem::from(status),
            }
        }
        assert!(held.len() < 4096, "one address watches as often as it likes");
    };
    assert_busy(&refused);
    let mut other = from(&peer, &api, OTHER).await;
    assert!(other.watch_availability(request).await.is_ok());
}

/// How long to wait for an event that must not come.
const SILENCE: Duration = Duration::from_millis(300);

/// The next change from a watch; `None` if there is none `within` this time.
async fn told(
    stream: &mut tonic::Streaming<v1::WatchAvailabilityResponse>,
    within: Duration,
) -> Option<v1::AvailabilityChange> {
    let next = tokio::time::timeout(within, stream.message()).await;
    match next.ok()?.unwrap().unwrap().event {
        Some(Event::Change(change)) => Some(change),
        other => panic!("{other:?} is no change"),
    }
}

/// Starts a watch and reads its first snapshot.
async fn watch(
    client: &PeerServiceClient<Channel>,
    id: FileId,
) -> tonic::Streaming<v1::WatchAvailabilityResponse> {
    let request = v1::WatchAvailabilityRequest {
        file_id: id.to_bytes(),
    };
    let watch = client.clone().watch_availability(request).await;
    let mut stream = watch.unwrap().into_inner();
    stream.message().await.unwrap();
    stream
}

/// While `spans` are sent, each of several watchers of `id` is notified of `units`. A single
/// watcher is not.
async fn those_who_watch_are_told(peer: &Peer, id: FileId, spans: &[v1::Span], units: &[u32]) {
    peer.limits.set(1, 0, 0);
    let mut client = peer.serve().await;
    let request = || v1::DownloadRequest {
        spans: spans.to_vec(),
    };
    let mut first = watch(&client, id).await;
    // A single watcher has no other downloader to coordinate with.
    let alone = client.download(request()).await.unwrap();
    assert_eq!(told(&mut first, SILENCE).await, None);
    drop(alone);
    let mut second = watch(&client, id).await;
    wait_until("the call has ended", || peer.limits.active_uploads() == 0).await;

    let sending = client.download(request()).await.unwrap();
    for stream in [&mut first, &mut second] {
        let change = told(stream, DEADLINE).await.expect("what is sent is told");
        assert_eq!((&change.fetching[..], &change.abandoned[..]), (units, &[][..]));
    }
    drop(sending);
    for stream in [&mut first, &mut second] {
        let change = told(stream, DEADLINE).await.expect("what was sent is told");
        assert_eq!((&change.fetching[..], &change.abandoned[..]), (&[][..], units));
    }
}

#[tokio::test]
async fn several_who_watch_a_seed_are_told_what_it_sends() {
    let (_dir, peer, _, id) = world().await;
    let spans = [span(id, 128 * 1024 + 5, 128 * 1024)];
    those_who_watch_are_told(&peer, id, &spans, &[1, 2]).await;
}

#[tokio::test]
async fn several_who_watch_a_collection_are_told_what_is_sent_of_it() {
    let (dir, peer, ..) = world().await;
    // Two bundles, the first with two files; the units from 2 on belong to the last file.
    let sizes = [100, 3 * MIB, 2 * MIB, 5 * MIB];
    let (id, files) = share_folder(dir.path(), &peer, "folder", &sizes).await;
    let spans = [
        span(files[0], 0, 100),
        span(files[1], 0, 3 * MIB as u64),
        span(files[3], 3 * 128 * 1024, 128 * 1024),
    ];
    those_who_watch_are_told(&peer, id, &spans, &[0, 5]).await;
}

#[tokio::test]
async fn what_is_sent_is_told_of_each_collection_that_has_it_and_lists_are_not_content() {
    let (dir, peer, ..) = world().await;
    let (one, files) = share_folder(dir.path(), &peer, "one", &[3 * MIB, 2 * MIB]).await;
    let (other, _) = share_folder(dir.path(), &peer, "other", &[3 * MIB, 2 * MIB, 1]).await;
    let (without, _) = share_folder(dir.path(), &peer, "without", &[7, 8]).await;
    peer.limits.set(1, 0, 0);
    let mut client = peer.serve().await;
    let mut watches = Vec::new();
    for id in [one, other, without] {
        watches.push([watch(&client, id).await, watch(&client, id).await]);
    }
    let mut ask = async |span| client.download(v1::DownloadRequest { spans: vec![span] }).await;
    let mut held = vec![ask(span(one, 0, 8)).await.unwrap()];
    for stream in watches.iter_mut().flatten() {
        assert_eq!(told(stream, SILENCE).await, None, "a manifest is no unit");
    }
    held.push(ask(span(files[1], 0, 1)).await.unwrap());
    for ([stream, _], units) in watches.iter_mut().zip([Some(vec![1]), Some(vec![1]), None]) {
        let within = if units.is_some() { DEADLINE } else { SILENCE };
        assert_eq!(told(stream, within).await.map(|change| change.fetching), units);
    }
}
