//! Traces over several processes: spans exported with OTLP, and their context in gRPC metadata.
//!
//! A span belongs to a trace if its target is [`TARGET`]: make it with `debug_span!`, so that the
//! default log does not show it. A client adds the context of the current span to each call
//! ([`TraceContext`], [`add_to`]) as W3C `traceparent`; the server's span becomes its child
//! ([`set_parent`]). Without `--otlp`, no such span is enabled, and a call costs one check.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use http::{HeaderMap, HeaderValue};
use opentelemetry::{
    Context, KeyValue,
    trace::{
        SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState,
        TracerProvider as _,
    },
};
use opentelemetry_otlp::{WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, Tracer},
};
use tonic::{
    Request, Status,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Uri},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::grpc::transport::ClientConnection;

/// The target of spans that are exported.
pub const TARGET: &str = "potluck::trace";

/// The header of W3C Trace Context.
const HEADER: &str = "traceparent";

/// Spans that may wait for the collector; each has a few hundred bytes. A fast download makes a
/// thousand spans a second at each end.
const MAX_WAITING: usize = 8192;

/// How often waiting spans are sent.
const SEND_EVERY: Duration = Duration::from_secs(1);

/// How long the last spans may take at the end.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Whether this process exports traces.
static IS_ON: AtomicBool = AtomicBool::new(false);

/// The export of traces. Shut it down at the end of the process, or the last spans are lost.
#[derive(Debug)]
pub struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// No export.
    pub const fn off() -> Self {
        Self(None)
    }

    /// Exports to the collector at `url`. Connects later, and as often as necessary. Must be called
    /// in a tokio runtime.
    pub(super) fn export(url: &Uri, program: &'static str) -> Self {
        let channel = Channel::builder(url.clone()).connect_lazy();
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_channel(channel)
            .with_timeout(LAST_SPANS)
            .build();
        let exporter = match exporter {
            Ok(exporter) => exporter,
            Err(error) => {
                eprintln!("{program}: no traces are exported: {error}");
                return Self::off();
            }
        };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(MAX_WAITING)
            .with_scheduled_delay(SEND_EVERY)
            .build();
        let processor = BatchSpanProcessor::builder(exporter)
            .with_batch_config(batches)
            .build();
        let resource = Resource::builder()
            .with_service_name(program)
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("process.pid", i64::from(std::process::id())))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_resource(resource)
            .build();
        IS_ON.store(true, Ordering::Relaxed);
        Self(Some(provider))
    }

    pub(super) fn tracer(&self) -> Option<Tracer> {
        self.0.as_ref().map(|provider| provider.tracer("potluck"))
    }

    /// Sends the last spans.
    pub async fn shut_down(self) {
        let Some(provider) = self.0 else { return };
        let stop = move || provider.shutdown_with_timeout(LAST_SPANS);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(stop).await {
            tracing::warn!(%error, "the last spans were not exported");
        }
    }
}

/// Adds the current span's context to each call of a client.
#[derive(Debug, Clone, Copy, Default)]
pub struct TraceContext;

/// A channel whose calls carry the context of the current span.
pub type TracedChannel = InterceptedService<Channel, TraceContext>;

/// Makes the calls of a channel carry the context of the current span.
pub fn traced(channel: Channel) -> TracedChannel {
    InterceptedService::new(channel, TraceContext)
}

impl Interceptor for TraceContext {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = current_parent() {
            let value = value.try_into().expect("a traceparent is ASCII");
            request.metadata_mut().insert(HEADER, value);
        }
        Ok(request)
    }
}

/// Adds the current span's context to the headers of a call.
pub fn add_to(headers: &mut HeaderMap) {
    if let Some(value) = current_parent()
        && let Ok(value) = HeaderValue::try_from(value)
    {
        headers.insert(HEADER, value);
    }
}

/// Makes `span` a child of the caller's span, if the headers name one.
pub fn set_parent(span: &Span, headers: &HeaderMap) {
    if !IS_ON.load(Ordering::Relaxed) || span.is_disabled() {
        return;
    }
    let value = headers.get(HEADER).and_then(|value| value.to_str().ok());
    if let Some(parent) = value.and_then(parse) {
        // Fails only without an exporter.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

/// The span of a call that a server answers, as a child of the caller's span. For
/// [`tonic::transport::Server::trace_fn`].
pub fn server_span(request: &http::Request<()>) -> Span {
    let method = request.uri().path();
    let client = request.extensions().get::<ClientConnection>();
    let span = tracing::debug_span!(
        target: TARGET,
        "call",
        otel.name = method.trim_start_matches('/'),
        otel.kind = "server",
        client = client.and_then(ClientConnection::address).map(tracing::field::display)
    );
    set_parent(&span, request.headers());
    span
}

/// The context of the current span as the value of a header.
fn current_parent() -> Option<String> {
    if !IS_ON.load(Ordering::Relaxed) {
        return None;
    }
    let context = Span::current().context();
    let span = context.span();
    let span = span.span_context();
    let text = || {
        format!(
            "00-{}-{}-{:02x}",
            span.trace_id(),
            span.span_id(),
            span.trace_flags()
        )
    };
    span.is_valid().then(text)
}

/// Parses a `traceparent`, as in section 3.2 of W3C Trace Context. A later version may have more
/// fields.
fn parse(text: &str) -> Option<SpanContext> {
    let mut fields = text.split('-');
    let (version, trace, span, flags) =
        (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let is_known = version != "00" || fields.next().is_none();
    let is_hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_valid = is_known
        && is_hex(version, 2)
        && version != "ff"
        && is_hex(trace, 32)
        && is_hex(span, 16)
        && is_hex(flags, 2);
    if !is_valid {
        return None;
    }
    let flags = u8::from_str_radix(flags, 16).ok()?;
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(flags) & TraceFlags::SAMPLED,
        true,
        TraceState::NONE,
    );
    context.is_valid().then_some(context)
}

/// Parses the URL of a collector.
///
/// # Errors
/// What to give instead.
pub fn parse_url(text: &str) -> Result<Uri, String> {
    let advice = "give the URL of a collector's gRPC port, such as http://127.0.0.1:4317";
    let url: Uri = text.parse().map_err(|_| advice.to_owned())?;
    match (url.scheme_str(), url.authority()) {
        (Some("http"), Some(_)) => Ok(url),
        (Some("https"), _) => Err(format!(
            "traces are exported without TLS, to an agent on this machine: {advice}"
        )),
        _ => Err(advice.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_those_of_the_specification() {
        let example = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = parse(example).unwrap();
        assert_eq!(context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(context.is_sampled() && context.is_remote());
        assert!(parse(&format!("01{}-more", &example[2..])).is_some());
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_collector_has_an_http_url() {
        assert!(parse_url("http://127.0.0.1:4317").is_ok());
        assert!(
            parse_url("https://a.example:4317")
                .unwrap_err()
                .contains("without TLS")
        );
        assert!(parse_url("127.0.0.1:4317").is_err());
    }
}
