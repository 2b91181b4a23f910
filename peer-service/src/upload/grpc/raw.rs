//! A hand-written gRPC server for `Download` and `GetPieceHashes`.
//!
//! It sends chunks without copying them, and ties permits to the memory of each message. All other
//! calls go to the generated service.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use futures_util::Stream;
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body::Frame;
use http_body_util::{BodyExt as _, Limited};
use potluck_core::{
    Problem, Reason,
    grpc::{
        limiter::ClientAddress,
        transport::{MAX_MESSAGE, admission::SMALL_REQUEST},
    },
    proto::v1::peer_service_server::PeerServiceServer,
};
use prost::Message;
use tonic::{Status, body::Body, codegen::Service, server::NamedService};
use tracing::Span;

use crate::upload::{
    grpc::service::PeerApi,
    scheduling::scheduler::{ConnectionHandle, SendScheduler},
};

/// Maximum size of a `Download` request, in bytes: the maximum number of spans at up to 58 bytes
/// each.
pub(crate) const MAX_DOWNLOAD: usize = 256 * 1024;

/// How long a request may take to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Paths of the calls (gRPC over HTTP/2, "Path").
pub(crate) const DOWNLOAD: &str = "/potluck.v1.PeerService/Download";
pub(crate) const PIECE_HASHES: &str = "/potluck.v1.PeerService/GetPieceHashes";

/// The peer service, with hand-written handlers for `Download` and `GetPieceHashes`.
#[derive(Debug, Clone)]
pub struct RawGrpcService<S> {
    api: PeerApi,
    generated: S,
}

impl PeerApi {
    /// The tonic service for all calls of `PeerService`.
    pub fn into_service(self) -> RawGrpcService<PeerServiceServer<Self>> {
        let generated = PeerServiceServer::new(self.clone())
            .max_decoding_message_size(SMALL_REQUEST)
            .max_encoding_message_size(MAX_MESSAGE);
        RawGrpcService { api: self, generated }
    }
}

impl<S: NamedService> NamedService for RawGrpcService<S> {
    const NAME: &'static str = S::NAME;
}

type ResponseFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Body>> for RawGrpcService<S>
where
    S: Service<
            Request<Body>,
            Response = Response<Body>,
            Error = Infallible,
            Future: Send + 'static,
        >,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.generated.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> ResponseFuture {
        let api = self.api.clone();
        match request.uri().path() {
            DOWNLOAD => Box::pin(async move { Ok(response(download(api, request).await)) }),
            PIECE_HASHES => Box::pin(async move { Ok(response(piece_hashes(api, request).await)) }),
            _ => Box::pin(self.generated.call(request)),
        }
    }
}

async fn download(api: PeerApi, request: Request<Body>) -> Result<ResponseBody, Status> {
    let connection = connection_handle(&request);
    let requested = read_request(request, MAX_DOWNLOAD).await?;
    Ok(ResponseBody::new(api.download(requested, connection).await?))
}

async fn piece_hashes(api: PeerApi, request: Request<Body>) -> Result<ResponseBody, Status> {
    let connection = connection_handle(&request);
    let requested = read_request(request, SMALL_REQUEST).await?;
    Ok(ResponseBody::new(api.piece_hashes(requested, connection).await?))
}

fn connection_handle(request: &Request<Body>) -> ConnectionHandle {
    let connection = request.extensions().get::<ConnectionHandle>().cloned();
    // If the server has no scheduler, each call gets one of its own.
    connection.unwrap_or_else(|| SendScheduler::new().add_connection(ClientAddress::LOCAL))
}

async fn read_request<M: Message + Default>(
    request: Request<Body>,
    max: usize,
) -> Result<M, Status> {
    let requested = tokio::time::timeout(REQUEST_TIMEOUT, decode(request.into_body(), max));
    requested.await.map_err(|_| {
        Problem::new(Reason::TimedOut, "the request did not arrive in time: try again")
    })?
}

fn response(messages: Result<ResponseBody, Status>) -> Response<Body> {
    let messages = match messages {
        Ok(messages) => messages,
        Err(status) => return status.into_http(),
    };
    let mut response = Response::new(Body::new(messages));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// Decodes the single message of a request.
async fn decode<M: Message + Default>(body: Body, max: usize) -> Result<M, Status> {
    let bytes = Limited::new(body, max).collect().await;
    let mut bytes = bytes.map_err(Status::from_error)?.to_bytes();
    let malformed =
        |what: &str| Status::invalid_argument(format!("the request is malformed: {what}"));
    if bytes.len() < 5 {
        return Err(malformed("it contains no message"));
    }
    if bytes.get_u8() != 0 {
        return Err(Status::unimplemented("compressed requests are not supported"));
    }
    if bytes.get_u32() as usize != bytes.len() {
        return Err(malformed("it does not contain exactly one message"));
    }
    M::decode(bytes).map_err(|error| malformed(&error.to_string()))
}

type FrameStream = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// The response body: the messages, then the status as trailers.
struct ResponseBody {
    /// The span of the call, which ends with the response.
    _span: Span,
    /// `None` after the trailers were sent.
    frames: Option<FrameStream>,
}

impl ResponseBody {
    fn new(chunks: impl Stream<Item = Result<Bytes, Status>> + Send + 'static) -> Self {
        Self {
            _span: Span::current(),
            frames: Some(Box::pin(chunks)),
        }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(chunks) = &mut self.frames else {
            return Poll::Ready(None);
        };
        let status = match ready!(chunks.as_mut().poll_next(context)) {
            Some(Ok(bytes)) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.frames = None;
        Poll::Ready(Some(trailers(&status).map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_none()
    }
}

fn trailers(status: &Status) -> Result<HeaderMap, Status> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(trailers)
}
