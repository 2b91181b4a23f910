//! A crowd at one peer: the peer announces what it sends, few requests wait, and one address never
//! takes everything.

use std::{net::IpAddr, path::Path, time::Duration};

use potluck_core::{
    FileId, Problem, Reason,
    proto::v1::{self, peer_service_client::PeerServiceClient, watch_availability_response::Event},
};
use potluck_peer::upload::PeerApi;
use potluck_testkit::{
    content::{MIB, bytes, id_of, write_file},
    services::{LibraryPeer, peer_client, span},
    wait::{DEADLINE, wait_until},
};
use tonic::transport::Channel;

const KIB: usize = 1024;

const FAR: [u8; 4] = [192, 0, 2, 1];
const OTHER: [u8; 4] = [192, 0, 2, 2];

/// A client whose connection counts as one from `address`.
async fn from(peer: &LibraryPeer, api: &PeerApi, address: [u8; 4]) -> PeerServiceClient<Channel> {
    let client_of = move |_: &_| IpAddr::from(address);
    let server = peer.serve_scheduled(api.clone(), client_of).await;
    peer_client(server).await
}

async fn world() -> (tempfile::TempDir, LibraryPeer, PeerApi, FileId) {
    let dir = tempfile::tempdir().unwrap();
    let path = write_file(dir.path(), "file", &bytes(MIB, 5));
    let peer = LibraryPeer::open(&dir.path().join("home")).await;
    let id = peer.share_one(&path).await.record.id;
    let api = peer.peer_api();
    (dir, peer, api, id)
}

fn assert_busy(problem: &Problem) {
    assert_eq!(problem.reason, Reason::Busy);
    assert!(
        problem.message.contains("address"),
        "the message names the reason: {problem}"
    );
    assert!(problem.retry_after.is_some_and(|wait| wait > Duration::ZERO));
}

#[tokio::test]
async fn one_address_leaves_upload_slots_to_others() {
    let (_dir, peer, api, id) = world().await;
    peer.limits.set(1, 0, 8);
    let (mut far, mut other) = (from(&peer, &api, FAR).await, from(&peer, &api, OTHER).await);
    let request = || v1::DownloadRequest {
        spans: vec![span(id, 0, 1 << 20)],
        ..Default::default()
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
async fn share_folder(
    dir: &Path,
    peer: &LibraryPeer,
    name: &str,
    sizes: &[usize],
) -> (FileId, Vec<FileId>) {
    let folder = dir.join(name);
    let files = sizes.iter().enumerate().map(|(n, &size)| {
        let content = bytes(size, n as u64);
        write_file(&folder, &n.to_string(), &content);
        id_of(&content)
    });
    let files = files.collect();
    (peer.share_one(&folder).await.record.id, files)
}

/// While several clients watch `id`, only a few requests for `spans` wait, and one address leaves
/// room for others.
async fn assert_few_requests_wait(
    peer: &LibraryPeer,
    api: &PeerApi,
    id: FileId,
    spans: Vec<v1::Span>,
) {
    peer.limits.set(1, 0, 0);
    let (mut far, mut other) = (from(peer, api, FAR).await, from(peer, api, OTHER).await);
    let watched = v1::WatchAvailabilityRequest {
        file_id: id.to_bytes(),
    };
    let request = || v1::DownloadRequest {
        spans: spans.clone(),
        ..Default::default()
    };
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
    let waiting = other.download(request()).await.unwrap();
    drop((waiting, held));
    wait_until("the calls have ended", async || peer.limits.active_uploads() == 0).await;
    assert!(far.download(request()).await.is_ok());
}

#[tokio::test]
async fn few_requests_for_a_file_wait_and_one_address_leaves_room_to_others() {
    let (_dir, peer, api, id) = world().await;
    assert_few_requests_wait(&peer, &api, id, vec![span(id, 0, 128 * 1024)]).await;
}

#[tokio::test]
async fn few_requests_for_a_collection_wait() {
    let (dir, peer, api, _) = world().await;
    let (id, files) = share_folder(dir.path(), &peer, "folder", &[1000, 3 * MIB]).await;
    let spans = vec![span(files[0], 0, 1000), span(files[1], 0, 3 * MIB as u64)];
    assert_few_requests_wait(&peer, &api, id, spans).await;
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
        assert!(held.len() < 4096, "one address has no limit on its watches");
    };
    assert_busy(&refused);
    let mut other = from(&peer, &api, OTHER).await;
    assert!(other.watch_availability(request).await.is_ok());
}

/// How long to wait for an event that must not come.
const SILENCE: Duration = Duration::from_millis(300);

/// The next change from a watch; `None` if there is none `within` this time.
async fn next_change(
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
async fn assert_watchers_learn_of_sent_units(
    peer: &LibraryPeer,
    id: FileId,
    spans: &[v1::Span],
    units: &[u32],
) {
    peer.limits.set(1, 0, 0);
    let (_, mut client) = peer.serve().await;
    let request = || v1::DownloadRequest {
        spans: spans.to_vec(),
        ..Default::default()
    };
    let mut first = watch(&client, id).await;
    // A single watcher has no other downloader to coordinate with.
    let alone = client.download(request()).await.unwrap();
    assert_eq!(next_change(&mut first, SILENCE).await, None);
    drop(alone);
    let mut second = watch(&client, id).await;
    wait_until("the call has ended", async || peer.limits.active_uploads() == 0).await;

    let sending = client.download(request()).await.unwrap();
    for stream in [&mut first, &mut second] {
        let change = next_change(stream, DEADLINE)
            .await
            .expect("the start is announced");
        assert_eq!((&change.fetching[..], &change.abandoned[..]), (units, &[][..]));
    }
    drop(sending);
    for stream in [&mut first, &mut second] {
        let change = next_change(stream, DEADLINE).await.expect("the end is announced");
        assert_eq!((&change.fetching[..], &change.abandoned[..]), (&[][..], units));
    }
}

#[tokio::test]
async fn several_watchers_of_a_file_learn_of_sent_units() {
    let (_dir, peer, _, id) = world().await;
    let spans = [span(id, 128 * 1024 + 5, 128 * 1024)];
    assert_watchers_learn_of_sent_units(&peer, id, &spans, &[1, 2]).await;
}

#[tokio::test]
async fn several_watchers_of_a_collection_learn_of_sent_units() {
    let (dir, peer, ..) = world().await;
    // Two bundles, the first with two files; the units from 2 on belong to the last file.
    let sizes = [100, 70 * KIB, 100 * KIB, 5 * MIB];
    let (id, files) = share_folder(dir.path(), &peer, "folder", &sizes).await;
    let spans = [
        span(files[0], 0, 100),
        span(files[1], 0, 70 * KIB as u64),
        span(files[3], 3 * 128 * 1024, 128 * 1024),
    ];
    assert_watchers_learn_of_sent_units(&peer, id, &spans, &[0, 5]).await;
}

#[tokio::test]
async fn watchers_of_each_collection_with_the_content_learn_of_sent_units() {
    let (dir, peer, ..) = world().await;
    let (one, files) = share_folder(dir.path(), &peer, "one", &[100 * KIB, 60 * KIB]).await;
    let (other, _) = share_folder(dir.path(), &peer, "other", &[100 * KIB, 60 * KIB, 1]).await;
    let (without, _) = share_folder(dir.path(), &peer, "without", &[7, 8]).await;
    peer.limits.set(1, 0, 0);
    let (_, mut client) = peer.serve().await;
    let mut watches = Vec::new();
    for id in [one, other, without] {
        watches.push([watch(&client, id).await, watch(&client, id).await]);
    }
    let mut download = async |span| {
        client
            .download(v1::DownloadRequest {
                spans: vec![span],
                ..Default::default()
            })
            .await
    };
    let mut held = vec![download(span(one, 0, 8)).await.unwrap()];
    for stream in watches.iter_mut().flatten() {
        assert_eq!(
            next_change(stream, SILENCE).await,
            None,
            "a manifest is not a unit"
        );
    }
    held.push(download(span(files[1], 0, 1)).await.unwrap());
    for ([stream, _], units) in watches.iter_mut().zip([Some(vec![1]), Some(vec![1]), None]) {
        let within = if units.is_some() { DEADLINE } else { SILENCE };
        assert_eq!(
            next_change(stream, within).await.map(|change| change.fetching),
            units
        );
    }
}
