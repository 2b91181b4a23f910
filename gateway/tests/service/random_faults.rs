//! Clients of two gateways while the storage misbehaves at random: no client that reads to the end has
//! a wrong byte, and once the storage behaves, all come to the end.
//!
//! `POTLUCK_FAULT_RUNS` and `POTLUCK_FAULT_SEED` set the number of runs and the first seed.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use parking_lot::Mutex;
use potluck_stand_in::{
    content::sha256_hex,
    fault::{Fault, FaultQuery},
    hub::Repository,
};
use potluck_testkit::content::bytes;
use reqwest::{Client, StatusCode};

use crate::world::{World, client};

/// Runs unless set otherwise.
const RUNS: u64 = 8;

/// Runs at a time.
const AT_ONCE: usize = 4;

/// Attempts of a client after which the storage behaves.
const BAD_ATTEMPTS: usize = 6;

/// Attempts after which a client gives up.
const ATTEMPTS: usize = 60;

/// Numbers from a seed (SplitMix64).
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// The faults of one file, by its SHA-256.
struct Plan {
    random: Random,
    size: u64,
    /// The percentage of answers that are wrong.
    percent: u64,
    /// Whether bytes are wrong, and not only answers.
    damages: bool,
}

impl Plan {
    fn choose(&mut self) -> FaultQuery {
        if self.random.below(100) >= self.percent {
            return FaultQuery::default();
        }
        let faults = [
            Fault::NoRanges,
            Fault::OtherRange,
            Fault::TooMuch,
            Fault::TooLittle,
            Fault::Gzip,
            Fault::OtherSize,
            Fault::Redirect,
            Fault::Broken,
            Fault::Busy,
            Fault::Denied,
            Fault::Damaged,
            Fault::Damaged,
            Fault::Damaged,
            Fault::Damaged,
        ];
        let count = if self.damages { faults.len() } else { 10 };
        let fault = faults[self.random.below(count as u64) as usize];
        let at = match fault {
            Fault::Damaged => self.random.below(self.size).to_string(),
            Fault::Redirect => "file:///etc/passwd".to_owned(),
            _ => "1".to_owned(),
        };
        FaultQuery { fault, at, rate: 0 }
    }
}

/// How a client of a file ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Right,
    Wrong,
    GaveUp,
}

/// Downloads as `huggingface_hub` does: resumes by range, begins again on 200, and compares only the
/// size.
async fn download(client: &Client, url: &str, wanted: &[u8], behave: impl Fn()) -> End {
    let mut got: Vec<u8> = Vec::new();
    for attempt in 0..ATTEMPTS {
        if attempt == BAD_ATTEMPTS {
            behave();
        }
        if attempt > BAD_ATTEMPTS {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let mut request = client.get(url);
        if !got.is_empty() {
            request = request.header("range", format!("bytes={}-", got.len()));
        }
        let Ok(mut response) = request.send().await else {
            continue;
        };
        match response.status() {
            StatusCode::OK => got.clear(),
            StatusCode::PARTIAL_CONTENT => {}
            _ => continue,
        }
        while let Ok(Some(chunk)) = response.chunk().await {
            got.extend_from_slice(&chunk);
        }
        if got.len() == wanted.len() {
            return if got == wanted { End::Right } else { End::Wrong };
        }
    }
    End::GaveUp
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_client_accepts_a_wrong_byte() {
    let first = World::new(false).await;
    let second = first.beside().await;
    let plans: Arc<Mutex<HashMap<String, Plan>>> = Arc::default();
    let chosen = Arc::clone(&plans);
    first.hub.shared.faults.set(move |path| {
        let mut plans = chosen.lock();
        plans.get_mut(path).map_or_else(FaultQuery::default, Plan::choose)
    });
    let client = client(rustls::RootCertStore::empty());
    let seed = number("POTLUCK_FAULT_SEED", 1);
    let seeds = seed..seed + number("POTLUCK_FAULT_RUNS", RUNS);
    let runs = stream::iter(seeds.clone()).map(|seed| {
        let (first, second, client, plans) = (&first, &second, &client, &plans);
        async move {
            let mut random = Random(seed);
            let size = 70_000 + random.below(900_000);
            let content = bytes(size as usize, seed.wrapping_add(1_000));
            let sum = sha256_hex(&content);
            let name = format!("org/run-{seed}");
            let files = BTreeMap::from([("model.bin".to_owned(), content.clone().into())]);
            let repository = Repository {
                commit: "e".repeat(40),
                is_gated: false,
                files,
            };
            first.hub.shared.hub.put("models", &name, repository);
            let plan = Plan {
                percent: 10 + random.below(60),
                damages: random.below(2) == 0,
                size,
                random,
            };
            plans.lock().insert(sum.clone(), plan);
            let behave = || _ = plans.lock().remove(&sum);
            let path = format!("/{name}/resolve/main/model.bin");
            let (one, two) = (format!("{}{path}", first.url), format!("{}{path}", second.url));
            let ends = futures_util::future::join(
                download(client, &one, &content, behave),
                download(client, &two, &content, behave),
            )
            .await;
            for end in [ends.0, ends.1] {
                assert_eq!(end, End::Right, "seed {seed}");
            }
        }
    });
    let mut runs = runs.buffer_unordered(AT_ONCE);
    let mut done = 0;
    while runs.next().await.is_some() {
        done += 1;
        if done % 50 == 0 {
            println!("{done} runs");
        }
    }
    println!(
        "{done} runs from seed {}, two clients each: all right",
        seeds.start
    );
}
