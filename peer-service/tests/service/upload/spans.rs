//! The public port over loopback: what it serves, what it refuses, and files that change meanwhile.

use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _, sync::Arc, time::Duration};

use potluck_core::{
    FileId, FileLayout, Problem, Reason, Root,
    identity::{hash::hash_bytes, merkle},
    proto::v1::{self, watch_availability_response::Event},
};
use potluck_testkit::{
    content::{MIB, bytes, id_of},
    services::{LibraryPeer, download, span},
    wait::{in_time, wait_until},
};

struct Served {
    dir: tempfile::TempDir,
    peer: LibraryPeer,
    client: v1::peer_service_client::PeerServiceClient<tonic::transport::Channel>,
    address: std::net::SocketAddr,
    content: Vec<u8>,
    id: FileId,
}

impl Served {
    async fn new(len: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let content = bytes(len, 5);
        fs::write(dir.path().join("file"), &content).unwrap();
        let peer = LibraryPeer::open(&dir.path().join("home")).await;
        let id = peer.share_one(&dir.path().join("file")).await.record.id;
        let (address, client) = peer.serve().await;
        Self {
            dir,
            peer,
            client,
            address,
            content,
            id,
        }
    }

    async fn refused(&mut self, spans: Vec<v1::Span>) -> Problem {
        let answer = in_time("the answer comes", download(&mut self.client, spans)).await;
        answer.unwrap_err()
    }
}

#[tokio::test]
async fn sends_spans_of_several_files_in_order() {
    let mut served = Served::new(5 * MIB + 7).await;
    let folder = served.dir.path().join("many");
    fs::create_dir(&folder).unwrap();
    let small: Vec<_> = (0..600u32)
        .map(|n| n.to_le_bytes().repeat(n as usize % 50))
        .collect();
    for (n, content) in small.iter().enumerate() {
        fs::write(folder.join(n.to_string()), content).unwrap();
    }
    served.peer.share_one(&folder).await;
    let mut spans = vec![span(served.id, 1, 3 * MIB as u64), span(served.id, 0, 0)];
    spans.extend(
        small
            .iter()
            .map(|content| span(id_of(content), 0, content.len() as u64)),
    );
    spans.push(span(served.id, 5 * MIB as u64, 7));
    let got = download(&mut served.client, spans).await.unwrap();
    assert!(got[0] == served.content[1..=3 * MIB]);
    assert!(got[1].is_empty());
    assert!(got[2..602] == small[..]);
    assert!(got[602] == served.content[5 * MIB..]);
    let sent: usize = got.iter().map(Vec::len).sum();
    assert_eq!(
        served
            .peer
            .counters
            .uploaded_bytes
            .load(std::sync::atomic::Ordering::Relaxed),
        sent as u64
    );
    let limits = served.peer.limits.clone();
    wait_until("the slot is free again", async || limits.active_uploads() == 0).await;
}

#[tokio::test]
async fn rejects_spans_outside_the_file() {
    let mut served = Served::new(1000).await;
    let (id, unknown) = (served.id, FileId([9; 32]));
    for (spans, reason) in [
        (vec![span(id, 0, 1001)], Reason::OutOfRange),
        (vec![span(id, 1001, 0)], Reason::OutOfRange),
        (vec![span(id, u64::MAX, 2)], Reason::OutOfRange),
        (vec![span(id, 1, u64::MAX)], Reason::OutOfRange),
        (vec![span(id, 0, 1); 4097], Reason::OutOfRange),
        (vec![span(unknown, 0, 1)], Reason::NotFound),
        (
            vec![v1::Span {
                file_id: vec![1; 5].into(),
                offset: 0,
                length: 1,
            }],
            Reason::InvalidId,
        ),
    ] {
        assert_eq!(served.refused(spans).await.reason, reason);
    }
    assert!(
        download(&mut served.client, vec![span(id, 0, 1); 4096])
            .await
            .is_ok()
    );
    assert_eq!(served.peer.limits.active_uploads(), 0);
}

#[tokio::test]
async fn piece_hashes_fold_into_the_root() {
    let mut served = Served::new(3 * MIB + 1).await;
    let describe = v1::DescribeRequest {
        file_id: served.id.to_bytes(),
    };
    let described = served.client.describe(describe).await.unwrap().into_inner();
    assert!(described.complete && described.name == "file");
    let record = described.file.unwrap();
    let ask = |first_piece, count| v1::GetPieceHashesRequest {
        file_id: served.id.to_bytes(),
        first_piece,
        count,
        large_files: false,
    };
    let mut stream = served
        .client
        .get_piece_hashes(ask(0, 0))
        .await
        .unwrap()
        .into_inner();
    let mut hashes = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        assert_eq!(message.first_piece as usize, hashes.len() / 32);
        hashes.extend_from_slice(&message.hashes);
    }
    let layer: Vec<merkle::Hash> = hashes.as_chunks::<32>().0.to_vec();
    let layout = FileLayout::new(record.size).unwrap();
    assert_eq!(
        merkle::fold(&layer, &layout),
        Some(Root::try_from(&record.root[..]).unwrap())
    );
    let run = served
        .client
        .get_piece_hashes(ask(24, 1))
        .await
        .unwrap()
        .into_inner()
        .message()
        .await;
    assert_eq!(run.unwrap().unwrap().hashes, layer[24].to_vec());
    for (first, count) in [(26, 0), (0, 26), (1, u32::MAX)] {
        let status = served
            .client
            .get_piece_hashes(ask(first, count))
            .await
            .unwrap_err();
        assert_eq!(Problem::from(status).reason, Reason::OutOfRange);
    }
}

#[tokio::test]
async fn one_call_carries_the_piece_layers_of_a_folder() {
    let mut served = Served::new(1000).await;
    let folder = served.dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let mut layers: Vec<merkle::Hash> = Vec::new();
    for (n, len) in [300_000, 5, 700_000, 131_073].into_iter().enumerate() {
        let content = bytes(len, n as u64);
        fs::write(folder.join(n.to_string()), &content).unwrap();
        layers.extend(hash_bytes(&content).piece_hashes);
    }
    assert_eq!(layers.len(), 3 + 6 + 2, "the small file has none");
    let id = served.peer.share_one(&folder).await.record.id;
    let mut ask = async |id: FileId, first_piece, count| {
        let request = v1::GetPieceHashesRequest {
            file_id: id.to_bytes(),
            first_piece,
            count,
            large_files: true,
        };
        let mut stream = served.client.get_piece_hashes(request).await?.into_inner();
        let mut hashes = Vec::new();
        while let Some(message) = stream.message().await? {
            assert_eq!(message.first_piece as usize, first_piece as usize + hashes.len());
            hashes.extend_from_slice(message.hashes.as_chunks::<32>().0);
        }
        Ok::<_, tonic::Status>(hashes)
    };
    for (first, count, expected) in [(0, 0, 0..11), (2, 3, 2..5), (8, 2, 8..10), (11, 0, 11..11)] {
        let hashes = ask(id, first, count).await.unwrap();
        assert_eq!(hashes, layers[expected], "{count} from {first}");
    }
    for (of, first, count, reason) in [
        (id, 12, 0, Reason::OutOfRange),
        (id, 0, 12, Reason::OutOfRange),
        (served.id, 0, 0, Reason::NotFound),
    ] {
        let status = ask(of, first, count).await.unwrap_err();
        assert_eq!(Problem::from(status).reason, reason);
    }
}

#[tokio::test]
async fn a_watch_ends_when_the_file_is_withdrawn() {
    let mut served = Served::new(MIB).await;
    let request = v1::WatchAvailabilityRequest {
        file_id: served.id.to_bytes(),
    };
    let mut stream = served
        .client
        .watch_availability(request)
        .await
        .unwrap()
        .into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert!(
        matches!(first.event, Some(Event::Snapshot(snapshot)) if snapshot.complete && snapshot.units == 8)
    );
    let path = served.dir.path().join("file");
    served
        .peer
        .library
        .unshare(potluck_peer::library::UnshareTarget::Path(path))
        .await
        .unwrap();
    let ended = in_time("the watch ends", stream.message()).await;
    let status = ended.unwrap_err();
    assert_eq!(Problem::from(status).reason, Reason::NotFound);
}

/// A file whose times changed is refused, hashed again, and keeps its id. A refused peer that
/// watches it learns that it is back or that the watch ended.
#[tokio::test]
async fn a_watch_continues_after_the_file_was_hashed_again() {
    let mut served = Served::new(MIB).await;
    let request = v1::WatchAvailabilityRequest {
        file_id: served.id.to_bytes(),
    };
    let watch = served.client.watch_availability(request).await;
    let mut stream = watch.unwrap().into_inner();
    let snapshot = |event: v1::WatchAvailabilityResponse| match event.event {
        Some(Event::Snapshot(snapshot)) => snapshot,
        other => panic!("{other:?}"),
    };
    let first = snapshot(stream.message().await.unwrap().unwrap());
    assert_eq!(first.file_id, served.id.to_bytes());
    let path = served.dir.path().join("file");
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    // Long enough ago that it is hashed again immediately.
    wait_until("nothing wrote to it for a while", async || {
        let changed = fs::metadata(&path).unwrap();
        let changed = Duration::new(
            std::os::unix::fs::MetadataExt::ctime(&changed) as u64,
            std::os::unix::fs::MetadataExt::ctime_nsec(&changed) as u32,
        );
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap() > changed + Duration::from_millis(1100)
    })
    .await;
    // The peer may have noticed the change itself meanwhile.
    let asked = download(&mut served.client, vec![span(served.id, 0, MIB as u64)]);
    if let Err(refused) = in_time("the answer comes", asked).await {
        let passing = [Reason::FileChanged, Reason::NotFound];
        assert!(passing.contains(&refused.reason), "{refused:?}");
    }
    let again = in_time("the watch reports a change", stream.message()).await;
    match again {
        Ok(event) => assert_eq!(snapshot(event.unwrap()), first),
        Err(status) => assert_eq!(Problem::from(status).reason, Reason::NotFound),
    }
}

/// After each change the old id is neither served nor announced, and the new content is shared.
async fn changed(change: impl FnOnce(&std::path::Path)) -> Served {
    let mut served = Served::new(2 * MIB).await;
    let all = vec![span(served.id, 0, 2 * MIB as u64)];
    // The file is now open.
    assert!(download(&mut served.client, all.clone()).await.is_ok());
    change(&served.dir.path().join("file"));
    // The peer may have noticed the change before this request.
    let refused = served.refused(all.clone()).await.reason;
    assert!(
        matches!(refused, Reason::FileChanged | Reason::NotFound),
        "{refused:?}"
    );
    wait_until("it is withdrawn", async || {
        served.peer.announced_names(&served.id).is_none()
    })
    .await;
    assert_eq!(served.refused(all).await.reason, Reason::NotFound);
    served
}

#[tokio::test]
async fn a_changed_file_is_withdrawn_and_shared_again() {
    let served = changed(|path| {
        let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all(b"other bytes, same size").unwrap();
    })
    .await;
    wait_until("it is shared as what it is now", async || {
        served.peer.announce_set.len() == 1
    })
    .await;
}

#[tokio::test]
async fn a_removed_file_is_withdrawn() {
    let served = changed(|path| fs::remove_file(path).unwrap()).await;
    wait_until("it is not held", async || served.peer.library.totals().files == 0).await;
    assert_eq!(
        served.peer.library.totals().items,
        1,
        "it is shared again when it is back"
    );
}

#[tokio::test]
async fn a_truncated_file_is_withdrawn() {
    changed(|path| {
        fs::OpenOptions::new()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(MIB as u64)
            .unwrap()
    })
    .await;
}

#[tokio::test]
async fn a_replaced_file_is_withdrawn() {
    changed(|path| {
        let other = path.with_extension("other");
        fs::write(&other, bytes(2 * MIB, 6)).unwrap();
        fs::rename(other, path).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_file_whose_permissions_are_lost_is_withdrawn() {
    changed(|path| fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap()).await;
}

#[tokio::test]
async fn a_change_during_a_download_ends_it() {
    let mut served = Served::new(64 * MIB).await;
    let request = v1::DownloadRequest {
        spans: vec![span(served.id, 0, 64 * MIB as u64)],
        ..Default::default()
    };
    let mut stream = served.client.download(request).await.unwrap().into_inner();
    let mut got = stream.message().await.unwrap().unwrap().data.to_vec();
    let path = served.dir.path().join("file");
    fs::write(&path, vec![0; 64 * MIB]).unwrap();
    let problem = loop {
        match stream.message().await {
            Ok(Some(message)) => got.extend_from_slice(&message.data),
            Ok(None) => panic!("all of a changed file was served"),
            Err(status) => break Problem::from(status),
        }
    };
    assert_eq!(problem.reason, Reason::FileChanged);
    assert!(got == served.content[..got.len()], "no changed byte was sent");
}

#[tokio::test]
async fn limits_the_slots_and_frees_them_when_the_caller_disconnects() {
    let mut served = Served::new(32 * MIB).await;
    served.peer.limits.set(0, 0, 1);
    let request = v1::DownloadRequest {
        spans: vec![span(served.id, 0, 32 * MIB as u64)],
        ..Default::default()
    };
    let mut stream = served.client.download(request).await.unwrap().into_inner();
    stream.message().await.unwrap();
    let problem = served.refused(vec![span(served.id, 0, 1)]).await;
    assert!(
        problem.reason == Reason::Busy && problem.retry_after.is_some(),
        "{problem:?}"
    );
    drop(stream);
    let limits = served.peer.limits.clone();
    wait_until("the slot is free", async || limits.active_uploads() == 0).await;
    assert!(
        download(&mut served.client, vec![span(served.id, 0, 1)])
            .await
            .is_ok()
    );
}

/// HTTP/2 accepts a whole chunk even if its receiver takes a byte at a time: the slot must stay
/// taken while the chunk is queued.
#[tokio::test]
async fn a_reader_of_one_byte_keeps_its_slot_until_it_disconnects() {
    const SLOTS: u32 = 8;
    let served = Served::new(MIB).await;
    served.peer.limits.set(0, 0, SLOTS);
    let narrow = tonic::transport::Endpoint::from_shared(format!("http://{}", served.address))
        .unwrap()
        .initial_stream_window_size(1);
    let narrow = narrow.connect().await.unwrap();
    let mut hostile = v1::peer_service_client::PeerServiceClient::new(narrow);
    let mut held = Vec::new();
    let mut busy = 0;
    for _ in 0..3 * SLOTS {
        // One batch: its last byte is queued together with its first.
        let request = v1::DownloadRequest {
            spans: vec![span(served.id, 0, 128 * 1024)],
            ..Default::default()
        };
        match hostile.download(request).await {
            Ok(stream) => held.push(stream),
            Err(status) => {
                assert_eq!(Problem::from(status).reason, Reason::Busy);
                busy += 1;
            }
        }
    }
    assert_eq!((held.len() as u32, busy), (SLOTS, 2 * SLOTS));
    assert_eq!(served.peer.limits.active_uploads(), SLOTS);
    drop((held, hostile));
    let limits = served.peer.limits.clone();
    wait_until("the slots are free", async || limits.active_uploads() == 0).await;
}

#[tokio::test]
async fn the_upload_limit_holds_and_can_be_lifted() {
    let mut served = Served::new(2 * MIB).await;
    served.peer.limits.set(1, 0, 0);
    let limits = served.peer.limits.clone();
    let all = vec![span(served.id, 0, 2 * MIB as u64)];
    let slow = tokio::time::timeout(
        Duration::from_millis(300),
        download(&mut served.client, all.clone()),
    )
    .await;
    assert!(slow.is_err(), "a byte a second");
    let mut client = served.client.clone();
    let waiting = tokio::spawn(async move { download(&mut client, all).await });
    tokio::task::yield_now().await;
    limits.set(0, 0, 0);
    let got = in_time("the download ends", waiting).await;
    let got = got.unwrap().unwrap();
    assert!(got[0] == served.content);
    drop(Arc::new(served));
}

#[tokio::test]
async fn a_limited_peer_sends_small_chunks() {
    let mut served = Served::new(2 * MIB).await;
    served.peer.limits.set(4 * 16 * 1024, 0, 0);
    let spans = vec![span(served.id, 0, MIB as u64)];
    let mut answer = served
        .client
        .download(v1::DownloadRequest {
            spans,
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner();
    for _ in 0..3 {
        let message = answer.message().await.unwrap().unwrap();
        assert!(
            message.data.len() <= 16 * 1024,
            "{} bytes at once",
            message.data.len()
        );
    }
}
