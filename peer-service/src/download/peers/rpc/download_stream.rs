//! The client side of `Download`: a hand-written gRPC call that returns chunk data without copying
//! it.
//!
//! Invariant: memory is bounded by the connection's flow control windows plus one message in an
//! unusual encoding.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{
    Method, Request, Response, StatusCode,
    header::{CONTENT_TYPE, TE},
};
use http_body_util::{BodyExt as _, Full};
use potluck_core::{
    Problem, Reason,
    grpc::{
        download_codec::{ChunkDecoder, ChunkSlice},
        transport::Endpoint,
    },
    process::traces,
    proto::v1,
};
use prost::Message as _;
use tonic::{Code, Status, body::Body, transport::Channel};
use tower::ServiceExt as _;

use crate::content::FileRange;

/// The path of the call (gRPC over HTTP/2, "Path").
const PATH: &str = "/potluck.v1.PeerService/Download";

/// The response stream of a `Download` call.
#[derive(Debug)]
pub(crate) struct DownloadStream {
    endpoint: Endpoint,
    body: Body,
    decoder: ChunkDecoder,
}

/// Requests ranges of files.
///
/// # Errors
/// As `PeerService.Download`, and if no peer or a different service answers.
pub(crate) async fn download(
    channel: Channel,
    endpoint: &Endpoint,
    ranges: &[FileRange],
    zone: String,
) -> Result<DownloadStream, Problem> {
    let message = v1::DownloadRequest {
        spans: ranges.iter().map(Into::into).collect(),
        zone,
    };
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(PATH)
        .header(TE, "trailers")
        .header(CONTENT_TYPE, "application/grpc")
        .body(Body::new(Full::new(encode_framed(&message))))
        .map_err(|error| {
            Problem::new(Reason::Internal, format!("cannot build a request: {error}"))
        })?;
    traces::add_to(request.headers_mut());
    let answer = channel.oneshot(request).await;
    let answer =
        answer.map_err(|error| endpoint.problem(Status::from_error(error.into()), "peer"))?;
    error_status(&answer).map_or(Ok(()), |status| Err(endpoint.problem(status, "peer")))?;
    Ok(DownloadStream {
        endpoint: endpoint.clone(),
        body: answer.into_body(),
        decoder: ChunkDecoder::default(),
    })
}

impl From<&FileRange> for v1::Span {
    fn from(range: &FileRange) -> Self {
        Self {
            file_id: range.id.to_bytes(),
            offset: range.range.start,
            length: range.len(),
        }
    }
}

/// A message with the length prefix of gRPC.
fn encode_framed(message: &v1::DownloadRequest) -> Bytes {
    let len = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(5 + len);
    bytes.put_u8(0);
    // The length fits: a request has at most 4,096 spans.
    bytes.put_u32(len as u32);
    message.encode_raw(&mut bytes);
    bytes.freeze()
}

/// The status of a response that carries only an error.
fn error_status(answer: &Response<Body>) -> Option<Status> {
    let status =
        Status::from_header_map(answer.headers()).filter(|status| status.code() != Code::Ok);
    let foreign = || Status::unknown(format!("answered HTTP {}", answer.status()));
    status.or_else(|| (answer.status() != StatusCode::OK).then(foreign))
}

impl DownloadStream {
    /// The next data; `None` at a regular end. Cancel-safe.
    ///
    /// # Errors
    /// As `PeerService.Download`; `NOT_POTLUCK` if the stream does not carry chunks.
    pub(crate) async fn next(&mut self) -> Result<Option<ChunkSlice>, Problem> {
        loop {
            match self.decoder.next_slice() {
                Ok(Some(part)) => return Ok(Some(part)),
                Ok(None) => {}
                Err(error) => return Err(Problem::new(Reason::NotPotluck, error.to_string())),
            }
            let Some(frame) = self.body.frame().await else {
                // A stream that the sender aborted ends without a status.
                return Err(Problem::new(Reason::Cancelled, "the peer aborted the stream"));
            };
            let frame = frame.map_err(|status| self.endpoint.problem(status, "peer"))?;
            match frame.into_data() {
                Ok(bytes) => self.decoder.push(bytes),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    return self.end(Status::from_header_map(&trailers));
                }
            }
        }
    }

    fn end(&self, status: Option<Status>) -> Result<Option<ChunkSlice>, Problem> {
        match status {
            Some(status) if status.code() != Code::Ok => Err(self.endpoint.problem(status, "peer")),
            _ => match self.decoder.finish() {
                Ok(()) => Ok(None),
                Err(error) => Err(Problem::new(Reason::NotPotluck, error.to_string())),
            },
        }
    }
}
