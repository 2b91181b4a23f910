//! Limits on the memory that strangers can make the program use, while other peers are still
//! served.

use std::time::{Duration, Instant};

use potluck_core::{
    FileId, Problem,
    proto::v1::{self, peer_service_client::PeerServiceClient},
};
use potluck_testkit::{
    content::{bytes, id_of, write_file},
    network::{
        endpoint_at,
        raw_client::{
            DEFAULT_WINDOW, HEALTH_WATCH, REFLECTION, RawClient, describe, flood, framed, half_sent,
        },
        reflection_error,
    },
    services::{download, span},
    system::{memory::MemoryGrowth, program::Server},
    wait::{DEADLINE, wait_until},
};
use prost::Message as _;
use tempfile::TempDir;

use crate::command;

/// How much the program may grow under any of these attacks, in MiB. Without limits, most attacks
/// took far more.
const MAX_GROWTH: u64 = 200;

/// Size of the shared file, in bytes.
const LEN: usize = 300_000;

const DOWNLOAD: &str = "/potluck.v1.PeerService/Download";
const DESCRIBE: &str = "/potluck.v1.PeerService/Describe";
const WATCH: &str = "/potluck.v1.PeerService/WatchAvailability";

/// The program, which shares one file.
struct Sharing {
    _dir: TempDir,
    server: Server,
    id: FileId,
    growth: MemoryGrowth,
}

impl Sharing {
    fn start(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        let data = bytes(LEN, 7);
        write_file(&home, "files/shared", &data);
        let server = Server::start(command(&home).args(arguments));
        Self {
            _dir: dir,
            growth: MemoryGrowth::since_now(server.id()),
            server,
            id: id_of(&data),
        }
    }

    /// Downloads the shared file as an honest client does: retries if the peer asks for it.
    async fn download_honestly(&self) {
        let start = Instant::now();
        loop {
            match self.download().await {
                Ok(LEN) => return,
                Ok(len) => panic!("{len} bytes"),
                Err(problem) => assert!(start.elapsed() < DEADLINE, "not served: {problem}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn download(&self) -> Result<usize, Problem> {
        let channel = endpoint_at(self.server.address).connect().await?;
        let mut client = PeerServiceClient::new(channel);
        let spans = download(&mut client, vec![span(self.id, 0, LEN as u64)]).await?;
        Ok(spans[0].len())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_takes_unbounded_memory() {
    let large = half_sent(4 * 1024 * 1024);
    let watch = v1::WatchAvailabilityRequest {
        file_id: id_of(&bytes(LEN, 7)).to_bytes(),
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
        let program = Sharing::start(&[]);
        let server = (program.server.address, program.server.id());
        let hostile = flood(server, connections, calls, path, &body).await;
        program.download_honestly().await;
        println!("{connections} x {calls} of {path}, {} bytes each:", body.len());
        program.growth.assert_below(MAX_GROWTH).await;
        drop(hostile);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_give_way_to_others() {
    let program = Sharing::start(&["--max-connections", "8"]);
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(RawClient::connect(program.server.address, DEFAULT_WINDOW).await);
    }
    program.download_honestly().await;
    wait_until("a silent connection is closed", async || {
        !silent.iter().all(RawClient::is_open)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn serves_downloads_without_reflection() {
    let program = Sharing::start(&["--no-reflection"]);
    let error = reflection_error(program.server.address).await;
    assert_eq!(error, Some(tonic::Code::Unimplemented));
    program.download_honestly().await;
}
