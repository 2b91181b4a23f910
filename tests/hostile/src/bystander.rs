//! An honest client of the program under attack. It asks on a connection of its own that it keeps,
//! and on a new one each time, and repeats a question until it is answered.

use std::time::Duration;

use potluck_core::{
    Problem, Reason,
    grpc::transport::Endpoint,
    index_client::IndexClient,
    model::QueryKey,
    proto::v1::{DownloadRequest, Span, peer_service_client::PeerServiceClient},
};
use tokio::time::Instant;

use crate::target::{Service, Target};

/// Pause between two questions, and after a refusal.
const PAUSE: Duration = Duration::from_millis(50);

/// Deadline of one attempt.
const ATTEMPT: Duration = Duration::from_secs(10);

/// Bytes that are downloaded from a peer with each question.
const DOWNLOADED: usize = 64 * 1024;

/// How the honest client was served.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Served {
    /// Number of right answers.
    pub answers: u64,
    /// Number of attempts that failed.
    pub failures: u64,
    /// Why the last attempt failed.
    pub last_failure: Option<String>,
    /// The longest time from a question to its answer, refusals included.
    pub slowest: Duration,
}

/// Asks until `until`, and then until each question is answered. A question that is not answered
/// within `deadline` ends the asking; [`Served::slowest`] is then longer.
///
/// # Errors
/// The target's address cannot be used.
pub async fn ask(target: &Target, until: Instant, deadline: Duration) -> Result<Served, Problem> {
    let endpoint = target.endpoint()?;
    let kept = Client::new(&endpoint);
    let mut served = Served::default();
    loop {
        for client in [&kept, &Client::new(&endpoint)] {
            let start = Instant::now();
            loop {
                let problem = match tokio::time::timeout(ATTEMPT, client.ask(target)).await {
                    Ok(Ok(())) => {
                        served.answers += 1;
                        break;
                    }
                    Ok(Err(problem)) => problem.to_string(),
                    Err(_) => "no answer in time".to_owned(),
                };
                served.failures += 1;
                served.last_failure = Some(problem);
                if start.elapsed() > deadline {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
            served.slowest = served.slowest.max(start.elapsed());
        }
        if served.slowest > deadline || Instant::now() >= until {
            return Ok(served);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A client that connects when it is asked.
struct Client {
    endpoint: Endpoint,
    index: IndexClient,
    peer: PeerServiceClient<tonic::transport::Channel>,
}

impl Client {
    fn new(endpoint: &Endpoint) -> Self {
        Self {
            endpoint: endpoint.clone(),
            index: IndexClient::new(endpoint.clone()),
            peer: PeerServiceClient::new(endpoint.lazy_channel()),
        }
    }

    /// Asks one question and checks the answer.
    async fn ask(&self, target: &Target) -> Result<(), Problem> {
        let wrong = || Err(Problem::new(Reason::VerificationFailed, "a wrong answer"));
        match target.service {
            Service::Index => {
                let page = self.index.query(&QueryKey::Id(target.file), 1, None).await?;
                match page.files.as_slice() {
                    [found] if found.file.id == target.file => Ok(()),
                    _ => wrong(),
                }
            }
            Service::Peer => {
                let length = DOWNLOADED.min(target.data.len());
                let span = Span {
                    file_id: target.file.to_bytes(),
                    offset: (target.data.len() - length) as u64,
                    length: length as u64,
                };
                let request = DownloadRequest {
                    spans: vec![span],
                    ..Default::default()
                };
                let mut peer = self.peer.clone();
                let answer = peer.download(request);
                let mut stream = self.endpoint.call("peer", ATTEMPT, answer).await?;
                let mut bytes = Vec::new();
                while let Some(chunk) = stream.message().await.map_err(Problem::from)? {
                    bytes.extend_from_slice(&chunk.data);
                }
                match target.data.ends_with(&bytes) && bytes.len() == length {
                    true => Ok(()),
                    false => wrong(),
                }
            }
        }
    }
}
