//! Channels to an endpoint, and calls that name the endpoint in their errors.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tonic::{
    Status,
    transport::{Channel, Uri},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    Problem, Reason,
    grpc::transport::{
        endpoint::{Endpoint, LinkLocal, TlsEndpoint},
        failure,
        probe::{self, FirstAnswer},
        settings::{
            BULK_RATE, CONNECT_TIMEOUT, CONNECTION_WINDOW, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT,
            MAX_BULK_WINDOW, MAX_FRAME, RESPONSE_TIMEOUT, STREAM_WINDOW,
        },
        tcp,
        tls_client::{self, BULK_READ_BUFFER, READ_BUFFER, tls_connector},
    },
    problem::is_from_potluck,
};

impl Endpoint {
    /// Opens a connection and verifies that the server speaks gRPC, within `CONNECT_TIMEOUT` and
    /// `RESPONSE_TIMEOUT`.
    ///
    /// # Errors
    /// [`Reason::Unreachable`] if nothing answers, [`Reason::TimedOut`] if there is no response in
    /// time, [`Reason::NotPotluck`] if the server does not speak gRPC. All name the endpoint.
    pub async fn connect(&self) -> Result<Channel, Problem> {
        let channel = self.open().await?;
        self.probe(channel.clone()).await?;
        Ok(channel)
    }

    /// Asks `grpc.health.v1` on a new connection whether the whole server is serving.
    ///
    /// # Errors
    /// Those of [`Endpoint::connect`], and any error of the health service.
    pub async fn is_serving(&self) -> Result<bool, Problem> {
        let mut health = HealthClient::new(self.open().await?);
        let answer = health.check(HealthCheckRequest::default());
        let response = self.call("health service", RESPONSE_TIMEOUT, answer).await?;
        Ok(response.status() == ServingStatus::Serving)
    }

    /// Whether the server proves with its certificate that it is the expected one; `false` without
    /// TLS. Calls nothing, so that a server that refuses this client can prove it, too.
    pub async fn proves_identity(&self) -> bool {
        match self {
            Self::Tls(endpoint) => tls_client::connect(endpoint, None, READ_BUFFER).await.is_ok(),
            Self::Http(_) | Self::LinkLocal(_) | Self::Unix(_) => false,
        }
    }

    /// Opens a connection within `CONNECT_TIMEOUT`. Does not verify that the server speaks gRPC.
    ///
    /// # Errors
    /// Those of [`Endpoint::connect`] that opening a connection can detect.
    pub async fn open(&self) -> Result<Channel, Problem> {
        self.open_from(None).await
    }

    /// Like [`Endpoint::open`], with `from` as the local address if that can reach the endpoint.
    ///
    /// # Errors
    /// Those of [`Endpoint::open`].
    pub async fn open_from(&self, from: Option<IpAddr>) -> Result<Channel, Problem> {
        let connected = match self {
            Self::Http(uri) => {
                let connector = tcp::http_connector(usable_local(from, uri));
                http_builder(uri).connect_with_connector(connector).await
            }
            Self::LinkLocal(address) => {
                let connector = link_local_connector(address.clone());
                socket_builder().connect_with_connector(connector).await
            }
            Self::Unix(path) => {
                socket_builder()
                    .connect_with_connector(unix_connector(path.clone()))
                    .await
            }
            Self::Tls(endpoint) => {
                let from = local_address(endpoint, from);
                let connector = tls_connector(endpoint.clone(), from, READ_BUFFER);
                socket_builder().connect_with_connector(connector).await
            }
        };
        match connected {
            Ok(channel) => Ok(channel),
            Err(error) => Err(self
                .identify_foreign(failure::connect_problem(&error, self), "service")
                .await),
        }
    }

    /// Verifies that the server speaks gRPC. Any gRPC status is proof: the health service may be
    /// missing or restricted.
    async fn probe(&self, channel: Channel) -> Result<(), Problem> {
        let mut health = HealthClient::new(channel);
        let request = HealthCheckRequest::default();
        let answer = tokio::time::timeout(RESPONSE_TIMEOUT, health.check(request)).await;
        let Err(status) = answer.map_err(|_| self.timed_out("service", RESPONSE_TIMEOUT))? else {
            return Ok(());
        };
        if status.code() == tonic::Code::Unimplemented {
            return Ok(());
        }
        let is_from_service = is_from_potluck(&status);
        let problem = self.explain(status, "service").await;
        match problem.reason {
            Reason::Unreachable | Reason::TimedOut | Reason::NotPotluck => Err(problem),
            // TLS failed.
            Reason::Unauthenticated
            | Reason::NotAMember
            | Reason::CertificateExpired
            | Reason::Revoked
                if !is_from_service =>
            {
                Err(problem)
            }
            _ => Ok(()),
        }
    }

    /// A channel that connects on first use and reconnects after a failure.
    pub fn lazy_channel(&self) -> Channel {
        self.lazy_from(None)
    }

    /// Like [`Endpoint::lazy_channel`], with `from` as the local address if that can reach the
    /// endpoint.
    pub fn lazy_from(&self, from: Option<IpAddr>) -> Channel {
        self.lazy_with(from, READ_BUFFER, |endpoint| endpoint)
    }

    /// Like [`Endpoint::lazy_from`], for bulk data over a path with this round-trip time. The
    /// windows let a stream fill a link of some Gbit/s, up to `MAX_BULK_WINDOW`.
    pub fn lazy_bulk_channel(&self, round_trip: Duration, from: Option<IpAddr>) -> Channel {
        let window = (round_trip.as_secs_f64() * BULK_RATE) as u32;
        let window = window.clamp(STREAM_WINDOW, MAX_BULK_WINDOW);
        self.lazy_with(from, BULK_READ_BUFFER, |endpoint| {
            endpoint
                .initial_stream_window_size(window)
                .initial_connection_window_size(window)
        })
    }

    fn lazy_with(
        &self,
        from: Option<IpAddr>,
        read_buffer: usize,
        set: impl Fn(tonic::transport::Endpoint) -> tonic::transport::Endpoint,
    ) -> Channel {
        match self {
            Self::Http(uri) => {
                let connector = tcp::http_connector(usable_local(from, uri));
                set(http_builder(uri)).connect_with_connector_lazy(connector)
            }
            Self::LinkLocal(address) => set(socket_builder())
                .connect_with_connector_lazy(link_local_connector(address.clone())),
            Self::Unix(path) => {
                set(socket_builder()).connect_with_connector_lazy(unix_connector(path.clone()))
            }
            Self::Tls(endpoint) => {
                let from = local_address(endpoint, from);
                let connector = tls_connector(endpoint.clone(), from, read_buffer);
                set(socket_builder()).connect_with_connector_lazy(connector)
            }
        }
    }

    /// Waits up to `limit` for the response to a call. For a stream, waits only for its start.
    ///
    /// # Errors
    /// [`Reason::TimedOut`] after `limit`; otherwise the result of [`Endpoint::problem`].
    pub async fn call<T>(
        &self,
        service: &str,
        limit: Duration,
        answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Problem> {
        let response = tokio::time::timeout(limit, answer)
            .await
            .map_err(|_| self.timed_out(service, limit))?;
        match response {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(self.explain(status, service).await),
        }
    }

    /// Converts a status like [`Endpoint::problem`], and probes the server if the connection
    /// broke.
    async fn explain(&self, status: Status, service: &str) -> Problem {
        let is_from_service = is_from_potluck(&status);
        let problem = self.problem(status, service);
        match is_from_service {
            true => problem,
            false => self.identify_foreign(problem, service).await,
        }
    }

    /// Probes an unreachable endpoint: a server that is not Potluck may have broken the
    /// connection.
    async fn identify_foreign(&self, problem: Problem, service: &str) -> Problem {
        if !matches!(problem.reason, Reason::Unreachable | Reason::NotPotluck) {
            return problem;
        }
        match probe::first_answer(self).await {
            Some(FirstAnswer::Tls) => failure::needs_tls(service, self),
            Some(FirstAnswer::TlsFailed(reason, why)) => failure::tls_failed(reason, &why, self),
            Some(FirstAnswer::Foreign) => failure::not_http2(service, self),
            Some(FirstAnswer::Http2) | None => problem,
        }
    }

    /// Converts a status from this endpoint, a `service`. The message names the endpoint if it is
    /// unreachable, too slow or not Potluck.
    pub fn problem(&self, status: Status, service: &str) -> Problem {
        failure::problem(status, service, self)
    }

    fn timed_out(&self, service: &str, limit: Duration) -> Problem {
        Problem::new(
            Reason::TimedOut,
            format!("the {service} at {self} did not answer within {limit:?}"),
        )
    }
}

/// Has no deadline for opening a connection: the connector has one.
fn http_builder(uri: &Uri) -> tonic::transport::Endpoint {
    configure(Channel::builder(uri.clone()))
}

fn socket_builder() -> tonic::transport::Endpoint {
    // The host is never resolved: the connector ignores it.
    configure(Channel::from_static("http://localhost")).connect_timeout(CONNECT_TIMEOUT)
}

fn unix_connector(
    path: PathBuf,
) -> impl tower::Service<
    Uri,
    Response = TokioIo<tokio::net::UnixStream>,
    Error = std::io::Error,
    Future: Send,
> + Send
+ 'static {
    tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    })
}

fn link_local_connector(
    address: LinkLocal,
) -> impl tower::Service<
    Uri,
    Response = TokioIo<tokio::net::TcpStream>,
    Error = std::io::Error,
    Future: Send,
> + Send
+ 'static {
    tower::service_fn(move |_: Uri| {
        let address = address.clone();
        async move { tcp::connect_link_local(&address).await.map(TokioIo::new) }
    })
}

/// `from` as the local address of a connection to `uri`, if it can reach it.
fn usable_local(from: Option<IpAddr>, uri: &Uri) -> Option<IpAddr> {
    from.filter(|&from| can_use_as_local(from, uri.host().unwrap_or_default()))
}

/// `from` as the local address of a TLS connection, if it can reach the endpoint.
fn local_address(endpoint: &TlsEndpoint, from: Option<IpAddr>) -> Option<IpAddr> {
    match endpoint.address() {
        Endpoint::Http(uri) => usable_local(from, uri),
        _ => None,
    }
}

/// Whether connections to `host` can use `from` as their local address, and would not use it by
/// default.
fn can_use_as_local(from: IpAddr, host: &str) -> bool {
    if from.is_unspecified() || from == Ipv4Addr::LOCALHOST || from == Ipv6Addr::LOCALHOST {
        return false;
    }
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(to) => from.is_ipv4() == to.is_ipv4() && (!from.is_loopback() || to.is_loopback()),
        Err(_) => !from.is_loopback() || host == "localhost",
    }
}

fn configure(endpoint: tonic::transport::Endpoint) -> tonic::transport::Endpoint {
    endpoint
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_address_is_used_only_if_it_can_reach_the_host() {
        let can = |from: &str, host: &str| can_use_as_local(from.parse().unwrap(), host);
        assert!(can("127.0.0.10", "127.0.0.1") && can("127.0.0.10", "localhost"));
        assert!(can("192.0.2.1", "192.0.2.2") && can("192.0.2.1", "index.example"));
        assert!(
            can("192.0.2.1", "127.0.0.1"),
            "a local index then sees the peer's address"
        );
        assert!(can("2001:db8::1", "[2001:db8::2]"));
        assert!(!can("127.0.0.10", "192.0.2.1") && !can("127.0.0.10", "index.example"));
        assert!(!can("192.0.2.1", "[2001:db8::2]") && !can("2001:db8::1", "192.0.2.1"));
        assert!(!can("0.0.0.0", "192.0.2.1") && !can("::", "::1"));
        assert!(
            !can("127.0.0.1", "127.0.0.1"),
            "the system chooses this address anyway"
        );
    }
}
