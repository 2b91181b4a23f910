//! A hub whose storage misbehaves. In each case the client gets the right bytes or a broken answer.

use potluck_peer::download::status::DownloadState;
use potluck_stand_in::fault::{Fault, FaultQuery};
use potluck_testkit::wait::wait_until;
use reqwest::{Response, StatusCode};

use crate::world::{WEIGHTS, World, text};

/// Requests of one client, and of many.
const MANY: usize = 2_000;

fn fault(fault: Fault, at: &str) -> FaultQuery {
    FaultQuery {
        fault,
        at: at.to_owned(),
        rate: 0,
    }
}

/// The bytes of an answer, as far as they came, and whether it is complete.
async fn read(mut response: Response) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) => return (bytes, true),
            Err(_) => return (bytes, false),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_that_ignores_ranges() {
    let world = World::new(false).await;
    world.hub.shared.faults.set(|_| fault(Fault::NoRanges, ""));
    let part = world.get(WEIGHTS, &[("range", "bytes=2000000-2999999")]).await;
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert!(part.bytes().await.unwrap() == world.weights[2_000_000..]);
}

/// Each fault first in every answer, so that nothing can be had, and then no more.
#[tokio::test(flavor = "multi_thread")]
async fn wrong_answers_of_the_storage() {
    for (wrong, at) in [
        (Fault::TooMuch, ""),
        (Fault::TooLittle, ""),
        (Fault::Gzip, ""),
        (Fault::OtherRange, ""),
        (Fault::OtherSize, ""),
        (Fault::Redirect, "file:///etc/passwd"),
        (Fault::Redirect, "ftp://localhost/x"),
        (Fault::Redirect, ""),
        (Fault::Denied, ""),
        (Fault::Damaged, "1000"),
    ] {
        let world = World::new(false).await;
        world.hub.shared.faults.set(move |_| fault(wrong, at));
        let broken = async {
            let (bytes, is_complete) = read(world.get(WEIGHTS, &[]).await).await;
            assert!(!is_complete || bytes != world.weights, "{wrong:?} {at}");
            assert!(
                wrong == Fault::Damaged || bytes.len() < 1000 || world.weights.starts_with(&bytes),
                "{wrong:?} {at}: wrong bytes were sent"
            );
        };
        // An answer that lacks bytes is asked for again for a while.
        let _ = tokio::time::timeout(std::time::Duration::from_secs(3), broken).await;
        world.hub.shared.faults.clear();
        let mut whole = Vec::new();
        for _ in 0..20 {
            let (bytes, is_complete) = read(world.get(WEIGHTS, &[]).await).await;
            whole = bytes;
            if is_complete && whole == world.weights {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        assert!(whole == world.weights, "{wrong:?} {at}");
    }
}

/// 429 with `Retry-After`, 503, and an address of the storage that has expired.
#[tokio::test(flavor = "multi_thread")]
async fn faults_that_pass() {
    for (first, at) in [(Fault::Busy, "1"), (Fault::Broken, ""), (Fault::Denied, "")] {
        let world = World::new(false).await;
        let mut requests = 0;
        world.hub.shared.faults.set(move |_| {
            requests += 1;
            // The second one has the address of the first.
            match requests {
                2 => fault(first, at),
                _ => fault(Fault::None, ""),
            }
        });
        for range in ["bytes=0-999999", "bytes=1000000-"] {
            let part = world.get(WEIGHTS, &[("range", range)]).await;
            assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT, "{first:?}");
            let (bytes, is_complete) = read(part).await;
            assert!(is_complete, "{first:?}");
            let wanted = match range {
                "bytes=1000000-" => &world.weights[1_000_000..],
                _ => &world.weights[..1_000_000],
            };
            assert!(bytes == wanted, "{first:?}");
        }
    }
}

/// Nobody is there when the SHA-256 turns out wrong. A range would continue after wrong bytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_left_too_early_begins_again() {
    let world = World::new(false).await;
    world.hub.shared.faults.set(|_| FaultQuery {
        rate: 2_000_000,
        ..fault(Fault::Damaged, "10")
    });
    let mut left = world.get(WEIGHTS, &[]).await;
    let got = left.chunk().await.unwrap().unwrap();
    assert!(got[10] != world.weights[10], "the first bytes were sent early");
    drop(left);
    let has_failed = async || {
        let (listed, _) = world.peer.running.downloads.list(10, "").unwrap();
        listed.iter().any(|status| status.state == DownloadState::Failed)
    };
    wait_until("the download failed", has_failed).await;
    world.hub.shared.faults.clear();
    let range = format!("bytes={}-", got.len());
    let whole = world.get(WEIGHTS, &[("range", &range)]).await;
    assert_eq!(whole.status(), StatusCode::OK);
    assert!(whole.bytes().await.unwrap() == world.weights);
    let part = world.get(WEIGHTS, &[("range", &range)]).await;
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_ranges_at_once() {
    let world = World::new(false).await;
    let client = crate::world::client(rustls::RootCertStore::empty());
    let url = format!("{}{WEIGHTS}", world.url);
    let asks = (0..MANY).map(|n| {
        let start = n * 1_000;
        let request = client
            .get(&url)
            .header("range", format!("bytes={start}-{}", start + 99));
        let wanted = &world.weights[start..start + 100];
        async move {
            let response = request.send().await.unwrap();
            match response.status() {
                StatusCode::PARTIAL_CONTENT => {
                    assert!(response.bytes().await.unwrap() == wanted);
                    true
                }
                status => {
                    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
                    assert_eq!(text(&response, "retry-after"), "1");
                    false
                }
            }
        }
    });
    let answered = futures_util::future::join_all(asks).await;
    let good = answered.iter().filter(|good| **good).count();
    assert!(good >= MANY / 4, "{good} of {MANY}");
    assert_eq!(world.sent(), 3_000_000);
}
