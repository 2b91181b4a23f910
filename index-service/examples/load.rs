//! Measures the calls of an index whose store is on disk: `load [SECONDS] [WATCHERS] [CASES]`.
//!
//! CASES are some of `batches`, `single`, `renew`, `watch`, divided by commas; all without it. `renew`
//! needs the leases of `single`.
//! Callers and server share the machine, so absolute rates depend on its cores. Compare the rates
//! with that of an empty call (`GetStats`). Prints one JSON object a line.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark for developers"
)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use potluck_core::{
    FileId, Root, Token,
    index_client::{IndexClient, MAX_BATCH},
    model::{Address, FileKind, FileRecord, QueryKey, Registration},
};
use potluck_index::{Config, Limits, StoreConfig, serve};
use tokio_util::sync::CancellationToken;

/// Concurrent callers, each with a connection of its own.
const CALLERS: u64 = 64;

/// Registrations that queries find.
const FILES: u64 = 100_000;

/// Watchers per connection.
const PER_CONNECTION: usize = 500;

fn registration(n: u64) -> Registration {
    let mut root = [5; 32];
    root[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    let root = Root(root);
    Registration {
        file: FileRecord {
            id: FileId::derive(n + 1, &root),
            size: n + 1,
            root,
            sha256: None,
            kind: FileKind::File,
        },
        names: vec![format!(
            "model-{} part-{:08x}.bin",
            n / 1000,
            n.wrapping_mul(0x9e37_79b9)
        )],
        is_complete: true,
    }
}

fn here(port: u16) -> Address {
    Address {
        host: String::new(),
        port,
    }
}

/// The rate and the latencies of some calls.
struct Measured {
    calls: u64,
    seconds: f64,
    sorted: Vec<Duration>,
    cpu: Duration,
}

impl Measured {
    fn rate(&self) -> f64 {
        self.calls as f64 / self.seconds
    }

    fn percentile(&self, fraction: f64) -> f64 {
        let last = self.sorted.len().saturating_sub(1);
        let at = ((self.sorted.len() as f64 * fraction) as usize).min(last);
        self.sorted
            .get(at)
            .map_or(0.0, |time| time.as_secs_f64() * 1000.0)
    }

    fn print(&self, case: &str) {
        println!(
            "{{\"case\": {case:?}, \"calls_per_second\": {:.0}, \"p50_ms\": {:.2}, \"p99_ms\": {:.2}, \
             \"max_ms\": {:.2}, \"cpu_us\": {:.1}}}",
            self.rate(),
            self.percentile(0.5),
            self.percentile(0.99),
            self.percentile(1.0),
            self.cpu.as_secs_f64() * 1e6 / self.calls.max(1) as f64,
        );
    }
}

/// Processor time of this process, server and callers together; zero if the system does not say.
fn processor_time() -> Duration {
    /// Ticks per second in `/proc`.
    const TICKS: u64 = 100;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The fields after the name of the program, which may contain spaces.
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 1000 / TICKS)
}

/// Calls repeatedly from `callers` tasks for `seconds`; each at most `rate` times per second.
async fn measure<F: Future<Output = ()> + Send + 'static>(
    callers: u64,
    seconds: f64,
    rate: Option<f64>,
    call: impl Fn(u64, u64) -> F + Send + Sync + 'static,
) -> Measured {
    let call = Arc::new(call);
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let (started, cpu) = (Instant::now(), processor_time());
    let mut tasks = tokio::task::JoinSet::new();
    for caller in 0..callers {
        let call = Arc::clone(&call);
        tasks.spawn(async move {
            let mut times = Vec::new();
            for n in 0.. {
                if let Some(rate) = rate {
                    let due =
                        Duration::from_secs_f64((n as f64 + caller as f64 / callers as f64) / rate);
                    tokio::time::sleep_until((started + due).into()).await;
                }
                if Instant::now() >= end {
                    break;
                }
                let begun = Instant::now();
                call(caller, n).await;
                times.push(begun.elapsed());
            }
            times
        });
    }
    let mut sorted = Vec::new();
    while let Some(times) = tasks.join_next().await {
        sorted.extend(times.unwrap());
    }
    sorted.sort_unstable();
    Measured {
        calls: sorted.len() as u64,
        seconds: started.elapsed().as_secs_f64(),
        sorted,
        cpu: processor_time().saturating_sub(cpu),
    }
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| arguments.get(at).map(|text| text.parse::<f64>().unwrap());
    let seconds = number(0).unwrap_or(5.0);
    let watchers = number(1).unwrap_or(20_000.0) as usize;
    let wants = |case| {
        arguments
            .get(2)
            .is_none_or(|cases| cases.split(',').any(|one| one == case))
    };
    let dir = std::env::temp_dir().join(format!("potluck-load-{}", std::process::id()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let config = Config {
        store: StoreConfig::Sled(dir.clone()),
        limits: Limits {
            max_files_per_peer: u64::MAX,
            max_peers_per_address: u64::MAX,
            max_calls_per_second: 0,
            max_watchers: 4 * watchers,
            max_memory_mib: 64 * 1024,
            ..Limits::default()
        },
        ..Config::default()
    };
    let server = tokio::spawn(serve(listener, config, stop.clone()));
    let client = || {
        IndexClient::new(
            address
                .to_string()
                .parse::<potluck_core::grpc::transport::Endpoint>()
                .unwrap(),
        )
    };
    let clients: Arc<Vec<IndexClient>> = Arc::new((0..CALLERS).map(|_| client()).collect());
    let tokens: Arc<Vec<Token>> = Arc::new((0..CALLERS).map(|_| Token::generate()).collect());
    let next = Arc::new(AtomicU64::new(1 << 32));

    // Batches, by two peers in turn. All other cases need some files.
    let batch_seconds = if wants("batches") {
        seconds
    } else {
        seconds.min(1.0)
    };
    let batches = {
        let (clients, tokens, next) =
            (Arc::clone(&clients), Arc::clone(&tokens), Arc::clone(&next));
        measure(2, batch_seconds, None, move |caller, n| {
            let (clients, tokens, next) =
                (Arc::clone(&clients), Arc::clone(&tokens), Arc::clone(&next));
            async move {
                let first = match n * MAX_BATCH as u64 {
                    at if caller == 0 && at < FILES => at,
                    _ => next.fetch_add(MAX_BATCH as u64, Ordering::Relaxed),
                };
                let files: Vec<_> = (first..first + MAX_BATCH as u64).map(registration).collect();
                let (client, token) = (&clients[caller as usize], &tokens[caller as usize]);
                client
                    .register(token, &here(1), &files, None, false)
                    .await
                    .unwrap();
            }
        })
        .await
    };
    batches.print("register 10,000 files, 2 peers");
    println!(
        "{{\"case\": \"files in batches\", \"files_per_second\": {:.0}}}",
        batches.rate() * MAX_BATCH as f64
    );

    let empty = {
        let clients = Arc::clone(&clients);
        measure(CALLERS, seconds, None, move |caller, _| {
            let clients = Arc::clone(&clients);
            async move {
                clients[caller as usize].stats().await.unwrap();
            }
        })
        .await
    };
    empty.print("empty call, 64 callers");

    let singles = [
        ("register 1 file, 64 peers", false),
        ("register 1 file, 64 callers of one peer", true),
    ];
    for (case, one_peer) in singles.into_iter().filter(|_| wants("single")) {
        let (clients, tokens, next) =
            (Arc::clone(&clients), Arc::clone(&tokens), Arc::clone(&next));
        let measured = measure(CALLERS, seconds, None, move |caller, _| {
            let (clients, tokens, next) =
                (Arc::clone(&clients), Arc::clone(&tokens), Arc::clone(&next));
            async move {
                let files = [registration(next.fetch_add(1, Ordering::Relaxed))];
                let token = &tokens[if one_peer { 0 } else { caller as usize }];
                let client = &clients[caller as usize];
                client
                    .register(token, &here(1), &files, None, false)
                    .await
                    .unwrap();
            }
        })
        .await;
        measured.print(case);
        println!(
            "{{\"case\": \"{case}, against the empty call\", \"ratio\": {:.2}}}",
            measured.rate() / empty.rate()
        );
    }

    let renew = |rate: Option<f64>| {
        let (clients, tokens) = (Arc::clone(&clients), Arc::clone(&tokens));
        measure(CALLERS, seconds, rate, move |caller, _| {
            let (clients, tokens) = (Arc::clone(&clients), Arc::clone(&tokens));
            async move {
                let token = &tokens[caller as usize];
                clients[caller as usize].renew(token, &here(1)).await.unwrap();
            }
        })
    };
    if wants("renew") {
        let saturated = renew(None).await;
        saturated.print("renew, 64 peers");
        let query_client = client();
        let queries = measure(1, seconds, Some(500.0), move |_, n| {
            let client = query_client.clone();
            async move {
                let id = registration(n * 7919 % FILES).file.id;
                client.query(&QueryKey::Id(id), 0, None).await.unwrap();
            }
        });
        let share = 0.7 * saturated.rate() / CALLERS as f64;
        let (renewals, queries) = tokio::join!(renew(Some(share)), queries);
        renewals.print("renew, at 70 % of that");
        queries.print("query during these renewals");
    }

    if !wants("watch") {
        stop.cancel();
        server.await.unwrap().unwrap();
        std::fs::remove_dir_all(dir).unwrap();
        return;
    }
    // Watchers of one file.
    let register_one = |clients: Arc<Vec<IndexClient>>, tokens: Arc<Vec<Token>>| {
        measure(1, seconds, Some(20.0), move |_, n| {
            let (clients, tokens) = (Arc::clone(&clients), Arc::clone(&tokens));
            async move {
                // The peer is partial and complete in turn. Each change is an event for every watcher.
                let mut file = registration(0);
                file.is_complete = n / 20 % 2 == 0;
                let files = [if n % 20 == 0 {
                    file
                } else {
                    registration((1 << 40) + n)
                }];
                clients[3]
                    .register(&tokens[3], &here(1), &files, None, false)
                    .await
                    .unwrap();
            }
        })
    };
    register_one(Arc::clone(&clients), Arc::clone(&tokens))
        .await
        .print("register, no watchers");
    let (mut connections, mut streams) = (Vec::new(), tokio::task::JoinSet::new());
    let received = Arc::new(AtomicU64::new(0));
    for first in (0..watchers).step_by(PER_CONNECTION) {
        let client = client();
        for _ in first..watchers.min(first + PER_CONNECTION) {
            let file = registration(0).file.id;
            let mut stream = Box::pin(client.watch_providers(file, 1).await.unwrap());
            let received = Arc::clone(&received);
            streams.spawn(async move {
                while let Some(Ok(_)) = stream.next().await {
                    received.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        connections.push(client);
    }
    register_one(Arc::clone(&clients), Arc::clone(&tokens))
        .await
        .print(&format!("register, {watchers} watchers"));
    println!(
        "{{\"case\": \"events received\", \"events\": {}}}",
        received.load(Ordering::Relaxed)
    );
    streams.shutdown().await;
    stop.cancel();
    server.await.unwrap().unwrap();
    std::fs::remove_dir_all(dir).unwrap();
}
