//! Limits on the memory that strangers can make the program use, while other peers are still
//! served.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../tests/support/raw_client.rs"]
mod raw_client;

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use potluck_core::{
    FileId, Problem,
    grpc::transport::Endpoint,
    identity::hash::hash_bytes,
    proto::v1::{self, peer_service_client::PeerServiceClient},
};
use prost::Message as _;
use raw_client::{
    HEALTH_WATCH, REFLECTION, RawClient, describe, framed, half_sent, peak_memory, settled_memory,
};
use tonic::transport::Channel;

/// How much the program may grow under any of these attacks, in MiB. Without limits, most attacks
/// took far more.
const GROWTH: u64 = 200;

/// Maximum time for any step.
const DEADLINE: Duration = Duration::from_secs(60);

const DOWNLOAD: &str = "/potluck.v1.PeerService/Download";
const DESCRIBE: &str = "/potluck.v1.PeerService/Describe";
const WATCH: &str = "/potluck.v1.PeerService/WatchAvailability";

/// The program, which shares one file; killed when dropped.
struct Program {
    _dir: tempfile::TempDir,
    child: Child,
    address: SocketAddr,
    id: FileId,
    began_with: u64,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    fn start(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = vec![7; 300_000];
        let files = dir.path().join("home/files");
        std::fs::create_dir_all(&files).unwrap();
        std::fs::write(files.join("shared"), &data).unwrap();
        let mut child = command(&dir.path().join("home"))
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line.strip_prefix("listening on ").expect(&line).trim();
        Self {
            address: address.parse().unwrap(),
            began_with: peak_memory(child.id()).unwrap_or_default(),
            child,
            id: hash_bytes(&data).id(),
            _dir: dir,
        }
    }

    /// Asserts that the program grew by at most [`GROWTH`].
    async fn assert_bounded(&self) {
        match settled_memory(self.child.id()).await {
            Some(peak) => {
                let growth = peak - self.began_with;
                println!("grew by {growth} MiB");
                assert!(growth < GROWTH, "grew by {growth} MiB");
            }
            None => println!("memory is not checked: this system has no /proc/PID/status"),
        }
    }

    async fn client(&self) -> Option<PeerServiceClient<Channel>> {
        let endpoint: Endpoint = self.address.to_string().parse().unwrap();
        Some(PeerServiceClient::new(endpoint.connect().await.ok()?))
    }

    /// Downloads the shared file as an honest client does: retries if the peer asks for it.
    async fn download_honestly(&self) {
        let began = std::time::Instant::now();
        loop {
            match self.download().await {
                Ok(300_000) => return,
                Ok(bytes) => panic!("{bytes} bytes"),
                Err(problem) => assert!(began.elapsed() < DEADLINE, "not served: {problem}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn download(&self) -> Result<usize, Problem> {
        let busy = Problem::new(potluck_core::Reason::Busy, "no connection");
        let mut client = self.client().await.ok_or(busy)?;
        let span = v1::Span {
            file_id: self.id.to_bytes(),
            offset: 0,
            length: 300_000,
        };
        let request = v1::DownloadRequest { spans: vec![span] };
        let mut chunks = client.download(request).await?.into_inner();
        let mut bytes = 0;
        while let Some(chunk) = chunks.message().await? {
            bytes += chunk.data.len();
        }
        Ok(bytes)
    }
}

fn command(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_potluck-peer"));
    command
        .args(["--listen", "127.0.0.1:0", "--index", "none", "--home"])
        .arg(home)
        .stdin(Stdio::null());
    command
}

/// Starts this many calls on each of several connections.
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
async fn no_call_takes_memory_without_a_bound() {
    let large = half_sent(4 * 1024 * 1024);
    let watch = v1::WatchAvailabilityRequest {
        file_id: hash_bytes(&vec![7; 300_000]).id().to_bytes(),
    };
    for (connections, calls, path, body) in [
        (1, 200, REFLECTION, large.clone()),
        (16, 250, REFLECTION, describe("potluck.v1.PeerService")),
        (16, 250, HEALTH_WATCH, framed(&[])),
        (2, 200, HEALTH_WATCH, large.clone()),
        (2, 200, DESCRIBE, large),
        (16, 250, DOWNLOAD, half_sent(255 * 1024)),
        (16, 250, WATCH, framed(&watch.encode_to_vec())),
    ] {
        let program = Program::start(&[]);
        let hostile = flood(&program, connections, calls, path, &body).await;
        program.download_honestly().await;
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
        silent.push(RawClient::connect(program.address, 65_535).await);
    }
    program.download_honestly().await;
    let began = std::time::Instant::now();
    while silent.iter().all(RawClient::is_open) {
        assert!(began.elapsed() < DEADLINE, "none made room");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_reflection_nothing_is_told_and_all_else_is_served() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    let program = Program::start(&["--no-reflection"]);
    let endpoint: Endpoint = program.address.to_string().parse().unwrap();
    let refused = ServerReflectionClient::new(endpoint.connect().await.unwrap())
        .server_reflection_info(futures_util::stream::empty())
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unimplemented);
    program.download_honestly().await;
}
