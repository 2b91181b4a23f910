//! Tests that attackers cannot make the program use much memory or starve other callers.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use potluck_core::{
    Problem,
    index_client::IndexClient,
    model::{QueryKey, Registration},
    proto::v1,
};
use potluck_testkit::{
    network::{
        raw_client::{
            DEFAULT_WINDOW, HEALTH_WATCH, REFLECTION, RawClient, describe, flood, framed, half_sent,
        },
        reflection_error,
    },
    records::{own_address, record, registration, token},
    system::{
        memory::{MemoryGrowth, settled_memory},
        program::Server,
    },
    wait::{DEADLINE, wait_until},
};
use prost::Message as _;

use crate::{PROGRAM, client_of};

/// Maximum growth of the program's memory under each attack, in MiB. Without limits, each attack
/// used far more.
const MAX_GROWTH: u64 = 200;

const QUERY: &str = "/potluck.v1.IndexService/Query";
const REGISTER: &str = "/potluck.v1.IndexService/Register";

/// The program with a store in memory.
struct Program {
    server: Server,
    client: IndexClient,
    growth: MemoryGrowth,
}

impl Program {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(PROGRAM);
        command
            .args(["--listen", "127.0.0.1:0", "--store", "memory"])
            // All callers have one address here, and the test does not concern the call rate.
            .args(["--max-calls-per-second", "0"])
            .args(arguments)
            .stderr(Stdio::null());
        let server = Server::start(&mut command);
        Self {
            client: client_of(&server),
            growth: MemoryGrowth::since_now(server.id()),
            server,
        }
    }

    async fn assert_bounded(&self) {
        self.growth.assert_below(MAX_GROWTH).await;
    }

    /// Makes a call as an honest client: retries until it succeeds or the deadline passes.
    async fn honestly<T>(&self, call: impl AsyncFn(&IndexClient) -> Result<T, Problem>) -> T {
        let start = Instant::now();
        loop {
            match call(&self.client).await {
                Ok(answer) => return answer,
                Err(problem) => assert!(start.elapsed() < DEADLINE, "not served: {problem}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Registers files, two hundred at a time.
    async fn register(&self, files: &[Registration]) {
        for files in files.chunks(200) {
            self.honestly(async |client| {
                client
                    .register(&token(1), &own_address(1), files, None, false)
                    .await
            })
            .await;
        }
    }
}

/// Files with long names, for large answers: three hundred take a MiB.
fn long_names(n: u64) -> Registration {
    let names = (0..16).map(|name| format!("{name}{}", "x".repeat(250)));
    Registration {
        names: std::iter::once("same".to_owned()).chain(names.take(15)).collect(),
        ..registration(n, "")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_answers_take_bounded_memory() {
    let program = Program::start(&[]);
    let files: Vec<_> = (0..400).map(long_names).collect();
    program.register(&files).await;
    let query = v1::QueryRequest {
        key: Some(v1::query_request::Key::Name("same".to_owned())),
        page_size: 1000,
        ..Default::default()
    };
    let query = framed(&query.encode_to_vec());
    let mut hostile = Vec::new();
    for _ in 0..3 {
        let mut client = RawClient::connect(program.server.address, 1).await;
        client.begin_many(400, QUERY, &query, true).await;
        hostile.push(client);
    }
    settled_memory(program.server.id()).await;
    let page = program
        .honestly(async |client| client.query(&QueryKey::Name("same".to_owned()), 0, None).await)
        .await;
    assert!(!page.files.is_empty() && page.next.is_some());
    program.assert_bounded().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_small_and_list_every_file() {
    let program = Program::start(&[]);
    let files: Vec<_> = (0..600).map(long_names).collect();
    program.register(&files).await;
    let (mut found, mut pages, mut next) = (Vec::new(), 0, None);
    loop {
        let page = program
            .client
            .query(&QueryKey::Name("same".to_owned()), 0, next)
            .await
            .unwrap();
        pages += 1;
        found.extend(page.files.into_iter().map(|found| found.file.id));
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    let mut expected: Vec<_> = (0..600).map(|n| record(n).id).collect();
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
    assert!(pages >= 3, "{pages}");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_sent_registrations_take_bounded_memory() {
    let program = Program::start(&[]);
    let half = half_sent(4 * 1024 * 1024);
    let mut hostile = Vec::new();
    for _ in 0..4 {
        let mut client = RawClient::connect(program.server.address, DEFAULT_WINDOW).await;
        client.begin_many(64, REGISTER, &half, false).await;
        hostile.push(client);
    }
    settled_memory(program.server.id()).await;
    let files: Vec<_> = (0..1000).map(|n| registration(n, "a")).collect();
    let lease = program
        .honestly(async |client| {
            client
                .register(&token(1), &own_address(1), &files, None, false)
                .await
        })
        .await;
    assert_eq!(lease.file_count, 1000);
    program.assert_bounded().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_sent_and_endless_calls_take_bounded_memory() {
    for (connections, calls, path, body) in [
        (2, 200, REFLECTION, half_sent(4 * 1024 * 1024)),
        (8, 1000, REFLECTION, describe("potluck.v1.IndexService")),
        (8, 1000, HEALTH_WATCH, framed(&[])),
        (2, 200, HEALTH_WATCH, half_sent(4 * 1024 * 1024)),
        (2, 200, QUERY, half_sent(4 * 1024 * 1024)),
    ] {
        let program = Program::start(&[]);
        let server = (program.server.address, program.server.id());
        let hostile = flood(server, connections, calls, path, &body).await;
        program.honestly(async |client| client.stats().await).await;
        println!("{connections} x {calls} of {path}, {} bytes each:", body.len());
        program.assert_bounded().await;
        drop(hostile);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_give_way_to_others() {
    let program = Program::start(&["--max-connections", "8"]);
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(RawClient::connect(program.server.address, DEFAULT_WINDOW).await);
    }
    program.honestly(async |client| client.stats().await).await;
    wait_until("a silent connection is closed", async || {
        silent.iter().any(|client| !client.is_open())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn serves_its_clients_without_reflection() {
    let program = Program::start(&["--no-reflection"]);
    let error = reflection_error(program.server.address).await;
    assert_eq!(error, Some(tonic::Code::Unimplemented));
    assert!(program.client.stats().await.is_ok());
}
