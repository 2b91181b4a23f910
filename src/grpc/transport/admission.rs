//! Admission control: a tower layer that bounds the resources of each call, and of all calls of
//! one port.
//!
//! | budget | what is counted | until |
//! |---|---|---|
//! | calls | calls without a response | the response starts |
//! | diagnostics | reflection streams and health watches | the stream ends and is read |
//! | incoming bytes | received bytes of large requests | the service responds |
//! | unread bytes | response bytes | the client reads them |
//!
//! One client gets at most its share of each budget ([`crate::grpc::limiter`]). A call beyond it
//! is rejected with [`Reason::Busy`].
//!
//! A request is collected before it is decoded, with a size limit for its kind of call and a
//! deadline, so that an incomplete request holds only the bytes received. A unary response is
//! collected before it is sent: otherwise HTTP/2 would keep its source alive until the client
//! reads it.
//!
//! Non-goals: bulk data, which has its own limits ([`CallKind::SelfBounded`]), and authorization.

use std::{
    collections::VecDeque,
    fmt,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::BodyExt as _;
use tokio::time::Sleep;
use tonic::{Status, body::Body, transport::server::TcpConnectInfo};
use tower::{Layer, Service, ServiceExt as _};

use crate::{
    Problem, Reason,
    grpc::{
        limiter::{LimitError, MaxShare, PerAddressLimiter, Permit},
        transport::clients::{Activity, ClientConnection},
    },
};

/// Maximum request size of most calls, in bytes: ids and short texts, with room for new fields.
pub const SMALL_REQUEST: usize = 4 * 1024;

/// Maximum bytes of requests in one reflection stream: about a hundred requests.
const MAX_REFLECTION_REQUESTS: usize = 16 * 1024;

/// Maximum duration of a reflection stream: tools ask a few questions and disconnect.
const REFLECTION_TIME: Duration = Duration::from_secs(60);

/// Deadline for receiving a small request.
const SMALL_REQUEST_TIME: Duration = Duration::from_secs(10);

/// Deadline for receiving a large request: 2 MiB at 1 Mbit/s takes about 17 s.
const LARGE_REQUEST_TIME: Duration = Duration::from_secs(20);

/// Maximum calls without a response. Each takes about 10 KiB, including headers and a small
/// request.
const MAX_CALLS: usize = 4096;

/// Maximum concurrent diagnostic streams. Each takes about 40 KiB.
const MAX_DIAGNOSTICS: usize = 128;

/// Overhead in bytes per response: stream, headers and bookkeeping.
const ANSWER_OVERHEAD: usize = 4 * 1024;

/// Size of a response part in bytes: small enough that parts are read in time on a slow link.
const PART: usize = 64 * 1024;

/// When a rejected client may retry.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Maximum header list size of a request, in bytes: several times what gRPC and a proxy send.
pub const MAX_HEADERS: u32 = 8 * 1024;

/// The limits of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallKind {
    /// One request of limited size and one response.
    Unary {
        /// Maximum request size in bytes.
        max_request: usize,
    },
    /// One small request and a stream of responses.
    Watch,
    /// One request of limited size, with responses that the handler bounds.
    SelfBounded {
        /// Maximum request size in bytes.
        max_request: usize,
    },
    /// A watch of the server's health.
    HealthWatch,
    /// A reflection stream.
    Reflection,
    /// A call of the owner. Not limited, but keeps its connection active.
    Trusted,
}

impl CallKind {
    /// A call with a small request and one response.
    pub const SMALL: Self = Self::Unary {
        max_request: SMALL_REQUEST,
    };

    /// The kind of a health or reflection call; [`CallKind::SMALL`] for any other path.
    pub fn of_common(path: &str) -> Self {
        match path {
            "/grpc.health.v1.Health/Watch" => Self::HealthWatch,
            path if path.starts_with("/grpc.reflection.") => Self::Reflection,
            _ => Self::SMALL,
        }
    }

    const fn is_diagnostic(self) -> bool {
        matches!(self, Self::HealthWatch | Self::Reflection)
    }

    /// `None` if requests are a stream or not limited.
    const fn max_request(self) -> Option<usize> {
        match self {
            Self::Unary { max_request } | Self::SelfBounded { max_request } => Some(max_request),
            Self::Watch | Self::HealthWatch => Some(SMALL_REQUEST),
            Self::Reflection | Self::Trusted => None,
        }
    }
}

/// The cost of a call for the rate limiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// A diagnostic call starts. The limiter may reject it.
    Diagnostic,
    /// A response of this many bytes is sent. Counted, never rejected.
    Answer(usize),
}

type Charge = Arc<dyn Fn(Option<IpAddr>, Cost) -> Result<(), Problem> + Send + Sync>;

/// Budgets of a port for all its clients.
#[derive(Debug, Clone, Copy)]
pub struct Budgets {
    /// Maximum bytes of large requests without a response.
    pub incoming: usize,
    /// Maximum bytes of unread responses.
    pub unread: usize,
    /// Maximum share of one client in the budget that other clients leave.
    pub max_share: MaxShare,
}

/// The admission layer. Clones share their budgets.
#[derive(Clone)]
pub struct Admission {
    shared: Arc<AdmissionShared>,
}

struct AdmissionShared {
    kind: fn(&str) -> CallKind,
    calls: PerAddressLimiter,
    diagnostics: PerAddressLimiter,
    incoming: PerAddressLimiter,
    unread: PerAddressLimiter,
    charge: Option<Charge>,
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission")
            .field("calls", &self.shared.calls.in_use())
            .field("diagnostics", &self.shared.diagnostics.in_use())
            .field("incoming", &self.shared.incoming.in_use())
            .field("unread", &self.shared.unread.in_use())
            .finish_non_exhaustive()
    }
}

impl Admission {
    /// A layer with these budgets. `kind` maps a call's path to its limits.
    pub fn new(budgets: Budgets, kind: fn(&str) -> CallKind) -> Self {
        Self::with_charge(budgets, kind, None)
    }

    /// Like [`Admission::new`], with a rate limiter that `charge` calls for each cost of a client.
    pub fn with_rate_limiter(
        budgets: Budgets,
        kind: fn(&str) -> CallKind,
        charge: impl Fn(Option<IpAddr>, Cost) -> Result<(), Problem> + Send + Sync + 'static,
    ) -> Self {
        Self::with_charge(budgets, kind, Some(Arc::new(charge)))
    }

    /// A layer for the owner's calls: no limits, only tracks activity.
    pub fn without_limits() -> Self {
        let budgets = Budgets {
            incoming: 0,
            unread: 0,
            max_share: MaxShare::ALL,
        };
        Self::new(budgets, |_| CallKind::Trusted)
    }

    fn with_charge(budgets: Budgets, kind: fn(&str) -> CallKind, charge: Option<Charge>) -> Self {
        let share = budgets.max_share;
        Self {
            shared: Arc::new(AdmissionShared {
                kind,
                calls: PerAddressLimiter::new(MAX_CALLS, share),
                diagnostics: PerAddressLimiter::new(MAX_DIAGNOSTICS, share),
                incoming: PerAddressLimiter::new(budgets.incoming, share),
                unread: PerAddressLimiter::new(budgets.unread, share),
                charge,
            }),
        }
    }

    /// Bytes of large requests without a response.
    pub fn incoming_bytes(&self) -> usize {
        self.shared.incoming.in_use()
    }

    /// Bytes of unread responses.
    pub fn unread_bytes(&self) -> usize {
        self.shared.unread.in_use()
    }

    /// Diagnostic streams that are open or unread.
    pub fn diagnostics(&self) -> usize {
        self.shared.diagnostics.in_use()
    }
}

impl<S> Layer<S> for Admission {
    type Service = Admitted<S>;

    fn layer(&self, service: S) -> Admitted<S> {
        Admitted {
            shared: Arc::clone(&self.shared),
            service,
        }
    }
}

/// A service behind the admission layer.
#[derive(Clone)]
pub struct Admitted<S> {
    shared: Arc<AdmissionShared>,
    service: S,
}

impl<S> fmt::Debug for Admitted<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admitted").finish_non_exhaustive()
    }
}

type Answering<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S> Service<Request<Body>> for Admitted<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Future: Send, Error: Send>
        + Clone
        + Send
        + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answering<S::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        // The call waits for the inner service after it received the request.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let known = request.extensions().get::<ClientConnection>().cloned();
        let call = AdmittedCall {
            kind: (self.shared.kind)(request.uri().path()),
            client: known.unwrap_or_else(ClientConnection::unknown),
            shared: Arc::clone(&self.shared),
        };
        let activity = call.client.activity();
        let service = self.service.clone();
        Box::pin(async move {
            match call.answer(service, request, activity).await {
                Ok(answer) => answer,
                Err(problem) => Ok(Status::from(problem).into_http()),
            }
        })
    }
}

/// One call and its limits.
struct AdmittedCall {
    kind: CallKind,
    client: ClientConnection,
    shared: Arc<AdmissionShared>,
}

impl AdmittedCall {
    /// Runs the call. The outer error means that it was not admitted.
    async fn answer<S>(
        self,
        mut service: S,
        request: Request<Body>,
        activity: Activity,
    ) -> Result<Result<Response<Body>, S::Error>, Problem>
    where
        S: Service<Request<Body>, Response = Response<Body>>,
    {
        let source = self.client.client();
        let trusted = self.kind == CallKind::Trusted;
        let _permit = match trusted {
            true => None,
            false => Some(
                self.shared
                    .calls
                    .try_acquire(source)
                    .map_err(|why| busy("calls", why))?,
            ),
        };
        let diagnostic = match self.kind.is_diagnostic() {
            true => {
                self.charge(Cost::Diagnostic)?;
                let permit = self.shared.diagnostics.try_acquire(source);
                Some(permit.map_err(|why| busy("calls of this kind", why))?)
            }
            false => None,
        };
        let (mut parts, body) = request.into_parts();
        if let Some(address) = self.client.address() {
            parts.extensions.insert(TcpConnectInfo {
                local_addr: None,
                remote_addr: Some(address),
            });
        }
        if let Some(identity) = self.client.identity() {
            parts.extensions.insert(identity.clone());
        }
        let mut incoming = None;
        let body = match self.kind.max_request() {
            Some(max) => Body::new(http_body_util::Full::new(
                self.collect(body, max, &mut incoming).await?,
            )),
            None if trusted => body,
            None => Body::new(http_body_util::Limited::new(body, MAX_REFLECTION_REQUESTS)),
        };
        let turns = match self.kind {
            CallKind::Trusted | CallKind::SelfBounded { .. } => None,
            _ => Some(Arc::clone(self.client.concurrent_calls())),
        };
        let _turn = match turns {
            Some(turns) => turns.acquire_owned().await.ok(),
            None => None,
        };
        let answered = match service.ready().await {
            Ok(service) => service.call(Request::from_parts(parts, body)).await,
            Err(error) => Err(error),
        };
        let response = match answered {
            Ok(response) => response,
            Err(error) => return Ok(Err(error)),
        };
        drop(incoming);
        let (head, body) = response.into_parts();
        let body = match self.kind {
            CallKind::Unary { .. } => self.whole(body, activity).await?,
            CallKind::SelfBounded { .. } | CallKind::Trusted => Body::new(StreamBody {
                body,
                _activity: activity,
            }),
            CallKind::Watch | CallKind::HealthWatch | CallKind::Reflection => {
                let time = (self.kind == CallKind::Reflection).then_some(REFLECTION_TIME);
                Body::new(CountedBody {
                    body,
                    limit: time.map(|time| Box::pin(tokio::time::sleep(time))),
                    call: self,
                    diagnostic: diagnostic.map(Arc::new),
                    _activity: activity,
                })
            }
        };
        Ok(Ok(Response::from_parts(head, body)))
    }

    fn charge(&self, cost: Cost) -> Result<(), Problem> {
        let Some(charge) = &self.shared.charge else {
            return Ok(());
        };
        charge(self.client.address().map(|address| address.ip()), cost)
    }

    /// Receives the whole request. A request above the small size counts as incoming.
    async fn collect(
        &self,
        mut body: Body,
        max: usize,
        incoming: &mut Option<Permit>,
    ) -> Result<Bytes, Problem> {
        let too_large = || {
            let message = format!("a request of this call may have at most {max} bytes");
            Problem::new(Reason::OutOfRange, message)
        };
        let mut bytes = BytesMut::new();
        let all = async {
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(Problem::from)?;
                let Ok(data) = frame.into_data() else {
                    continue;
                };
                let length = bytes.len() + data.len();
                if length > max + MESSAGE_HEADER {
                    return Err(too_large());
                }
                if length > SMALL_REQUEST + MESSAGE_HEADER {
                    let taken = match incoming {
                        Some(incoming) => incoming.grow(data.len()),
                        None => {
                            let taken = self
                                .shared
                                .incoming
                                .try_acquire_many(self.client.client(), length);
                            taken.map(|taken| *incoming = Some(taken))
                        }
                    };
                    taken.map_err(|why| busy("large requests", why))?;
                }
                // Copied, so that a few bytes do not keep their read buffer alive.
                bytes.extend_from_slice(&data);
                if declared(&bytes).is_some_and(|declared| declared > max) {
                    return Err(too_large());
                }
            }
            Ok(())
        };
        let time = match max > SMALL_REQUEST {
            true => LARGE_REQUEST_TIME,
            false => SMALL_REQUEST_TIME,
        };
        tokio::time::timeout(time, all).await.unwrap_or_else(|_| {
            Err(Problem::new(
                Reason::TimedOut,
                "the request did not arrive in time: try again",
            ))
        })?;
        Ok(bytes.freeze())
    }

    /// Takes budget for a response of `bytes` bytes.
    fn take_unread(&self, bytes: usize) -> Result<Arc<Permit>, Problem> {
        // The limiter counts the response but does not reject it; it rejects the client's next
        // call.
        let _ = self.charge(Cost::Answer(bytes));
        let taken = self
            .shared
            .unread
            .try_acquire_many(self.client.client(), bytes + ANSWER_OVERHEAD);
        taken.map(Arc::new).map_err(|why| {
            if why == LimitError::Full {
                // Frees budget for later calls by closing a connection that does not read.
                self.client.evict_oldest_unread();
            }
            busy("unread answers", why)
        })
    }

    /// Collects the response into parts that count as unread until the client reads them.
    async fn whole(&self, mut body: Body, activity: Activity) -> Result<Body, Problem> {
        let mut data = BytesMut::new();
        let mut single: Option<Bytes> = None;
        let mut trailers = None;
        while let Some(frame) = body.frame().await {
            match frame.map_err(Problem::from)?.into_data() {
                Ok(more) if single.is_none() && data.is_empty() => single = Some(more),
                Ok(more) => {
                    if let Some(first) = single.take() {
                        data.extend_from_slice(&first);
                    }
                    data.extend_from_slice(&more);
                }
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        let mut bytes = single.unwrap_or_else(|| data.freeze());
        let budget = self.take_unread(bytes.len())?;
        let mut parts = VecDeque::new();
        while !bytes.is_empty() {
            let part = bytes.split_to(PART.min(bytes.len()));
            parts.push_back(self.client.count_unread(part, Arc::clone(&budget)));
        }
        Ok(Body::new(UnaryBody {
            parts,
            trailers,
            _activity: activity,
        }))
    }
}

/// Length of a message's header in bytes (gRPC over HTTP/2, "Length-Prefixed-Message").
const MESSAGE_HEADER: usize = 5;

/// The declared message length, if the header is complete.
fn declared(bytes: &[u8]) -> Option<usize> {
    let (header, _) = bytes.split_first_chunk::<MESSAGE_HEADER>()?;
    let [_, length @ ..] = *header;
    usize::try_from(u32::from_be_bytes(length)).ok()
}

fn busy(what: &str, why: LimitError) -> Problem {
    let message = match why {
        LimitError::Full => format!("too many {what} at once: try again"),
        LimitError::AddressShare => format!("too many {what} at once from your address: try again"),
    };
    Problem::new(Reason::Busy, message).retry_after(RETRY_AFTER)
}

/// A complete response in memory.
struct UnaryBody {
    parts: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    _activity: Activity,
}

impl http_body::Body for UnaryBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let next = match self.parts.pop_front() {
            Some(part) => Some(Frame::data(part)),
            None => self.trailers.take().map(Frame::trailers),
        };
        Poll::Ready(next.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty() && self.trailers.is_none()
    }
}

/// A response that keeps its call active until it ends.
struct StreamBody {
    body: Body,
    _activity: Activity,
}

impl http_body::Body for StreamBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// A stream of responses, each counted until the client reads it.
struct CountedBody {
    body: Body,
    limit: Option<Pin<Box<Sleep>>>,
    call: AdmittedCall,
    diagnostic: Option<Arc<Permit>>,
    _activity: Activity,
}

impl http_body::Body for CountedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(limit) = &mut self.limit
            && limit.as_mut().poll(cx).is_ready()
        {
            let problem = Problem::new(
                Reason::TimedOut,
                "the stream was open for too long: open another one",
            );
            return Poll::Ready(Some(Err(problem.into())));
        }
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            end => return Poll::Ready(end),
        };
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(other) => return Poll::Ready(Some(Ok(other))),
        };
        let counted = match self.call.take_unread(data.len()) {
            Ok(budget) => self.call.client.count_unread(data, budget),
            Err(problem) => return Poll::Ready(Some(Err(problem.into()))),
        };
        let counted = match &self.diagnostic {
            // An unread response holds its permit even after the stream ended.
            Some(place) => hold(counted, Arc::clone(place)),
            None => counted,
        };
        Poll::Ready(Some(Ok(Frame::data(counted))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// Wraps `bytes` so that they hold the permit until the last reference to their memory is dropped.
fn hold(bytes: Bytes, place: Arc<Permit>) -> Bytes {
    struct BytesWithPermit(
        Bytes,
        #[allow(dead_code, reason = "held until it is dropped")] Arc<Permit>,
    );
    impl AsRef<[u8]> for BytesWithPermit {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    Bytes::from_owner(BytesWithPermit(bytes, place))
}
