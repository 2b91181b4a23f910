//! Tests that attackers cannot make the program use much memory or starve other callers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "../../tests/support/raw_client.rs"]
mod raw_client;

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use bytes::Bytes;
use common::{DEADLINE, file, here, record, token, wait_until};
use potluck_core::{
    Problem,
    index_client::IndexClient,
    model::{QueryKey, Registration},
    proto::v1,
};
use prost::Message as _;
use raw_client::{
    HEALTH_WATCH, REFLECTION, RawClient, describe, framed, half_sent, peak_memory, settled_memory,
};

/// Maximum growth of the program's memory under each attack, in MiB. Without limits, each attack
/// used far more.
const GROWTH: u64 = 200;

const QUERY: &str = "/potluck.v1.IndexService/Query";
const REGISTER: &str = "/potluck.v1.IndexService/Register";

/// The program; killed when dropped.
struct Program {
    child: Child,
    address: SocketAddr,
    client: IndexClient,
    initial_memory: u64,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_potluck-index"))
            .args(["--listen", "127.0.0.1:0", "--store", "memory"])
            // All callers have one address here, and the test does not concern the call rate.
            .args(["--max-calls-per-second", "0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address: SocketAddr = line
            .strip_prefix("listening on ")
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        Self {
            client: IndexClient::new(address.to_string().parse().unwrap()),
            address,
            initial_memory: peak_memory(child.id()).unwrap_or_default(),
            child,
        }
    }

    /// Asserts that the program's memory grew by at most [`GROWTH`].
    async fn assert_bounded(&self) {
        match settled_memory(self.child.id()).await {
            Some(peak) => {
                let growth = peak - self.initial_memory;
                println!("grew by {growth} MiB");
                assert!(growth < GROWTH, "grew by {growth} MiB");
            }
            None => println!("memory is not checked: this system has no /proc/PID/status"),
        }
    }

    /// Makes a call as an honest client: retries until it succeeds or the deadline passes.
    async fn retry<T>(&self, call: impl AsyncFn(&IndexClient) -> Result<T, Problem>) -> T {
        let began = std::time::Instant::now();
        loop {
            match call(&self.client).await {
                Ok(done) => return done,
                Err(problem) => assert!(began.elapsed() < DEADLINE, "not served: {problem}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}

/// Files with long names, for large answers: three hundred take a MiB.
fn long_names(n: u64) -> Registration {
    let names = (0..16).map(|name| format!("{name}{}", "x".repeat(250)));
    Registration {
        names: std::iter::once("same".to_owned()).chain(names.take(15)).collect(),
        ..file(n, "")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_answers_are_bounded() {
    let program = Program::start(&[]);
    let files: Vec<_> = (0..400).map(long_names).collect();
    for files in files.chunks(200) {
        program
            .retry(async |client| client.register(&token(1), &here(1), files, None, false).await)
            .await;
    }
    let query = v1::QueryRequest {
        key: Some(v1::query_request::Key::Name("same".to_owned())),
        page_size: 1000,
        ..Default::default()
    };
    let query = framed(&query.encode_to_vec());
    let mut hostile = Vec::new();
    for _ in 0..3 {
        let mut client = RawClient::connect(program.address, 1).await;
        for _ in 0..400 {
            if !client.begin(QUERY, query.clone(), true).await {
                break;
            }
        }
        hostile.push(client);
    }
    settled_memory(program.child.id()).await;
    let page = program
        .retry(async |client| client.query(&QueryKey::Name("same".to_owned()), 0, None).await)
        .await;
    assert!(!page.files.is_empty() && page.next.is_some());
    program.assert_bounded().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_small_and_contain_every_file_once() {
    let program = Program::start(&[]);
    let files: Vec<_> = (0..600).map(long_names).collect();
    for files in files.chunks(200) {
        program
            .retry(async |client| client.register(&token(1), &here(1), files, None, false).await)
            .await;
    }
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
async fn half_sent_registrations_are_bounded() {
    let program = Program::start(&[]);
    let half = half_sent(4 * 1024 * 1024);
    let mut hostile = Vec::new();
    for _ in 0..4 {
        let mut client = RawClient::connect(program.address, 65_535).await;
        for _ in 0..64 {
            client.begin(REGISTER, half.clone(), false).await;
        }
        hostile.push(client);
    }
    settled_memory(program.child.id()).await;
    let files: Vec<_> = (0..1000).map(|n| file(n, "a")).collect();
    let lease = program
        .retry(async |client| client.register(&token(1), &here(1), &files, None, false).await)
        .await;
    assert_eq!(lease.file_count, 1000);
    program.assert_bounded().await;
}

/// Starts `calls` calls on each of `connections` connections.
async fn flood(
    program: &Program,
    connections: usize,
    calls: usize,
    path: &str,
    body: &Bytes,
) -> Vec<RawClient> {
    let mut hostile = Vec::new();
    for _ in 0..connections {
        let mut client = RawClient::connect(program.address, 1).await;
        for _ in 0..calls {
            if !client.begin(path, body.clone(), false).await {
                break;
            }
        }
        hostile.push(client);
    }
    settled_memory(program.child.id()).await;
    hostile
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_and_health_are_bounded_like_other_calls() {
    for (connections, calls, path, body) in [
        (2, 200, REFLECTION, half_sent(4 * 1024 * 1024)),
        (8, 1000, REFLECTION, describe("potluck.v1.IndexService")),
        (8, 1000, HEALTH_WATCH, framed(&[])),
        (2, 200, HEALTH_WATCH, half_sent(4 * 1024 * 1024)),
        (2, 200, QUERY, half_sent(4 * 1024 * 1024)),
    ] {
        let program = Program::start(&[]);
        let hostile = flood(&program, connections, calls, path, &body).await;
        program.retry(async |client| client.stats().await).await;
        println!("{connections} x {calls} of {path}, {} bytes each:", body.len());
        program.assert_bounded().await;
        drop(hostile);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_are_closed_for_others() {
    let program = Program::start(&["--max-connections", "8"]);
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(RawClient::connect(program.address, 65_535).await);
    }
    program.retry(async |client| client.stats().await).await;
    wait_until("a silent connection to be closed", || async {
        silent.iter().any(|client| !client.is_open())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_reflection_all_other_services_are_served() {
    let program = Program::start(&["--no-reflection"]);
    let mut client = {
        use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
        let endpoint: potluck_core::grpc::transport::Endpoint = program.address.to_string().parse().unwrap();
        ServerReflectionClient::new(endpoint.connect().await.unwrap())
    };
    let refused = client
        .server_reflection_info(futures_util::stream::empty())
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unimplemented);
    assert!(program.client.stats().await.is_ok());
}
