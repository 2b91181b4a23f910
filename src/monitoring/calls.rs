//! Counts gRPC calls and refusals, and measures their time.
//!
//! A call ends with its trailers, with a failure in its headers, or when its client goes away; the
//! time of a stream is the time it was open. Methods that no service of Potluck has count as
//! `other`, so that a stranger cannot make new label values.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use crate::{Problem, monitoring::metrics::Metrics, proto::DESCRIPTORS};

/// Upper bounds of the times, in seconds: half a decade apart, from a lookup in memory to a stream.
const SECONDS: [f64; 12] = [
    0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 60.0,
];

/// The methods of Potluck's services by the path of a request.
static METHODS: LazyLock<HashMap<String, CalledMethod>> = LazyLock::new(|| {
    let set = FileDescriptorSet::decode(DESCRIPTORS).expect("build.rs wrote the descriptors");
    let mut methods = HashMap::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                // Two small strings for each method, once.
                let called = CalledMethod {
                    service: String::leak(service.name().to_owned()),
                    method: String::leak(method.name().to_owned()),
                };
                methods.insert(path, called);
            }
        }
    }
    methods
});

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CalledMethod {
    service: &'static str,
    method: &'static str,
}

impl CalledMethod {
    fn of(path: &str) -> Self {
        match METHODS.get(path) {
            Some(method) => *method,
            None if path.starts_with("/grpc.health.v1.Health/") => Self {
                service: "Health",
                method: "other",
            },
            None => Self {
                service: "other",
                method: "other",
            },
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndedCall {
    service: &'static str,
    method: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    reason: &'static str,
}

/// Measures the calls of an endpoint. Clones share the metrics.
#[derive(Debug, Clone)]
pub struct CallMetrics(Arc<Families>);

#[derive(Debug)]
struct Families {
    calls: Family<EndedCall, Counter>,
    seconds: Family<CalledMethod, Histogram, fn() -> Histogram>,
    refusals: Family<Refusal, Counter>,
}

impl CallMetrics {
    /// Adds the metrics of calls.
    pub fn new(metrics: &Metrics) -> Self {
        let families = Families {
            calls: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            refusals: Family::default(),
        };
        metrics.register(
            "grpc_calls",
            "gRPC calls that have ended, by service, method and status code",
            families.calls.clone(),
        );
        metrics.register(
            "grpc_call_seconds",
            "Time from the start of a gRPC call to its end",
            families.seconds.clone(),
        );
        metrics.register(
            "grpc_failures",
            "gRPC calls that failed, by the reason in docs/errors.md",
            families.refusals.clone(),
        );
        Self(Arc::new(families))
    }
}

/// A call that has begun. Counts it as cancelled if it is dropped without an end.
#[derive(Debug)]
struct RunningCall {
    families: Arc<Families>,
    called: CalledMethod,
    began: Instant,
    has_ended: bool,
}

impl RunningCall {
    fn begin(families: &Arc<Families>, path: &str) -> Self {
        Self {
            families: Arc::clone(families),
            called: CalledMethod::of(path),
            began: Instant::now(),
            has_ended: false,
        }
    }

    /// Counts the call with the status in these headers or trailers, if there is one.
    fn end_with(&mut self, headers: &HeaderMap) {
        let Some(status) = headers.get("grpc-status") else {
            return;
        };
        // Most calls succeed, and their trailers need no decoding.
        if status.as_bytes() == b"0" {
            return self.end(Code::Ok);
        }
        if let Some(status) = Status::from_header_map(headers) {
            let code = status.code();
            let reason = Problem::from(status).reason.word();
            self.families.refusals.get_or_create(&Refusal { reason }).inc();
            self.end(code);
        }
    }

    fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        let CalledMethod { service, method } = self.called;
        let code = code_name(code);
        let ended = EndedCall {
            service,
            method,
            code,
        };
        self.families.calls.get_or_create(&ended).inc();
        let seconds = self.began.elapsed().as_secs_f64();
        self.families.seconds.get_or_create(&self.called).observe(seconds);
    }
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// The name of a code in gRPC's documentation.
const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

impl<S> Layer<S> for CallMetrics {
    type Service = MeasuredService<S>;

    fn layer(&self, service: S) -> MeasuredService<S> {
        MeasuredService {
            families: Arc::clone(&self.0),
            service,
        }
    }
}

/// A service whose calls are measured.
#[derive(Debug, Clone)]
pub struct MeasuredService<S> {
    families: Arc<Families>,
    service: S,
}

impl<S> Service<Request<Body>> for MeasuredService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut call = RunningCall::begin(&self.families, request.uri().path());
        let answering = self.service.call(request);
        Box::pin(async move {
            let response = answering.await?;
            call.end_with(response.headers());
            if call.has_ended {
                return Ok(response);
            }
            Ok(response.map(|body| Body::new(MeasuredBody { body, call })))
        })
    }
}

/// The answer of a call, whose trailers end the measurement.
#[derive(Debug)]
struct MeasuredBody {
    body: Body,
    call: RunningCall,
}

impl HttpBody for MeasuredBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            self.call.end_with(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tower::{ServiceExt as _, service_fn};

    use super::*;
    use crate::Reason;

    /// The metrics after a call of `path` that `answer` answers.
    async fn after_call(path: &str, answer: Response<Body>, reads_it: bool) -> String {
        let metrics = Metrics::default();
        let answer = std::sync::Mutex::new(Some(answer));
        let service = CallMetrics::new(&metrics).layer(service_fn(move |_: Request<Body>| {
            let answer = answer.lock().unwrap().take().unwrap();
            async move { Ok::<_, std::convert::Infallible>(answer) }
        }));
        let request = Request::post(path).body(Body::empty()).unwrap();
        let response = service.oneshot(request).await.unwrap();
        match reads_it {
            true => drop(response.into_body().collect().await.unwrap()),
            false => drop(response),
        }
        metrics.text()
    }

    fn with_trailers(status: &'static str) -> Response<Body> {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", status.parse().unwrap());
        let body =
            http_body_util::Empty::<Bytes>::new().with_trailers(async move { Some(Ok(trailers)) });
        Response::new(Body::new(body))
    }

    const QUERY: &str = "/potluck.v1.IndexService/Query";

    #[tokio::test]
    async fn a_call_ends_with_its_trailers() {
        let text = after_call(QUERY, with_trailers("0"), true).await;
        let line =
            "potluck_grpc_calls_total{service=\"IndexService\",method=\"Query\",code=\"OK\"} 1";
        assert!(text.contains(line), "{text}");
        let count = "potluck_grpc_call_seconds_count{service=\"IndexService\",method=\"Query\"} 1";
        assert!(text.contains(count), "{text}");
    }

    #[tokio::test]
    async fn a_refusal_counts_with_its_reason() {
        let status = Status::from(Problem::new(Reason::InvalidName, "too long"));
        let text = after_call(QUERY, status.into_http(), true).await;
        assert!(text.contains("code=\"INVALID_ARGUMENT\"} 1"), "{text}");
        let line = "potluck_grpc_failures_total{reason=\"invalid_name\"} 1";
        assert!(text.contains(line), "{text}");
    }

    #[tokio::test]
    async fn a_client_that_goes_away_cancels() {
        let text = after_call(QUERY, with_trailers("0"), false).await;
        assert!(text.contains("code=\"CANCELLED\"} 1"), "{text}");
    }

    #[tokio::test]
    async fn unknown_methods_count_together() {
        let unknown = Status::unimplemented("unknown").into_http();
        let text = after_call("/made.up.Service/Name", unknown, true).await;
        let line = "{service=\"other\",method=\"other\",code=\"UNIMPLEMENTED\"} 1";
        assert!(text.contains(line), "{text}");
        assert!(!text.contains("made"), "{text}");
    }
}
