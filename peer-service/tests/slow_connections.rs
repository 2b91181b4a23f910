//! Downloads over a slow, honest link: they take long and complete.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{sync::Arc, time::Duration};

use common::*;
use potluck_core::{
    FileId,
    grpc::transport::Endpoint,
    model::Address,
    proto::v1::{self, peer_service_client::PeerServiceClient},
};
use potluck_peer::{Config, LimitSettings};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Mutex,
    time::Instant,
};
use tonic::transport::Channel;

/// Approximate number of bytes queued in front of the link, as in a router.
const QUEUE: u32 = 32 * 1024;

/// Bytes that the link carries in one step.
const STEP: usize = 1024;

/// A link in front of a peer that limits all its answers to this rate in total. Returns the address
/// of its near end.
async fn link(to: &Address, bytes_per_second: u64) -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = listener.local_addr().unwrap().into();
    let to = format!("{}:{}", to.host, to.port).parse().unwrap();
    let free_at = Arc::new(Mutex::new(Instant::now()));
    let takes = Duration::from_secs(1) * STEP as u32 / bytes_per_second as u32;
    tokio::spawn(async move {
        while let Ok((inside, _)) = listener.accept().await {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(QUEUE).unwrap();
            let outside = socket.connect(to).await.unwrap();
            inside.set_nodelay(true).unwrap();
            outside.set_nodelay(true).unwrap();
            let free_at = Arc::clone(&free_at);
            tokio::spawn(carry(inside, outside, free_at, takes));
        }
    });
    near
}

async fn carry(inside: TcpStream, outside: TcpStream, free_at: Arc<Mutex<Instant>>, takes: Duration) {
    let (mut asks, mut hears) = inside.into_split();
    let (mut answers, mut takes_in) = outside.into_split();
    let asking = async { tokio::io::copy(&mut asks, &mut takes_in).await };
    let answering = async {
        let mut bytes = [0; STEP];
        loop {
            let len = answers.read(&mut bytes).await?;
            if len == 0 {
                return hears.shutdown().await;
            }
            let mut free_at = free_at.lock().await;
            let at = Instant::now().max(*free_at) + takes * len as u32 / STEP as u32;
            *free_at = at;
            tokio::time::sleep_until(at).await;
            drop(free_at);
            hears.write_all(&bytes[..len]).await?;
        }
    };
    // Both ends are closed as soon as one is.
    tokio::select! {
        _ = asking => {}
        _ = answering => {}
    }
}

/// A seed, the near end of the link to it, and the file that it shares.
struct World {
    dir: tempfile::TempDir,
    data: Vec<u8>,
    id: FileId,
    seed: Peer,
    near: Address,
}

async fn world(len: usize, bytes_per_second: u64, limits: LimitSettings) -> World {
    log();
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(len, 3);
    let path = file(dir.path(), "src/data.bin", &data);
    let config = Config {
        limits,
        ..Config::new(dir.path().join("seed"))
    };
    let seed = Peer::with(config).await;
    let id = seed.share(&path).await;
    let near = link(&seed.address, bytes_per_second).await;
    World {
        dir,
        data,
        id,
        seed,
        near,
    }
}

impl World {
    async fn client(&self, at: &Address) -> PeerServiceClient<Channel> {
        let at: Endpoint = format!("{}:{}", at.host, at.port).parse().unwrap();
        PeerServiceClient::new(at.connect().await.unwrap())
    }

    /// Requests this many bytes of the file.
    fn request(&self, len: usize) -> v1::DownloadRequest {
        let span = v1::Span {
            file_id: self.id.to_bytes(),
            offset: 0,
            length: len as u64,
        };
        v1::DownloadRequest { spans: vec![span] }
    }

    async fn comes(&self) {
        let peer = Peer::start(&self.dir.path().join("peer"), None).await;
        let target = self.dir.path().join("out.bin");
        let request = v1::StartTransferRequest {
            providers: vec![(&self.near).into()],
            ..wish(self.id, &target)
        };
        assert_done(&peer.fetch(request).await);
        assert_eq!(std::fs::read(&target).unwrap(), self.data);
        peer.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_at_16_kib_a_second() {
    let world = world(384 * 1024, 16 * 1024, LimitSettings::default()).await;
    world.comes().await;
    world.seed.stop().await;
}

/// A slow reader holds the only slot while another peer keeps asking for one.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_is_not_cut_where_others_find_no_slot() {
    const LEN: usize = 512 * 1024;
    let slots = LimitSettings {
        upload_slots: 1,
        ..LimitSettings::default()
    };
    let world = world(LEN, 30 * 1024, slots).await;
    let mut slow = world.client(&world.near).await;
    let mut answer = slow.download(world.request(LEN)).await.unwrap().into_inner();
    let reads = async {
        let mut read = Vec::new();
        while let Some(chunk) = answer.message().await.unwrap() {
            read.extend_from_slice(&chunk.data);
        }
        read
    };
    let mut other = world.client(&world.seed.address).await;
    let mut refused = 0;
    let asks = async {
        loop {
            refused += usize::from(other.download(world.request(1)).await.is_err());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        read = reads => assert!(read == world.data, "other bytes"),
        () = asks => {}
    }
    assert!(refused > 50, "it was not in the way of others: {refused}");
    world.seed.stop().await;
}

/// Fetches from these seeds with a rate limit; returns the first transfer state that fits. No peer
/// may be reported as at fault meanwhile.
async fn limited(
    seeds: &[Peer],
    id: FileId,
    dir: &std::path::Path,
    rate: u64,
    mut fits: impl AsyncFnMut(&v1::Transfer) -> bool,
) -> v1::Transfer {
    let peer = Peer::start(&dir.join("peer"), None).await;
    let request = v1::StartTransferRequest {
        providers: seeds.iter().map(|seed| (&seed.address).into()).collect(),
        max_bytes_per_second: Some(rate),
        ..wish(id, &dir.join("out.bin"))
    };
    let mut events = peer
        .control
        .clone()
        .start_transfer(request)
        .await
        .unwrap()
        .into_inner();
    let mut last = None;
    while let Some(event) = events.message().await.unwrap() {
        let transfer = event.transfer.unwrap();
        let blamed = transfer.peers.iter().find(|peer| !peer.reason.is_empty());
        assert!(blamed.is_none(), "{blamed:?}");
        if fits(&transfer).await {
            last = Some(transfer);
            break;
        }
    }
    drop(events);
    peer.stop().await;
    last.expect("it comes so far")
}

async fn uploaded(seeds: &[Peer]) -> u64 {
    let mut bytes = 0;
    for seed in seeds {
        let status = seed.control.clone().get_status(v1::GetStatusRequest {}).await;
        bytes += status.unwrap().into_inner().uploaded_bytes;
    }
    bytes
}

async fn stop(seeds: impl IntoIterator<Item = Peer>) {
    for seed in seeds {
        seed.stop().await;
    }
}

fn is_done(transfer: &v1::Transfer) -> bool {
    transfer.state() == v1::TransferState::Done
}

/// Data that waits for the local rate limit has arrived: its sender is not stalled and is not asked
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_under_a_limit_of_1_kib_a_second_and_nobody_is_blamed() {
    log();
    const LEN: usize = 20 * 1024;
    let dir = tempfile::tempdir().unwrap();
    let seeds = [Peer::start(&dir.path().join("seed"), None).await];
    let id = seeds[0]
        .share(&file(dir.path(), "data.bin", &bytes(LEN, 4)))
        .await;
    let start = Instant::now();
    let fetched = limited(&seeds, id, dir.path(), 1024, async |transfer| is_done(transfer));
    tokio::time::timeout(PATIENCE, fetched).await.expect("it ends");
    let took = start.elapsed().as_secs();
    assert!((18..30).contains(&took), "{took} s");
    assert_eq!(std::fs::read(dir.path().join("out.bin")).unwrap(), bytes(LEN, 4));
    assert_eq!(uploaded(&seeds).await, LEN as u64, "nothing comes twice");
    stop(seeds).await;
}

/// Several peers send as fast as they may. The limit goes to the unit that was requested first and
/// is not divided over all units in flight; its progress is visible before it is complete. At the
/// end, when a peer has nothing left to send, no request is hedged.
#[tokio::test(flavor = "multi_thread")]
async fn under_a_limit_units_come_one_after_the_other_and_nothing_twice() {
    log();
    const UNIT: u64 = 128 * 1024;
    const LEN: u64 = 4 * UNIT;
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(LEN as usize, 5);
    let path = file(dir.path(), "data.bin", &data);
    let mut seeds = Vec::new();
    for name in ["one", "two", "three"] {
        seeds.push(Peer::start(&dir.path().join(name), None).await);
    }
    let mut id = None;
    for seed in &seeds {
        id = Some(seed.share(&path).await);
    }
    let (mut unverified, mut rate, mut sent) = (0, 0, None);
    let watched = limited(&seeds, id.unwrap(), dir.path(), 32 * 1024, async |transfer| {
        assert!(
            transfer.bytes_done + transfer.unverified_bytes <= LEN,
            "{transfer:?}"
        );
        if transfer.units_done == 0 {
            unverified = unverified.max(transfer.unverified_bytes);
            rate = rate.max(transfer.bytes_per_second);
        } else if sent.is_none() {
            sent = Some(uploaded(&seeds).await);
        }
        is_done(transfer)
    });
    let done = tokio::time::timeout(PATIENCE, watched).await.expect("it ends");
    assert_eq!(done.unverified_bytes, 0);
    assert!(unverified > UNIT / 2, "{unverified} bytes seen of the first unit");
    assert!(rate > 0, "none seen before the first unit");
    let sent = sent.unwrap();
    assert!(sent < 2 * UNIT, "{sent} bytes sent for one unit");
    assert!(std::fs::read(dir.path().join("out.bin")).unwrap() == data);
    assert_eq!(uploaded(&seeds).await, LEN, "nothing comes twice");
    stop(seeds).await;
}

/// A unit that takes longer than a message may stay unread.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes three minutes, and 9 GiB of room"]
async fn a_large_unit_comes_under_a_low_limit() {
    log();
    const UNIT: u64 = 4 << 20;
    let dir = tempfile::tempdir().unwrap();
    let seeds = [Peer::start(&dir.path().join("seed"), None).await];
    let path = dir.path().join("data.bin");
    let large = std::fs::File::create(&path).unwrap();
    large.set_len(9 << 30).unwrap();
    let id = seeds[0].share(&path).await;
    let within = Duration::from_secs(250);
    let fetched = limited(&seeds, id, dir.path(), 24 * 1024, async |transfer| {
        transfer.units_done > 0
    });
    let transfer = tokio::time::timeout(within, fetched).await.expect("a unit comes");
    println!("{} bytes in {} ms", transfer.bytes_done, transfer.elapsed_ms);
    assert_eq!(transfer.bytes_done, UNIT);
    let sent = uploaded(&seeds).await;
    assert!(sent < UNIT + 128 * 1024, "{sent} bytes sent for one unit");
    stop(seeds).await;
}
