//! Several transfers of one peer: how they share its rate limit, and their own limits.

use potluck_core::{
    FileId, Reason,
    proto::v1::{self, TransferState},
};
use potluck_peer::{Config, LimitSettings};
use potluck_testkit::{
    content::{bytes, write_file},
    services::TestPeer,
    transfer::{next_state, transfer_request_from},
    wait::wait_until,
};

const LEN: usize = 8_000_000;

/// A seed with two files, and a peer with a limit on its download rate.
struct World {
    dir: tempfile::TempDir,
    seed: TestPeer,
    ids: [FileId; 2],
    peer: TestPeer,
}

async fn world(download_bytes_per_second: u64) -> World {
    potluck_testkit::log();
    let dir = tempfile::tempdir().unwrap();
    let seed = TestPeer::start(&dir.path().join("seed"), None).await;
    let mut ids = Vec::new();
    for n in 0..2 {
        let path = write_file(dir.path(), &format!("src/{n}.bin"), &bytes(LEN, n));
        ids.push(seed.share(&path).await);
    }
    let peer = TestPeer::with_config(Config {
        limits: LimitSettings {
            download_bytes_per_second,
            ..LimitSettings::default()
        },
        ..Config::new(dir.path().join("peer"))
    })
    .await;
    let ids = ids.try_into().unwrap();
    World { dir, seed, ids, peer }
}

impl World {
    /// Starts to fetch one of the files; returns the transfer's number.
    async fn begin(&self, n: usize, settings: v1::StartTransferRequest) -> u64 {
        let target = self.dir.path().join(format!("out{n}"));
        let request = v1::StartTransferRequest {
            detach: true,
            max_bytes_per_second: settings.max_bytes_per_second,
            priority: settings.priority,
            ..transfer_request_from(self.ids[n], &target, [&self.seed.address])
        };
        let mut events = self.peer.control.start_transfer(request).await;
        next_state(&mut events).await.transfer_id
    }

    async fn transfer(&self, number: u64) -> v1::Transfer {
        self.peer.control.transfer(number).await.unwrap()
    }

    async fn wait_for(&self, number: u64, state: TransferState) {
        wait_until(&format!("transfer {number} is {state:?}"), async || {
            self.transfer(number).await.state() == state
        })
        .await;
    }
}

fn priority(priority: u32) -> v1::StartTransferRequest {
    v1::StartTransferRequest {
        priority: Some(priority),
        ..Default::default()
    }
}

/// The fraction of the second transfer that is done when the first one ends. Both start before any
/// data can arrive.
async fn fraction_of_second(world: &World, first: u64, second: u64) -> f64 {
    for number in [first, second] {
        world.wait_for(number, TransferState::Running).await;
    }
    world.peer.control.limit_download(5_000_000).await;
    world.wait_for(first, TransferState::Done).await;
    // The report may be one interval old and does not include data in flight.
    let fraction = world.transfer(second).await.bytes_done as f64 / LEN as f64;
    println!("{fraction:.3} of the second when the first is done");
    fraction
}

#[tokio::test(flavor = "multi_thread")]
async fn divides_the_limit_by_priority() {
    let world = world(1_000).await;
    let low = world.begin(1, priority(10)).await;
    let high = world.begin(0, priority(30)).await;
    let fraction = fraction_of_second(&world, high, low).await;
    assert!((0.2..0.5).contains(&fraction), "{fraction} is not about a third");
    // Alone, it gets the whole limit.
    world.wait_for(low, TransferState::Done).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_priority_takes_effect_at_once() {
    let world = world(1_000).await;
    let one = world.begin(0, v1::StartTransferRequest::default()).await;
    let two = world.begin(1, priority(100)).await;
    assert_eq!(world.transfer(one).await.priority, 10);
    world.wait_for(two, TransferState::Running).await;
    let request = v1::AdjustTransferRequest {
        transfer_id: two,
        priority: Some(5),
        ..Default::default()
    };
    assert_eq!(world.peer.control.adjust(request).await.unwrap().priority, 5);
    let fraction = fraction_of_second(&world, one, two).await;
    assert!((0.3..0.8).contains(&fraction), "{fraction} is not about half");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_with_a_limit_of_its_own_leaves_the_rest_to_others() {
    let world = world(4_000_000).await;
    let settings = v1::StartTransferRequest {
        max_bytes_per_second: Some(100_000),
        ..priority(100)
    };
    let held = world.begin(0, settings).await;
    world.wait_for(held, TransferState::Running).await;
    let free = world.begin(1, priority(1)).await;
    world.wait_for(free, TransferState::Done).await;
    let before = world.transfer(held).await;
    assert!(before.bytes_done < LEN as u64 / 4, "{before:#?}");
    // With its own limit, the rest would exceed the test's deadline.
    let request = v1::AdjustTransferRequest {
        transfer_id: held,
        max_bytes_per_second: Some(0),
        ..Default::default()
    };
    let adjusted = world.peer.control.adjust(request).await.unwrap();
    assert_eq!((adjusted.max_bytes_per_second, adjusted.priority), (0, 100));
    world.wait_for(held, TransferState::Done).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_invalid_priorities_and_unknown_transfers() {
    let world = world(0).await;
    let number = world.begin(0, v1::StartTransferRequest::default()).await;
    for (transfer_id, priority, reason) in [
        (number, 0, Reason::InvalidArgument),
        (number, 101, Reason::InvalidArgument),
        (number + 1, 7, Reason::NotFound),
    ] {
        let request = v1::AdjustTransferRequest {
            transfer_id,
            priority: Some(priority),
            ..Default::default()
        };
        assert_eq!(
            world.peer.control.adjust(request).await.unwrap_err().reason,
            reason
        );
    }
}
