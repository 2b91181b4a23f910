//! Measures the cost of searches: `search [NAMES]`.
//!
//! It first runs each query alone, page by page, and prints calls, steps and processor time per
//! call. Then it starts a server with eight callers that search continuously without a rate limit,
//! and measures `Query` at the same time.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use potluck_core::{
    FileId, PeerId, Root, Token,
    index_client::{IndexClient, MAX_BATCH},
    model::{Address, FileKind, FileRecord, QueryKey, Registration},
};
use potluck_index::{
    Config, Limits,
    internals::{Catalog, Listing, ListingCursor, SearchScan, terms},
    serve,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio_util::sync::CancellationToken;

/// Default number of names.
const NAMES: u64 = 1_000_000;

/// Steps per lock of the catalog.
const SLICE: usize = 8_000;

/// Number of concurrent searchers.
const CALLERS: usize = 8;

/// Common words; each name that has them lacks exactly one.
const COMMON: [&str; 14] = [
    "amber", "birch", "cedar", "delta", "ember", "frost", "grove", "haven", "iris", "jade",
    "karma", "lotus", "maple", "north",
];

fn queries() -> Vec<(&'static str, String)> {
    vec![
        ("everything", String::new()),
        ("a whole name", "README.md".to_owned()),
        ("one name", "model 7 part 00007".to_owned()),
        ("one broad word", "model".to_owned()),
        ("two broad words, no name with both", "even odd".to_owned()),
        (
            "16 broad words, no name with all",
            format!("{} model safetensors", COMMON.join(" ")),
        ),
        ("a prefix of many words", "a".to_owned()),
        (
            "prefixes of many words, few names",
            "1 2 3 4 5 6 7 8 9".to_owned(),
        ),
        ("prefixes of many words, no name", "0a 0b 0c 0d 0e 0f".to_owned()),
        ("an unknown word", "nothing model".to_owned()),
    ]
}

fn main() -> anyhow::Result<()> {
    let names = match std::env::args().nth(1) {
        Some(names) => names.parse()?,
        None => NAMES,
    };
    measure_alone(names);
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(measure_queries(names))
}

fn measure_alone(names: u64) {
    let mut catalog = Catalog::default();
    let peer = PeerId([1; 32]);
    let address = Address {
        host: "192.0.2.1".to_owned(),
        port: 1,
    };
    catalog.set_peer(peer, &address);
    (0..names).for_each(|n| {
        catalog.put(&peer, &registration(n));
    });
    println!("{names} names; processor time of a call in ms");
    println!(
        "{:42} {:>8} {:>8} {:>10} {:>8} {:>8}",
        "query", "files", "calls", "max steps", "p50", "max"
    );
    for (title, query) in queries() {
        let terms = terms(&query).expect("a query");
        let (mut after, mut times, mut max_steps, mut files) = (None, Vec::new(), 0, 0);
        loop {
            let started = processor_time();
            let mut search = SearchScan::new(terms.clone(), after, 1000);
            while !catalog.advance_search(&mut search, SLICE) {}
            let page = search.finish();
            times.push(processor_time().saturating_sub(started));
            max_steps = max_steps.max(page.steps);
            files += page.files.len();
            after = page.next;
            // Later pages are of the same kind.
            if after.is_none() || times.len() == 500 {
                break;
            }
        }
        print_row(title, files, max_steps, times);
    }
    let by = QueryKey::Name("README.md".to_owned());
    let (mut after, mut times, mut max_steps, mut files): (Option<ListingCursor>, _, _, _) =
        (None, Vec::new(), 0, 0);
    for _ in 0..20 {
        let started = processor_time();
        let mut listing = Listing::new(by.clone(), after, 1000, 50);
        while !catalog.advance_listing(&mut listing, SLICE, &mut rand::rng()) {}
        let page = listing.finish();
        times.push(processor_time().saturating_sub(started));
        max_steps = max_steps.max(page.steps);
        files += page.files.len();
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    print_row("Query: a name of every tenth file", files, max_steps, times);
}

fn print_row(title: &str, files: usize, max_steps: usize, mut times: Vec<Duration>) {
    times.sort_unstable();
    println!(
        "{title:42} {files:>8} {:>8} {max_steps:>10} {:>8.2} {:>8.2}",
        times.len(),
        ms(percentile(&times, 50)),
        ms(percentile(&times, 100)),
    );
}

async fn measure_queries(names: u64) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let client = IndexClient::new(
        listener
            .local_addr()?
            .to_string()
            .parse::<potluck_core::grpc::transport::Endpoint>()?,
    );
    let config = Config {
        limits: Limits {
            max_calls_per_second: 0,
            max_files_per_peer: names,
            ..Limits::default()
        },
        ttl: Duration::from_secs(3600),
        ..Config::default()
    };
    let stop = CancellationToken::new();
    let server = tokio::spawn(serve(listener, config, stop.clone()));
    let token = Token::generate();
    let address = Address {
        host: String::new(),
        port: 1,
    };
    for from in (0..names).step_by(MAX_BATCH) {
        let until = names.min(from + MAX_BATCH as u64);
        let files: Vec<Registration> = (from..until).map(registration).collect();
        client.register(&token, &address, &files, None, false).await?;
    }
    println!("\nQuery by id over gRPC, in ms");
    println!(
        "{:42} {:>8} {:>8} {:>8} {:>8} {:>10}",
        "beside", "p50", "p90", "p99", "max", "searches/s"
    );
    measure("nothing", &client, names, &[]).await?;
    for (title, query) in queries() {
        measure(title, &client, names, &[query]).await?;
    }
    let all: Vec<String> = queries().into_iter().map(|(_, query)| query).collect();
    measure("all of these", &client, names, &all).await?;
    stop.cancel();
    server.await??;
    Ok(())
}

/// Measures queries for a second while callers search.
async fn measure(
    title: &str,
    client: &IndexClient,
    names: u64,
    queries: &[String],
) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let searches = Arc::new(AtomicU64::new(0));
    let mut callers = Vec::new();
    for caller in 0..CALLERS {
        let Some(query) = queries.get(caller % queries.len().max(1)).cloned() else {
            break;
        };
        // A separate connection, as a remote caller has.
        let client = IndexClient::new(client.endpoint().clone());
        let (stop, searches) = (stop.clone(), Arc::clone(&searches));
        callers.push(tokio::spawn(async move {
            let mut page = None;
            while !stop.is_cancelled() {
                let answer = client.search(&query, 1000, page).await;
                searches.fetch_add(1, Ordering::Relaxed);
                page = answer.ok().and_then(|answer| answer.next);
            }
        }));
    }
    let mut rng = StdRng::seed_from_u64(7);
    let mut times = Vec::new();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        let file = registration(rng.random_range(0..names)).file.id;
        let called = Instant::now();
        let page = client.query(&QueryKey::Id(file), 50, None).await?;
        anyhow::ensure!(page.files.len() == 1, "the file is there");
        times.push(called.elapsed());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    stop.cancel();
    for caller in callers {
        caller.await?;
    }
    times.sort_unstable();
    println!(
        "{title:42} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {:>10.0}",
        ms(percentile(&times, 50)),
        ms(percentile(&times, 90)),
        ms(percentile(&times, 99)),
        ms(percentile(&times, 100)),
        searches.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64(),
    );
    Ok(())
}

fn registration(n: u64) -> Registration {
    let mut rng = StdRng::seed_from_u64(n);
    let root = Root(rng.random());
    let common: BTreeMap<usize, &str> = COMMON.into_iter().enumerate().collect();
    let missing = (n % COMMON.len() as u64) as usize;
    // Only one name in eight has the common words; otherwise all names would be unrealistically
    // long.
    let common: Vec<&str> = match n.is_multiple_of(8) {
        true => common
            .into_iter()
            .filter(|&(at, _)| at != missing)
            .map(|(_, word)| word)
            .collect(),
        false => Vec::new(),
    };
    let parity = if n.is_multiple_of(2) { "even" } else { "odd" };
    let name = format!(
        "model-{}-{:08x}-part-{:05}-{parity} {}.safetensors",
        n / 1000,
        rng.random::<u32>(),
        n % 1000,
        common.join("-"),
    );
    let mut names = vec![name];
    if n.is_multiple_of(10) {
        names.push("README.md".to_owned());
    }
    Registration {
        file: FileRecord {
            id: FileId::derive(n + 1, &root),
            size: n + 1,
            root,
            sha256: None,
            kind: FileKind::File,
        },
        names,
        is_complete: true,
    }
}

/// Processor time of this thread, or elapsed time if the system does not report it.
fn processor_time() -> Duration {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = schedstat.and_then(|schedstat| schedstat.split(' ').next()?.parse().ok());
    nanos.map_or_else(
        || {
            static STARTED: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
            STARTED.get_or_init(Instant::now).elapsed()
        },
        Duration::from_nanos,
    )
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
