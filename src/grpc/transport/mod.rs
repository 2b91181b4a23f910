//! Endpoints, channels and servers with shared HTTP/2 settings.

mod accept;
pub mod admission;
mod clients;
mod failure;
mod health;
mod probe;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tonic::{
    Status,
    transport::{Channel, Server, Uri},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

pub use self::{
    accept::{Accept, Connection, connections},
    clients::{Activity, ClientConnection, IDLE_TIMEOUT, UNREAD_GRACE},
    health::{Health, with_health_and_reflection},
};
use crate::{Problem, Reason, problem::is_from_potluck};

/// Receive window of a stream, in bytes: two of the largest chunks, so that a sender on a LAN
/// never waits for a window update.
pub const STREAM_WINDOW: u32 = 2 * 1024 * 1024;

/// Receive window of a connection, in bytes: four streams at full window.
pub const CONNECTION_WINDOW: u32 = 4 * STREAM_WINDOW;

/// Maximum window for bulk data over a long path, in bytes. Bounds the unrequested data that a
/// peer can send before it is detected.
pub const MAX_BULK_WINDOW: u32 = 16 * 1024 * 1024;

/// Rate that a window for bulk data must sustain, in bytes per second: twice 1 Gbit/s, since a
/// window update is sent after half of it is used.
const BULK_RATE: f64 = 2.0 * 125_000_000.0;

/// Maximum HTTP/2 frame size that a receiver accepts, in bytes: 256 KiB of data with headers, and
/// some room. The default of 16 KiB would split that into many frames.
pub const MAX_FRAME: u32 = 512 * 1024;

/// Maximum message size that a receiver decodes, in bytes: larger than the largest page of
/// results.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// Deadline for opening a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Deadline for a server that accepted a connection to prove that it speaks gRPC.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Interval of keepalive pings on a connection without traffic.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How long a keepalive ping may stay unanswered before the connection counts as dead.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum concurrent streams per connection.
pub const MAX_STREAMS: u32 = 1024;

/// Address of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// TCP: `http://HOST:PORT`, or `HOST:PORT`.
    Http(Uri),
    /// TCP at a link-local address with the name or number of a network interface:
    /// `http://[ADDR%INTERFACE]:PORT`.
    LinkLocal(LinkLocal),
    /// Unix socket: `unix:PATH`.
    Unix(PathBuf),
}

/// A link-local IPv6 address with its zone, the network interface (RFC 4007, section 11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkLocal {
    address: Ipv6Addr,
    zone: String,
    port: u16,
}

impl LinkLocal {
    /// Parses `[ADDR%INTERFACE]:PORT`; `None` for any other text.
    fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.strip_prefix('[')?.rsplit_once("]:")?;
        let (address, zone) = host.split_once('%')?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '@' | ':');
        if zone.is_empty() || zone.len() > MAX_ZONE || !zone.chars().all(plain) {
            return None;
        }
        Some(Self {
            address: address.parse().ok()?,
            zone: zone.to_owned(),
            port: port.parse().ok()?,
        })
    }

    /// The address with its zone, as the resolver expects it.
    fn host(&self) -> String {
        format!("{}%{}", self.address, self.zone)
    }
}

impl fmt::Display for LinkLocal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}%{}]:{}", self.address, self.zone, self.port)
    }
}

/// Maximum length of an interface name, in bytes: twice the limit of common systems.
const MAX_ZONE: usize = 32;

/// Parses an address to listen on: `ADDR:PORT`, or `[ADDR%INTERFACE]:PORT` for a link-local
/// address.
///
/// # Errors
/// A message for the user: the text is not an address, or the interface does not exist.
pub fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let Some(link_local) = LinkLocal::parse(text) else {
        return text.parse().map_err(|_| {
            "give an IP address with a port, as in 127.0.0.1:1313 or [fe80::1%eth0]:1313".to_owned()
        });
    };
    let found = (link_local.host(), link_local.port).to_socket_addrs();
    found
        .ok()
        .and_then(|mut addresses| addresses.next())
        .ok_or_else(|| format!("this machine has no network interface `{}`", link_local.zone))
}

impl FromStr for Endpoint {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let bad = |why: &str| Problem::new(Reason::InvalidAddress, format!("`{text}` is no address: {why}"));
        if let Some(path) = text.strip_prefix("unix:") {
            // gRPC's naming document allows `unix:///path`.
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return Err(bad("give unix:PATH"));
            }
            return Ok(Self::Unix(path.into()));
        }
        let bare = text.strip_prefix("http://").unwrap_or(text);
        if let Some(link_local) = LinkLocal::parse(bare.trim_end_matches('/')) {
            return match link_local.port {
                0 => Err(bad("give a host and a port, as in http://[fe80::1%eth0]:1313")),
                _ => Ok(Self::LinkLocal(link_local)),
            };
        }
        if bare.contains('%') {
            return Err(bad(
                "give an address with its network interface as in http://[fe80::1%eth0]:1313",
            ));
        }
        let with_scheme = if text.contains("://") {
            text.to_owned()
        } else {
            format!("http://{text}")
        };
        let uri: Uri = with_scheme
            .parse()
            .map_err(|_| bad("give http://HOST:PORT or unix:PATH"))?;
        if uri.scheme_str() != Some("http") {
            return Err(bad("only http:// and unix: are known"));
        }
        if uri.port_u16().is_none_or(|port| port == 0) || uri.host().is_none_or(str::is_empty) {
            return Err(bad("give a host and a port, as in http://127.0.0.1:1313"));
        }
        if uri.path_and_query().is_some_and(|path| path != "/") || text.contains(['@', '#']) {
            return Err(bad("give nothing but a host and a port"));
        }
        Ok(Self::Http(uri))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(uri) => f.write_str(uri.to_string().trim_end_matches('/')),
            Self::LinkLocal(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Endpoint {
    /// Opens a connection and verifies that the server speaks gRPC, within [`CONNECT_TIMEOUT`] and
    /// [`RESPONSE_TIMEOUT`].
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

    /// Opens a connection within [`CONNECT_TIMEOUT`]. Does not verify that the server speaks gRPC.
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
            Self::Http(uri) => leaving(uri, from).connect().await,
            Self::LinkLocal(address) => {
                let connector = link_local_connector(address.clone());
                socket_builder().connect_with_connector(connector).await
            }
            Self::Unix(path) => {
                socket_builder()
                    .connect_with_connector(unix_connector(path.clone()))
                    .await
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
        let problem = self.explain(status, "service").await;
        match problem.reason {
            Reason::Unreachable | Reason::TimedOut | Reason::NotPotluck => Err(problem),
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
        self.lazy_with(from, |endpoint| endpoint)
    }

    /// Whether the endpoint is on this machine. Resolves the host name if necessary.
    pub async fn is_local(&self) -> bool {
        let uri = match self {
            Self::Unix(_) => return true,
            Self::LinkLocal(_) => return false,
            Self::Http(uri) => uri,
        };
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        if let Ok(ip) = host.parse::<IpAddr>() {
            return ip.to_canonical().is_loopback();
        }
        let found = tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::lookup_host((host, 0))).await;
        let Ok(Ok(mut addresses)) = found else {
            return host == "localhost";
        };
        addresses.all(|address| address.ip().to_canonical().is_loopback())
    }

    /// Like [`Endpoint::lazy_from`], for bulk data over a path with this round-trip time. The
    /// windows let a stream fill a link of some Gbit/s, up to [`MAX_BULK_WINDOW`].
    pub fn lazy_bulk_channel(&self, round_trip: Duration, from: Option<IpAddr>) -> Channel {
        let window = (round_trip.as_secs_f64() * BULK_RATE) as u32;
        let window = window.clamp(STREAM_WINDOW, MAX_BULK_WINDOW);
        self.lazy_with(from, |endpoint| {
            endpoint
                .initial_stream_window_size(window)
                .initial_connection_window_size(window)
        })
    }

    fn lazy_with(
        &self,
        from: Option<IpAddr>,
        set: impl Fn(tonic::transport::Endpoint) -> tonic::transport::Endpoint,
    ) -> Channel {
        match self {
            Self::Http(uri) => set(leaving(uri, from)).connect_lazy(),
            Self::LinkLocal(address) => {
                set(socket_builder()).connect_with_connector_lazy(link_local_connector(address.clone()))
            }
            Self::Unix(path) => {
                set(socket_builder()).connect_with_connector_lazy(unix_connector(path.clone()))
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
        let told_by_service = is_from_potluck(&status);
        let problem = self.problem(status, service);
        match told_by_service {
            true => problem,
            false => self.identify_foreign(problem, service).await,
        }
    }

    /// Probes an unreachable endpoint: a server that is not Potluck may have broken the
    /// connection.
    async fn identify_foreign(&self, problem: Problem, service: &str) -> Problem {
        if problem.reason == Reason::Unreachable && probe::is_not_http2(self).await {
            return failure::not_http2(service, self);
        }
        problem
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

fn socket_builder() -> tonic::transport::Endpoint {
    // The host is never resolved: the connector ignores it.
    configure(Channel::from_static("http://localhost"))
}

fn unix_connector(
    path: PathBuf,
) -> impl tower::Service<Uri, Response = TokioIo<tokio::net::UnixStream>, Error = std::io::Error, Future: Send>
+ Send
+ 'static {
    tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    })
}

fn link_local_connector(
    address: LinkLocal,
) -> impl tower::Service<Uri, Response = TokioIo<tokio::net::TcpStream>, Error = std::io::Error, Future: Send>
+ Send
+ 'static {
    tower::service_fn(move |_: Uri| {
        let address = address.clone();
        async move {
            let stream = tokio::net::TcpStream::connect((address.host(), address.port)).await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(stream))
        }
    })
}

/// The endpoint for `uri`, with `from` as the local address if that can reach it.
fn leaving(uri: &Uri, from: Option<IpAddr>) -> tonic::transport::Endpoint {
    let from = from.filter(|&from| can_leave(from, uri.host().unwrap_or_default()));
    configure(Channel::builder(uri.clone())).local_address(from)
}

/// Whether connections to `host` can use `from` as their local address, and would not use it by
/// default.
fn can_leave(from: IpAddr, host: &str) -> bool {
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
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
}

/// A server with the settings of all services. The caller adds services and limits.
pub fn server() -> Server {
    Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_addresses_carry_their_interface() {
        for (text, shown) in [
            ("http://[fe80::1%eth0]:1313", "http://[fe80::1%eth0]:1313"),
            ("[fe80::1%2]:1313", "http://[fe80::1%2]:1313"),
            ("http://[FE80::1%en-0.1]:1/", "http://[fe80::1%en-0.1]:1"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert!(matches!(endpoint, Endpoint::LinkLocal(_)), "{text}");
            assert_eq!(endpoint.to_string(), shown);
        }
        for bad in [
            "http://[fe80::1%]:1313",
            "http://[fe80::1%eth0]:0",
            "http://[fe80::1%eth0]",
            "http://[nonsense%eth0]:1313",
            "http://[fe80::1%a b]:1313",
            "http://[fe80::1%eth0/x]:1313",
            "https://[fe80::1%eth0]:1313",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_listened_on_may_name_an_interface() {
        assert_eq!(parse_listen("127.0.0.1:7").unwrap().to_string(), "127.0.0.1:7");
        assert_eq!(parse_listen("[::1]:7").unwrap().to_string(), "[::1]:7");
        let text = parse_listen("[fe80::1%no-such-interface]:7").unwrap_err();
        assert!(text.contains("no-such-interface"), "{text}");
        assert!(parse_listen("localhost:7").is_err());
        let SocketAddr::V6(zoned) = parse_listen("[fe80::1%1]:7").unwrap() else {
            panic!("it is IPv6");
        };
        assert_eq!((zoned.scope_id(), zoned.port()), (1, 7));
    }

    #[test]
    fn connections_leave_from_an_address_only_where_it_can_reach_the_host() {
        let can = |from: &str, host: &str| can_leave(from.parse().unwrap(), host);
        assert!(can("127.0.0.10", "127.0.0.1") && can("127.0.0.10", "localhost"));
        assert!(can("192.0.2.1", "192.0.2.2") && can("192.0.2.1", "index.example"));
        assert!(
            can("192.0.2.1", "127.0.0.1"),
            "the index here sees where the peer is"
        );
        assert!(can("2001:db8::1", "[2001:db8::2]"));
        assert!(!can("127.0.0.10", "192.0.2.1") && !can("127.0.0.10", "index.example"));
        assert!(!can("192.0.2.1", "[2001:db8::2]") && !can("2001:db8::1", "192.0.2.1"));
        assert!(!can("0.0.0.0", "192.0.2.1") && !can("::", "::1"));
        assert!(!can("127.0.0.1", "127.0.0.1"), "it does so by itself");
    }

    #[tokio::test]
    async fn an_endpoint_on_this_machine_is_known_as_such() {
        for (text, local) in [
            ("unix:/run/x", true),
            ("127.0.0.1:1", true),
            ("127.9.9.9:1", true),
            ("[::1]:1", true),
            ("localhost:1", true),
            ("192.0.2.1:1", false),
            ("[fe80::1%1]:1", false),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.is_local().await, local, "{text}");
        }
    }
}
