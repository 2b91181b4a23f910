//! A client of another peer's PeerService. It returns domain types, bounds every wait, and
//! validates every response as far as it can.

use std::{
    future::Future,
    net::IpAddr,
    ops::Range,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _};
use potluck_core::{
    FileId, PeerId, Problem, Reason,
    grpc::transport::{Endpoint, MAX_MESSAGE},
    identity::merkle::Hash,
    model::{Address, FileRecord},
    process::traces::{TracedChannel, traced},
    proto::v1::{self, peer_service_client::PeerServiceClient},
};
use tokio::time::Instant;
use tonic::{Status, Streaming, transport::Channel};

use crate::{
    content::{BadPieces, FileRange},
    download::{
        outgoing::Outgoing,
        peers::rpc::{
            availability::{PeerReport, WatchError, protocol_violation},
            download_stream::{self, DownloadStream},
        },
    },
    locality::Locality,
};

/// Time limit for a response, and for the next expected message of a stream.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit for bulk data: over a slow connection, earlier requests come first. The swarm treats
/// a silent peer as stalled long before.
pub(crate) const DATA_TIMEOUT: Duration = Duration::from_secs(60);

/// Time limit for a list of piece hashes: 128 KiB for most files, a few MiB for the largest.
const HASHES_TIMEOUT: Duration = Duration::from_secs(60);

/// A connected peer. Cheap to clone.
///
/// Bulk data has its own connection, so that small calls never wait behind it.
#[derive(Debug, Clone)]
pub(crate) struct PeerClient {
    endpoint: Endpoint,
    control: PeerServiceClient<TracedChannel>,
    local_address: Option<IpAddr>,
    locality: Locality,
    /// Time that connecting took.
    connect_time: Duration,
    /// The connection for bulk data, created with the first response.
    data: Arc<OnceLock<Channel>>,
}

/// A peer's description of a file.
#[derive(Debug, Clone)]
pub(crate) struct FileDescription {
    /// The file; its id was checked against the requested one.
    pub(crate) record: FileRecord,
    /// The name that the peer uses; untrusted.
    pub(crate) name: String,
    /// The id that the peer claims to have.
    pub(crate) peer: PeerId,
}

impl PeerClient {
    /// Connects to the peer at this address. Without TLS, only the first call shows whether a peer
    /// answers there; in a network, `peer` must, if it is known.
    ///
    /// # Errors
    /// [`Reason::Unreachable`], [`Reason::InvalidAddress`]; [`Reason::Unauthenticated`] if TLS fails.
    pub(crate) async fn open(
        address: &Address,
        peer: Option<PeerId>,
        outgoing: &Outgoing,
    ) -> Result<Self, Problem> {
        let endpoint = outgoing.endpoint(address, peer)?;
        let started = Instant::now();
        let control = grpc_client(endpoint.open_from(outgoing.local_address).await?);
        Ok(Self {
            endpoint,
            control,
            local_address: outgoing.local_address,
            locality: outgoing.locality.clone(),
            connect_time: started.elapsed(),
            data: Arc::default(),
        })
    }

    /// The connection for bulk data. A proxy may accept the connection sooner than the peer
    /// answers, so the round trip is the longer of the two times. It is doubled because other
    /// traffic may share the path.
    fn data(&self, answered_in: Duration) -> Channel {
        let round_trip = self.connect_time.max(answered_in);
        let channel = self.data.get_or_init(|| {
            self.endpoint
                .lazy_bulk_channel(2 * round_trip, self.local_address)
        });
        channel.clone()
    }

    async fn call<T>(
        &self,
        answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Problem> {
        let sent_at = Instant::now();
        let answer = self.endpoint.call("peer", ANSWER_TIMEOUT, answer).await?;
        self.data(sent_at.elapsed());
        Ok(answer)
    }

    fn timed_out(&self, waited: Duration) -> Problem {
        Problem::new(
            Reason::TimedOut,
            format!("the peer at {} did not answer within {waited:?}", self.endpoint),
        )
    }

    fn protocol_violation(&self, did: &str) -> Problem {
        protocol_violation(&self.endpoint, did)
    }

    /// Asks the peer to describe a file.
    ///
    /// # Errors
    /// As `PeerService.Describe`; [`Reason::VerificationFailed`] if size and root do not match the
    /// id.
    pub(crate) async fn describe(&self, id: FileId) -> Result<FileDescription, Problem> {
        let request = v1::DescribeRequest {
            file_id: id.to_bytes(),
        };
        let answer = self.call(self.control.clone().describe(request)).await?;
        let record = FileRecord::try_from(answer.file.unwrap_or_default()).map_err(|problem| {
            self.protocol_violation(&format!("sent an invalid description: {problem}"))
        })?;
        if record.id != id {
            return Err(self.protocol_violation("described another file than the requested one"));
        }
        let peer = PeerId::try_from(answer.peer_id.as_ref())
            .map_err(|_| self.protocol_violation("sent an invalid peer id"))?;
        Ok(FileDescription {
            record,
            name: answer.name,
            peer,
        })
    }

    /// Reports to the peer that pieces it sent failed verification. Failures are only logged.
    pub(crate) async fn report_bad_pieces(self, pieces: BadPieces) {
        let request = v1::ReportBadPiecesRequest {
            file_id: pieces.id.to_bytes(),
            first_piece: pieces.first,
            count: pieces.count,
        };
        if let Err(problem) = self.call(self.control.clone().report_bad_pieces(request)).await {
            tracing::debug!(
                file = %pieces.id.short(), peer = %self.endpoint, %problem,
                "the peer did not accept a report of bad pieces"
            );
        }
    }

    /// Requests the hashes of pieces of a file, or of a collection's large files, whose pieces are
    /// numbered through all of them. The hashes are not verified.
    ///
    /// # Errors
    /// As `PeerService.GetPieceHashes`; [`Reason::VerificationFailed`] if the list has gaps or the
    /// wrong length.
    pub(crate) async fn piece_hashes(
        &self,
        id: FileId,
        of_large_files: bool,
        pieces: Range<u32>,
    ) -> Result<Vec<Hash>, Problem> {
        let (first, count) = (pieces.start as usize, pieces.len());
        let request = v1::GetPieceHashesRequest {
            file_id: id.to_bytes(),
            first_piece: pieces.start,
            count: pieces.end - pieces.start,
            large_files: of_large_files,
        };
        let receive = async {
            let mut stream = self.call(self.control.clone().get_piece_hashes(request)).await?;
            let mut list: Vec<Hash> = Vec::new();
            while let Some(answer) = self.next_message(&mut stream).await? {
                let (hashes, rest) = answer.hashes.as_chunks::<32>();
                let is_next = answer.first_piece as usize == first + list.len();
                if !is_next || !rest.is_empty() || hashes.is_empty() {
                    return Err(self.protocol_violation("sent piece hashes with gaps"));
                }
                if list.len() + hashes.len() > count {
                    return Err(self.protocol_violation("sent more piece hashes than requested"));
                }
                list.extend_from_slice(hashes);
            }
            match list.len() == count {
                true => Ok(list),
                false => Err(self.protocol_violation("sent fewer piece hashes than requested")),
            }
        };
        tokio::time::timeout(HASHES_TIMEOUT, receive)
            .await
            .unwrap_or_else(|_| Err(self.timed_out(HASHES_TIMEOUT)))
    }

    /// Waits for the next expected message.
    async fn next_message<T>(&self, stream: &mut Streaming<T>) -> Result<Option<T>, Problem> {
        match tokio::time::timeout(ANSWER_TIMEOUT, stream.message()).await {
            Ok(message) => message.map_err(|status| self.endpoint.problem(status, "peer")),
            Err(_) => Err(self.timed_out(ANSWER_TIMEOUT)),
        }
    }

    /// Streams the availability of `units` units. The first item is a snapshot, expected within
    /// [`ANSWER_TIMEOUT`].
    ///
    /// # Errors
    /// As `PeerService.WatchAvailability`, from the call or as an item;
    /// [`Reason::VerificationFailed`] if the peer violates the protocol.
    pub(crate) async fn availability(
        &self,
        id: FileId,
        units: u32,
    ) -> Result<impl Stream<Item = Result<PeerReport, WatchError>> + Send + use<>, Problem> {
        let request = v1::WatchAvailabilityRequest {
            file_id: id.to_bytes(),
        };
        let mut stream = self
            .call(self.control.clone().watch_availability(request))
            .await?;
        let Some(first) = self.next_message(&mut stream).await? else {
            return Err(
                self.protocol_violation("ended the stream without reporting its availability")
            );
        };
        let client = self.clone();
        let rest = stream
            .map(move |event| event.map_err(|status| client.endpoint.problem(status, "peer")));
        let client = self.clone();
        let events = futures_util::stream::iter([Ok(first)]).chain(rest).enumerate();
        Ok(events.map(move |(index, event)| {
            PeerReport::parse(&client.endpoint, event?, (id, units), index == 0)
        }))
    }

    /// Requests ranges of files; the chunks of the response are not validated.
    ///
    /// # Errors
    /// As `PeerService.Download`.
    pub(crate) async fn download(&self, ranges: &[FileRange]) -> Result<DownloadStream, Problem> {
        let zone = self.locality.labels().zone;
        let zone = zone.map(|zone| zone.to_string()).unwrap_or_default();
        let channel = self.data(Duration::ZERO);
        let answer = download_stream::download(channel, &self.endpoint, ranges, zone);
        tokio::time::timeout(DATA_TIMEOUT, answer)
            .await
            .unwrap_or_else(|_| Err(self.timed_out(DATA_TIMEOUT)))
    }
}

fn grpc_client(channel: Channel) -> PeerServiceClient<TracedChannel> {
    PeerServiceClient::new(traced(channel))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl PeerClient {
        /// A client that never connects.
        pub(crate) fn to_nobody() -> Self {
            let endpoint: Endpoint = "127.0.0.1:1".parse().unwrap();
            Self {
                control: grpc_client(endpoint.lazy_channel()),
                local_address: None,
                locality: Locality::default(),
                connect_time: Duration::ZERO,
                data: Arc::default(),
                endpoint,
            }
        }
    }
}
