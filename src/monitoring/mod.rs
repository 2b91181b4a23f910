//! The endpoint for monitoring (`--metrics`): health checks and metrics over plain HTTP.
//!
//! | path | answer |
//! |---|---|
//! | `/healthz` | 200 while the process runs |
//! | `/readyz` | 200 while the service can do its work, otherwise 503 |
//! | `/metrics` | [`Metrics`] as Prometheus text |
//!
//! Health checks use it where the service itself requires a certificate. Its answers have no names,
//! ids or addresses, so it needs no encryption; it is on only if the operator gives an address.
//!
//! Invariant: memory is bounded. At most 16 connections are open, each for one request and at most
//! five seconds.

mod calls;
mod metrics;
mod process;
mod readiness;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, header::CONTENT_TYPE};
use http_body_util::{Empty, Full};
use hyper::{body::Incoming, client, server, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    calls::CallMetrics,
    metrics::{Gather, Metrics, Values},
    readiness::Readiness,
};
use crate::{Problem, Reason, monitoring::process::ProcessMetrics};

/// Maximum open connections: a few health checks and a Prometheus at once.
const MAX_CONNECTIONS: usize = 16;

/// Time for a connection with its only request: these are a few hundred bytes.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum bytes of a request's head; the least that hyper accepts.
const MAX_HEAD: usize = 8 * 1024;

/// Pause after a failed accept, for example when no file descriptors are left.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// The content type of Prometheus text.
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Binds the endpoint of a service, and serves it in a task of its own until `stop`.
///
/// # Errors
/// [`Reason::InvalidAddress`] if the address cannot be used.
pub async fn start(
    address: SocketAddr,
    readiness: Readiness,
    metrics: Metrics,
    stop: CancellationToken,
) -> Result<(), Problem> {
    let listener = TcpListener::bind(address).await.map_err(|error| {
        Problem::new(
            Reason::InvalidAddress,
            format!("cannot serve --metrics on {address}: {error}; give another address"),
        )
        .field("metrics")
    })?;
    metrics.gather_from(ProcessMetrics {
        readiness: readiness.clone(),
    });
    tokio::spawn(serve(listener, readiness, metrics, stop));
    Ok(())
}

async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let (connections, permits) = (TaskTracker::new(), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
    loop {
        // All arms are cancel-safe.
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        // Above the limit, the connection is closed.
        if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
            let (readiness, metrics) = (readiness.clone(), metrics.clone());
            connections.spawn(async move {
                serve_connection(stream, readiness, metrics).await;
                drop(permit);
            });
        }
    }
}

async fn serve_connection(stream: TcpStream, readiness: Readiness, metrics: Metrics) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (is_ready, metrics) = (readiness.is_ready(), metrics.clone());
        async move {
            let (method, path) = (request.method(), request.uri().path());
            Ok::<_, Infallible>(answer(method, path, is_ready, metrics).await)
        }
    });
    let connection = server::conn::http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a request for monitoring failed"),
        Err(_) => tracing::debug!("a request for monitoring timed out"),
    }
}

async fn answer(
    method: &Method,
    path: &str,
    is_ready: bool,
    metrics: Metrics,
) -> Response<Full<Bytes>> {
    let text = |status, text: &'static str| respond(status, "text/plain", text.into());
    match (method, path) {
        (&Method::GET | &Method::HEAD, "/healthz") => text(StatusCode::OK, "ok\n"),
        (&Method::GET | &Method::HEAD, "/readyz") => match is_ready {
            true => text(StatusCode::OK, "ready\n"),
            false => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        },
        (&Method::GET | &Method::HEAD, "/metrics") => {
            // Gathering may read the disk.
            let gathered = tokio::task::spawn_blocking(move || metrics.text()).await;
            match gathered {
                Ok(gathered) => respond(StatusCode::OK, PROMETHEUS_TEXT, gathered.into()),
                Err(_) => text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "gathering failed: see the log\n",
                ),
            }
        }
        (_, "/healthz" | "/readyz" | "/metrics") => {
            text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n")
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /healthz, /readyz and /metrics\n",
        ),
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let content_type = http::HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// Whether a page of a monitoring endpoint, such as `http://127.0.0.1:9313/readyz`, answers with
/// success.
///
/// # Errors
/// [`Reason::InvalidAddress`] if this is not an `http` URL with a port; [`Reason::Unreachable`].
pub async fn check(page: &Uri) -> Result<bool, Problem> {
    let unreachable =
        |why: String| Problem::new(Reason::Unreachable, format!("cannot reach {page}: {why}"));
    let authority = page
        .authority()
        .filter(|authority| page.scheme_str() == Some("http") && authority.port().is_some());
    let authority = authority.ok_or_else(|| {
        Problem::new(
            Reason::InvalidAddress,
            format!("`{page}` is not a page to check: give http://HOST:PORT/readyz"),
        )
    })?;
    let request = Request::get(page.path())
        .header(http::header::HOST, authority.as_str())
        .body(Empty::<Bytes>::new())
        .map_err(|error| unreachable(error.to_string()))?;
    let ask = async {
        let stream = TcpStream::connect(authority.as_str())
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        // Ends with `sender`. The request reports why the connection failed.
        tokio::spawn(connection);
        let answer = sender.send_request(request).await;
        answer.map_err(|error| unreachable(error.to_string()))
    };
    match timeout(CONNECTION_TIMEOUT, ask).await {
        Ok(answer) => Ok(answer?.status().is_success()),
        Err(_) => Err(unreachable("it does not answer in time".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// An endpoint, and the URL of a page of it.
    async fn endpoint(readiness: &Readiness) -> impl Fn(&str) -> Uri {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, metrics) = (CancellationToken::new(), Metrics::default());
        metrics.gather_from(ProcessMetrics {
            readiness: readiness.clone(),
        });
        tokio::spawn(serve(listener, readiness.clone(), metrics, stop));
        move |page| format!("http://{address}{page}").parse().unwrap()
    }

    #[tokio::test]
    async fn a_service_is_healthy_before_it_is_ready() {
        let readiness = Readiness::default();
        let page = endpoint(&readiness).await;
        assert!(check(&page("/healthz")).await.unwrap());
        assert!(!check(&page("/readyz")).await.unwrap());
        readiness.set(true);
        assert!(check(&page("/readyz")).await.unwrap());
        assert!(!check(&page("/other")).await.unwrap());
    }

    #[tokio::test]
    async fn metrics_are_prometheus_text() {
        let readiness = Readiness::default();
        readiness.set(true);
        let page = endpoint(&readiness).await("/metrics");
        let mut stream = TcpStream::connect(page.authority().unwrap().as_str())
            .await
            .unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.contains("content-type: text/plain; version=0.0.4"), "{text}");
        assert!(text.contains("\npotluck_ready 1.0\n"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_nothing_is_disconnected() {
        let page = endpoint(&Readiness::default()).await("/");
        let mut silent = TcpStream::connect(page.authority().unwrap().as_str())
            .await
            .unwrap();
        assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_page_needs_http_and_a_port() {
        for url in ["https://a.example:1/readyz", "http://a.example/readyz", "/readyz"] {
            let problem = check(&url.parse().unwrap()).await.unwrap_err();
            assert_eq!(problem.reason, Reason::InvalidAddress, "{url}");
        }
    }
}
