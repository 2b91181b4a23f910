//! Traces over several processes.

use std::{collections::HashSet, sync::Arc};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::Span,
};
use parking_lot::Mutex;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use crate::sandbox::Sandbox;

/// A span with the program that made it.
#[derive(Debug, Clone)]
struct Exported {
    program: String,
    process: i64,
    span: Span,
}

/// A collector that keeps all spans.
#[derive(Debug, Clone, Default)]
struct Collector(Arc<Mutex<Vec<Exported>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource_spans in request.into_inner().resource_spans {
            let attributes = resource_spans.resource.unwrap_or_default().attributes;
            let value = |key: &str| {
                let found = attributes.iter().find(|attribute| attribute.key == key);
                found.and_then(|attribute| attribute.value.clone()?.value)
            };
            let Some(Value::StringValue(program)) = value("service.name") else {
                return Err(Status::invalid_argument("no service.name"));
            };
            let Some(Value::IntValue(process)) = value("process.pid") else {
                return Err(Status::invalid_argument("no process.pid"));
            };
            let spans = resource_spans
                .scope_spans
                .into_iter()
                .flat_map(|scope| scope.spans);
            self.0.lock().extend(spans.map(|span| Exported {
                program: program.clone(),
                process,
                span,
            }));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Starts a collector; returns its URL, too.
    async fn start() -> (Self, String) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let collector = Self::default();
        let service = TraceServiceServer::new(collector.clone());
        let incoming = TcpListenerStream::new(listener);
        tokio::spawn(
            Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        (collector, url)
    }

    /// The spans of the only trace that has a root of this name.
    fn trace(&self, root: &str) -> Vec<Exported> {
        let spans = self.0.lock().clone();
        let is_root = |it: &&Exported| it.span.name == root && it.span.parent_span_id.is_empty();
        let roots: Vec<_> = spans.iter().filter(is_root).collect();
        assert_eq!(roots.len(), 1, "{roots:?}");
        let id = roots[0].span.trace_id.clone();
        spans.into_iter().filter(|it| it.span.trace_id == id).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_is_one_trace_over_the_command_the_index_and_every_peer_that_served_it() {
    let (collector, url) = Collector::start().await;
    let sandbox = Sandbox::with_index_options(&["--otlp", &url]);
    let share = |home: &str| {
        // Slow enough that both peers are needed.
        let peer = sandbox.peer(home, &["--otlp", &url, "--upload-limit", "4MiB/s"]);
        sandbox
            .run(&["--peer", &peer.control(), "share", "content.bin"])
            .expect(0);
        peer
    };
    sandbox.file("content.bin", 6_000_000, 7);
    let (one, two) = (share("one"), share("two"));
    let got = sandbox.run(&["--otlp", &url, "--json", "get", "content.bin", "-o", "copy.bin"]);
    let done = got.expect(0).objects().pop().unwrap();
    assert_eq!(done["sources"].as_array().unwrap().len(), 2, "{done}");
    let peers = HashSet::from([i64::from(one.id()), i64::from(two.id())]);
    // Programs send their last spans when they stop.
    for mut program in [one, two] {
        assert!(program.terminate().success());
    }
    sandbox.stop_index();

    let trace = collector.trace("get");
    let made = |program: &str, name: &str| -> HashSet<i64> {
        let spans = trace
            .iter()
            .filter(|it| it.program == program && it.span.name == name);
        spans.map(|it| it.process).collect()
    };
    assert_eq!(made("potluck-peer", "potluck.v1.PeerService/Download"), peers);
    assert_eq!(made("potluck-index", "potluck.v1.IndexService/Query").len(), 1);
    assert_eq!(
        made("potluck", "potluck.v1.ControlService/StartTransfer").len(),
        1
    );
    assert_eq!(made("potluck", "download").len(), 1);
    // Every span but the root has a parent in the same trace.
    let ids: HashSet<_> = trace.iter().map(|it| &it.span.span_id).collect();
    for it in trace.iter().filter(|it| it.span.name != "get") {
        assert!(ids.contains(&it.span.parent_span_id), "{it:?}");
    }
}

#[test]
fn a_collector_that_does_not_answer_delays_no_command_for_long() {
    let sandbox = Sandbox::without_index();
    sandbox.file("content.bin", 1000, 7);
    sandbox
        .run(&["--otlp", "http://127.0.0.1:1", "id", "content.bin"])
        .expect(0);
}
