//! Measures how long queries and changes wait while the index handles a large peer or many peers.
//!
//! Usage: `cargo run --release -p potluck-index --example stalls [FILES] [PEERS]`. The defaults are
//! 1,000,000 files of one peer and 10,000 peers that expire together. `POTLUCK_INDEX` selects a
//! running index. Prints the 50th and 99th percentile and the maximum of each, in milliseconds.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark for developers"
)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use potluck_core::{
    FileId, Root, Token,
    index_client::{IndexClient, MAX_BATCH},
    model::{Address, FileKind, FileRecord, QueryKey, Registration},
};
use potluck_index::{Config, Limits, StoreConfig, serve};
use tokio_util::sync::CancellationToken;

/// Concurrent Register calls of peers that will expire.
const AT_ONCE: usize = 256;

/// Pause between two calls of one caller.
const PAUSE: Duration = Duration::from_millis(2);

fn registration(n: u64) -> Registration {
    let mut root = [5; 32];
    root[..8].copy_from_slice(&n.to_le_bytes());
    let root = Root(root);
    Registration {
        file: FileRecord {
            id: FileId::derive(n + 1, &root),
            size: n + 1,
            root,
            sha256: None,
            kind: FileKind::File,
        },
        names: vec![format!("folder-{} file-{n}.bin", n / 1000)],
        is_complete: true,
    }
}

fn here(port: u16) -> Address {
    Address {
        host: String::new(),
        port,
    }
}

/// Durations of calls.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn print(mut self, title: &str) {
        self.0.sort_unstable();
        let at = |fraction: f64| {
            let index =
                ((self.0.len() as f64 * fraction) as usize).min(self.0.len().saturating_sub(1));
            self.0.get(index).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
        };
        println!(
            "  {title:<9} {:>7} calls   p50 {:>8.1} ms   p99 {:>8.1} ms   longest {:>8.1} ms",
            self.0.len(),
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
}

/// Repeats `call` until `stop`, and returns the duration of each.
async fn measure<F: Future<Output = ()>>(
    stop: Arc<AtomicBool>,
    mut call: impl FnMut(u64) -> F,
) -> Times {
    let mut times = Times::default();
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let started = Instant::now();
        call(n).await;
        times.0.push(started.elapsed());
        tokio::time::sleep(PAUSE).await;
    }
    times
}

/// Measures queries and Register calls of others while `work` runs.
async fn measure_during(title: &str, client: &IndexClient, work: impl Future<Output = ()>) {
    let stop = Arc::new(AtomicBool::new(false));
    let queries = tokio::spawn({
        let (client, stop) = (client.clone(), Arc::clone(&stop));
        async move {
            measure(stop, |n| {
                let client = client.clone();
                async move {
                    let id = registration(n * 7919 % 100_000).file.id;
                    client.query(&QueryKey::Id(id), 0, None).await.unwrap();
                }
            })
            .await
        }
    });
    let registers = tokio::spawn({
        let (client, stop) = (client.clone(), Arc::clone(&stop));
        let token = Token::generate();
        async move {
            measure(stop, |n| {
                let (client, token) = (client.clone(), token.clone());
                async move {
                    let files = [registration((1 << 40) + n)];
                    client
                        .register(&token, &here(9), &files, None, false)
                        .await
                        .unwrap();
                }
            })
            .await
        }
    });
    let started = Instant::now();
    work.await;
    println!("{title}: {:.1} s", started.elapsed().as_secs_f64());
    stop.store(true, Ordering::Relaxed);
    queries.await.unwrap().print("Query");
    registers.await.unwrap().print("Register");
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>().unwrap());
    let files = arguments.next().unwrap_or(1_000_000);
    let peers = arguments.next().unwrap_or(10_000);
    let dir = std::env::temp_dir().join(format!("potluck-stalls-{}", std::process::id()));
    let stop = CancellationToken::new();
    let mut server = None;
    let endpoint = match std::env::var("POTLUCK_INDEX") {
        Ok(text) => text,
        Err(_) => {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let config = Config {
                store: StoreConfig::Sled(dir.clone()),
                limits: Limits {
                    max_files_per_peer: files,
                    max_peers_per_address: peers + 10,
                    max_calls_per_second: 0,
                    max_memory_mib: 64 * 1024,
                    ..Limits::default()
                },
                ..Config::default()
            };
            server = Some(tokio::spawn(serve(listener, config, stop.clone())));
            address.to_string()
        }
    };
    let client = IndexClient::new(
        endpoint
            .parse::<potluck_core::grpc::transport::Endpoint>()
            .unwrap(),
    );
    // The busy client uses a separate connection.
    let large = IndexClient::new(client.endpoint().clone());

    measure_during(
        "no other load",
        &client,
        tokio::time::sleep(Duration::from_secs(3)),
    )
    .await;

    let token = Token::generate();
    let all = measure_during("a peer registers its files", &client, async {
        let mut at = 0;
        while at < files {
            let some: Vec<_> = (at..files.min(at + MAX_BATCH as u64)).map(registration).collect();
            at += some.len() as u64;
            large
                .register(&token, &here(1), &some, None, false)
                .await
                .unwrap();
        }
    });
    all.await;

    measure_during("the peer replaces them by one file", &client, async {
        let one = [registration(0)];
        large.register(&token, &here(1), &one, None, true).await.unwrap();
        wait_until_half_removed(&large, files).await;
    })
    .await;

    let mut at = 0;
    while at < files {
        let some: Vec<_> = (at..files.min(at + MAX_BATCH as u64)).map(registration).collect();
        at += some.len() as u64;
        large
            .register(&token, &here(1), &some, None, false)
            .await
            .unwrap();
    }
    measure_during("the peer unregisters", &client, async {
        large.unregister(&token, None).await.unwrap();
        wait_until_half_removed(&large, files).await;
    })
    .await;

    // All leases end at the same time.
    let end = Instant::now() + Duration::from_secs(45);
    for first in (0..peers).step_by(AT_ONCE) {
        let mut calls = tokio::task::JoinSet::new();
        for n in first..peers.min(first + AT_ONCE as u64) {
            let large = large.clone();
            calls.spawn(async move {
                let files: Vec<_> = (0..20).map(|at| registration(n * 20 + at)).collect();
                let left = end.saturating_duration_since(Instant::now());
                let ttl = Some(left.max(Duration::from_secs(1)));
                let token = Token::generate();
                large
                    .register(&token, &here(1), &files, ttl, false)
                    .await
                    .unwrap();
            });
        }
        calls.join_all().await;
    }
    println!(
        "{peers} peers are registered, {:?} before they expire",
        end.saturating_duration_since(Instant::now())
    );
    tokio::time::sleep_until((end - Duration::from_millis(200)).into()).await;
    measure_during("all peers expire at once", &client, async {
        while large.stats().await.unwrap().peers > 10 {
            tokio::time::sleep(PAUSE).await;
        }
    })
    .await;

    stop.cancel();
    if let Some(server) = server {
        server.await.unwrap().unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }
}

/// Waits until fewer than half of the files are left.
async fn wait_until_half_removed(client: &IndexClient, files: u64) {
    while client.stats().await.unwrap().files > files / 2 {
        tokio::time::sleep(PAUSE).await;
    }
}
