//! Accepts the connections of browsers on loopback.
//!
//! Invariant: at most [`MAX_CONNECTIONS`] are open. A browser uses up to six of them for a page, one
//! of which carries its events.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use potluck_core::{Problem, Reason};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use super::{PageSources, guard::PageHosts, routes, session::Session};

/// Maximum open connections: a few windows.
const MAX_CONNECTIONS: usize = 32;

/// Time for the head of a request, also on a connection that waits for its next one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum bytes of a request's head: cookies of other programs on loopback may be in it.
const MAX_HEAD: usize = 64 * 1024;

/// Pause after a failed accept, for example when no file descriptors are left.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// The page, ready to be served.
#[derive(Debug)]
pub(crate) struct PageServer {
    listener: TcpListener,
    address: SocketAddr,
    session: Arc<Session>,
}

impl PageServer {
    /// Binds the address.
    ///
    /// # Errors
    /// [`Reason::InvalidArgument`] if other machines could reach it; [`Reason::AddressInUse`].
    pub(crate) async fn bind(address: SocketAddr) -> Result<Self, Problem> {
        if !address.ip().is_loopback() {
            return Err(Problem::new(
                Reason::InvalidArgument,
                format!(
                    "--listen {address} is not on loopback, and the page controls the peer: give a \
                     port on 127.0.0.1, and connect from elsewhere with `ssh -L`"
                ),
            )
            .field("listen"));
        }
        let failed = |error: std::io::Error| {
            Problem::new(
                Reason::AddressInUse,
                format!(
                    "cannot listen on {address}: {error}; choose another address with --listen"
                ),
            )
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        Ok(Self {
            address: listener.local_addr().map_err(failed)?,
            listener,
            session: Arc::new(Session::new()),
        })
    }

    /// The link to the page, which works once.
    pub(crate) fn link(&self) -> String {
        format!("http://{}/?token={}", self.address, self.session.token())
    }

    /// Serves the page until the sources are stopped.
    pub(crate) async fn serve(self, sources: PageSources) {
        let stop = sources.stop.clone();
        let router = routes::router(self.session, PageHosts::new(self.address), sources);
        let (connections, permits) =
            (TaskTracker::new(), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
        loop {
            // All arms are cancel-safe.
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            };
            // Above the limit, the connection is closed.
            if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
                let (router, stop) = (router.clone(), stop.clone());
                connections.spawn(async move {
                    serve_connection(stream, router, stop).await;
                    drop(permit);
                });
            }
        }
        connections.close();
        connections.wait().await;
    }
}

async fn serve_connection(stream: TcpStream, router: Router, stop: CancellationToken) {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let router = router.clone();
        async move { Ok::<_, Infallible>(answer(router, request).await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    // A connection that is dropped ends its streams.
    tokio::select! {
        done = connection => if let Err(error) = done {
            tracing::debug!(%error, "a connection of the page failed");
        },
        () = stop.cancelled() => {}
    }
}

async fn answer(router: Router, request: http::Request<Incoming>) -> http::Response<Body> {
    match router.oneshot(request.map(Body::new)).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
