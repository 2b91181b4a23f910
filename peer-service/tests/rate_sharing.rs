//! Several transfers of one peer: how they share its rate limit, and their own limits.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::*;
use potluck_core::{
    FileId, Problem, Reason,
    proto::v1::{self, TransferState},
};
use potluck_peer::{Config, LimitSettings};

const LEN: usize = 8_000_000;

/// A seed with two files, and a peer with a limit on its download rate.
struct World {
    dir: tempfile::TempDir,
    seed: Peer,
    ids: [FileId; 2],
    peer: Peer,
}

async fn world(download_bytes_per_second: u64) -> World {
    log();
    let dir = tempfile::tempdir().unwrap();
    let seed = Peer::start(&dir.path().join("seed"), None).await;
    let mut ids = Vec::new();
    for n in 0..2 {
        let path = file(dir.path(), &format!("src/{n}.bin"), &bytes(LEN, n));
        ids.push(seed.share(&path).await);
    }
    let peer = Peer::with(Config {
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
    async fn begin(&self, n: usize, terms: v1::StartTransferRequest) -> u64 {
        let target = self.dir.path().join(format!("out{n}"));
        let request = v1::StartTransferRequest {
            providers: vec![(&self.seed.address).into()],
            detach: true,
            max_bytes_per_second: terms.max_bytes_per_second,
            priority: terms.priority,
            ..wish(self.ids[n], &target)
        };
        let mut events = self
            .peer
            .control
            .clone()
            .start_transfer(request)
            .await
            .unwrap()
            .into_inner();
        events
            .message()
            .await
            .unwrap()
            .unwrap()
            .transfer
            .unwrap()
            .transfer_id
    }

    async fn transfer(&self, number: u64) -> v1::Transfer {
        let request = v1::ListTransfersRequest::default();
        let listed = self.peer.control.clone().list_transfers(request).await.unwrap();
        let mut all = listed.into_inner().transfers.into_iter();
        all.find(|transfer| transfer.transfer_id == number).unwrap()
    }

    async fn wait_for(&self, number: u64, state: TransferState) {
        wait_until(&format!("transfer {number} is {state:?}"), async || {
            self.transfer(number).await.state() == state
        })
        .await;
    }

    async fn limit_download(&self, bytes_per_second: u64) {
        let limits = v1::Limits {
            download_bytes_per_second: Some(bytes_per_second),
            ..Default::default()
        };
        let request = v1::SetLimitsRequest { limits: Some(limits) };
        self.peer.control.clone().set_limits(request).await.unwrap();
    }

    async fn adjust(&self, request: v1::AdjustTransferRequest) -> Result<v1::Transfer, Problem> {
        let answer = self.peer.control.clone().adjust_transfer(request).await?;
        Ok(answer.into_inner().transfer.unwrap())
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
async fn part_of_the_second(world: &World, first: u64, second: u64) -> f64 {
    for number in [first, second] {
        world.wait_for(number, TransferState::Running).await;
    }
    world.limit_download(5_000_000).await;
    world.wait_for(first, TransferState::Done).await;
    // The report may be one interval old and does not include data in flight.
    let part = world.transfer(second).await.bytes_done as f64 / LEN as f64;
    println!("{part:.3} of the second when the first is done");
    part
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_share_the_limit_as_their_priorities() {
    let world = world(1_000).await;
    let low = world.begin(1, priority(10)).await;
    let high = world.begin(0, priority(30)).await;
    let part = part_of_the_second(&world, high, low).await;
    assert!((0.2..0.5).contains(&part), "{part} is no third");
    // Alone, it gets the whole limit.
    world.wait_for(low, TransferState::Done).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_priority_holds_at_once() {
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
    assert_eq!(world.adjust(request).await.unwrap().priority, 5);
    let part = part_of_the_second(&world, one, two).await;
    assert!((0.3..0.8).contains(&part), "{part} is no half");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_held_back_by_its_own_limit_leaves_the_rest_to_others() {
    let world = world(4_000_000).await;
    let terms = v1::StartTransferRequest {
        max_bytes_per_second: Some(100_000),
        ..priority(100)
    };
    let held = world.begin(0, terms).await;
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
    let adjusted = world.adjust(request).await.unwrap();
    assert_eq!((adjusted.max_bytes_per_second, adjusted.priority), (0, 100));
    world.wait_for(held, TransferState::Done).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_priorities_and_transfers_that_exist_are_adjusted() {
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
        assert_eq!(world.adjust(request).await.unwrap_err().reason, reason);
    }
}
