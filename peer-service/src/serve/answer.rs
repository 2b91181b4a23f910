//! `Download` and `GetPieceHashes` as a server: gRPC calls by hand, so that chunks go out from where they were read to, and that
//! messages hold what they take for as long as they are in memory. All other calls go on to the generated service.

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
use potluck_core::{Problem, Reason, places::ClientAddress};
use prost::Message;
use tonic::{Status, body::Body, codegen::Service, server::NamedService};

use super::{
    PeerApi, SMALL_REQUEST,
    turns::{Outlet, Turns},
};

/// Largest request for a download, in bytes: as many spans as it may have, 58 bytes each at most.
pub(super) const MAX_DOWNLOAD: usize = 256 * 1024;

/// How long a request may take to come.
const REQUEST_TIME: Duration = Duration::from_secs(10);

/// The calls' paths (gRPC over HTTP/2, "Path").
pub(super) const DOWNLOAD: &str = "/potluck.v1.PeerService/Download";
pub(super) const PIECE_HASHES: &str = "/potluck.v1.PeerService/GetPieceHashes";

/// The peer service with its own way for downloads and lists of piece hashes.
#[derive(Debug, Clone)]
pub struct ByHand<S> {
    api: PeerApi,
    rest: S,
}

impl<S> ByHand<S> {
    /// Answers downloads and lists of piece hashes of `api`, and leaves everything else to `rest`.
    pub(super) const fn new(api: PeerApi, rest: S) -> Self {
        Self { api, rest }
    }
}

impl<S: NamedService> NamedService for ByHand<S> {
    const NAME: &'static str = S::NAME;
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Body>> for ByHand<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.rest.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let api = self.api.clone();
        match request.uri().path() {
            DOWNLOAD => Box::pin(async move { Ok(told(download(api, request).await)) }),
            PIECE_HASHES => Box::pin(async move { Ok(told(piece_hashes(api, request).await)) }),
            _ => Box::pin(self.rest.call(request)),
        }
    }
}

async fn download(api: PeerApi, request: Request<Body>) -> Result<Messages, Status> {
    let outlet = outlet(&request);
    let asked = asked(request, MAX_DOWNLOAD).await?;
    Ok(Messages::new(api.download(asked, outlet).await?))
}

async fn piece_hashes(api: PeerApi, request: Request<Body>) -> Result<Messages, Status> {
    let outlet = outlet(&request);
    let asked = asked(request, SMALL_REQUEST).await?;
    Ok(Messages::new(api.piece_hashes(asked, outlet).await?))
}

fn outlet(request: &Request<Body>) -> Outlet {
    let outlet = request.extensions().get::<Outlet>().cloned();
    // Where connections take no turns, each call is alone.
    outlet.unwrap_or_else(|| Turns::new().outlet(ClientAddress::LOCAL))
}

async fn asked<M: Message + Default>(request: Request<Body>, most: usize) -> Result<M, Status> {
    let asked = tokio::time::timeout(REQUEST_TIME, decode(request.into_body(), most));
    asked
        .await
        .map_err(|_| Problem::new(Reason::TimedOut, "the request did not come in time: ask again"))?
}

fn told(messages: Result<Messages, Status>) -> Response<Body> {
    let messages = match messages {
        Ok(messages) => messages,
        Err(status) => return status.into_http(),
    };
    let mut response = Response::new(Body::new(messages));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// The one message of a request.
async fn decode<M: Message + Default>(body: Body, most: usize) -> Result<M, Status> {
    let bytes = Limited::new(body, most).collect().await;
    let mut bytes = bytes.map_err(Status::from_error)?.to_bytes();
    let malformed = |what: &str| Status::invalid_argument(format!("the request is malformed: {what}"));
    if bytes.len() < 5 {
        return Err(malformed("it has no message"));
    }
    if bytes.get_u8() != 0 {
        return Err(Status::unimplemented("compressed requests are not understood"));
    }
    if bytes.get_u32() as usize != bytes.len() {
        return Err(malformed("it is not one message"));
    }
    M::decode(bytes).map_err(|error| malformed(&error.to_string()))
}

type Framed = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// Messages as they come, and the status that ends them.
struct Messages {
    /// `None` once the end was told.
    chunks: Option<Framed>,
}

impl Messages {
    fn new(chunks: impl Stream<Item = Result<Bytes, Status>> + Send + 'static) -> Self {
        Self {
            chunks: Some(Box::pin(chunks)),
        }
    }
}

impl http_body::Body for Messages {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(chunks) = &mut self.chunks else {
            return Poll::Ready(None);
        };
        let status = match ready!(chunks.as_mut().poll_next(context)) {
            Some(Ok(bytes)) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.chunks = None;
        Poll::Ready(Some(trailers(&status).map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.chunks.is_none()
    }
}

fn trailers(status: &Status) -> Result<HeaderMap, Status> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(trailers)
}
