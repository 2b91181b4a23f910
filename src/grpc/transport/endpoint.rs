//! The address of a service: parsing, display, and whether it is on this machine.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _},
    path::PathBuf,
    str::FromStr,
};

use tonic::transport::Uri;

use crate::{
    Problem, Reason,
    grpc::transport::settings::CONNECT_TIMEOUT,
    network::tls::{ServerIdentity, TlsContext},
};

/// The start of addresses with TLS.
const HTTPS: &str = "https://";

/// Maximum length of an interface name, in bytes: twice the limit of common systems.
const MAX_ZONE: usize = 32;

/// Address of a service.
///
/// People may write `PORT` for `http://127.0.0.1:PORT`, and an absolute path for a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// TCP: `http://HOST:PORT`, or `HOST:PORT`.
    Http(Uri),
    /// TCP at a link-local address with the name or number of a network interface:
    /// `http://[ADDR%INTERFACE]:PORT`.
    LinkLocal(LinkLocal),
    /// Unix socket: `unix:PATH`.
    Unix(PathBuf),
    /// TCP with TLS, in a network.
    Tls(TlsEndpoint),
}

/// A TCP address with the TLS settings of this process, and the server that must answer there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsEndpoint {
    address: Box<Endpoint>,
    tls: TlsContext,
    expected: ServerIdentity,
}

impl TlsEndpoint {
    /// The address, which is TCP.
    pub(crate) fn address(&self) -> &Endpoint {
        &self.address
    }

    /// The TLS settings.
    pub(crate) const fn tls(&self) -> &TlsContext {
        &self.tls
    }

    /// The server that must answer.
    pub(crate) const fn expected(&self) -> &ServerIdentity {
        &self.expected
    }
}

/// A link-local IPv6 address with its zone, the network interface (RFC 4007, section 11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkLocal {
    address: Ipv6Addr,
    zone: String,
    pub(crate) port: u16,
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
    pub(crate) fn host(&self) -> String {
        format!("{}%{}", self.address, self.zone)
    }
}

impl fmt::Display for LinkLocal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}%{}]:{}", self.address, self.zone, self.port)
    }
}

/// The port in `PORT` or `localhost:PORT`, which stand for a port of this machine's loopback
/// address.
fn loopback_port(text: &str) -> Option<u16> {
    text.strip_prefix("localhost:").unwrap_or(text).parse().ok()
}

/// Parses an address to listen on: `ADDR:PORT`, `PORT` or `localhost:PORT` for loopback, or
/// `[ADDR%INTERFACE]:PORT` for a link-local address.
///
/// # Errors
/// A message for the user: the text is not an address, or the interface does not exist.
pub fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let Some(link_local) = LinkLocal::parse(text) else {
        if let Some(port) = loopback_port(text) {
            return Ok((Ipv4Addr::LOCALHOST, port).into());
        }
        return text.parse().map_err(|_| {
            "give an IP address with a port, as in 0.0.0.0:1313 or [fe80::1%eth0]:1313, or a port \
             alone for this machine only"
                .to_owned()
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
        let bad = |why: &str| {
            Problem::new(
                Reason::InvalidAddress,
                format!("`{text}` is not an address: {why}"),
            )
        };
        if let Some(path) = text.strip_prefix("unix:") {
            // gRPC's naming document allows `unix:///path`.
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return Err(bad("give unix:PATH"));
            }
            return Ok(Self::Unix(path.into()));
        }
        if text.starts_with('/') {
            return Ok(Self::Unix(text.into()));
        }
        if text.starts_with(HTTPS) {
            return Err(bad(
                "https:// needs the credentials of a private network: join it with `potluck \
                 network join CODE`",
            ));
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
                "give an address and its network interface as in http://[fe80::1%eth0]:1313",
            ));
        }
        let with_scheme = match text.parse::<u16>() {
            Ok(port) => format!("http://{}:{port}", Ipv4Addr::LOCALHOST),
            Err(_) if text.contains("://") => text.to_owned(),
            Err(_) => format!("http://{text}"),
        };
        let uri: Uri = with_scheme
            .parse()
            .map_err(|_| bad("give HOST:PORT, PORT or unix:PATH"))?;
        if uri.scheme_str() != Some("http") {
            return Err(bad("give HOST:PORT, http://HOST:PORT or unix:PATH"));
        }
        if uri.port_u16().is_none_or(|port| port == 0) || uri.host().is_none_or(str::is_empty) {
            return Err(bad(
                "give HOST:PORT as in localhost:1313, or PORT for this machine",
            ));
        }
        if uri.path_and_query().is_some_and(|path| path != "/") || text.contains(['@', '#']) {
            return Err(bad("give only a host and a port"));
        }
        Ok(Self::Http(uri))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(uri) => f.write_str(uri.to_string().trim_end_matches('/')),
            Self::LinkLocal(address) => write!(f, "http://{address}"),
            // Parsing takes two slashes after the colon for a part of the syntax.
            Self::Unix(path) if path.as_os_str().as_encoded_bytes().starts_with(b"//") => {
                write!(f, "unix://{}", path.display())
            }
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tls(endpoint) => {
                let address = endpoint.address.to_string();
                let address = address.strip_prefix("http://").unwrap_or(&address);
                write!(f, "{HTTPS}{address}")
            }
        }
    }
}

impl Endpoint {
    /// Parses the address of a server in a network: `HOST:PORT`, with or without `https://`.
    ///
    /// # Errors
    /// As for any address; [`Reason::InvalidAddress`] also for a Unix socket.
    pub fn parse_secured(
        text: &str,
        tls: &TlsContext,
        expected: ServerIdentity,
    ) -> Result<Self, Problem> {
        let address: Self = text.strip_prefix(HTTPS).unwrap_or(text).parse()?;
        address.secured(tls, expected)
    }

    /// The same address with TLS. An endpoint that has TLS already gets these settings.
    ///
    /// # Errors
    /// [`Reason::InvalidAddress`] for a Unix socket.
    pub fn secured(self, tls: &TlsContext, expected: ServerIdentity) -> Result<Self, Problem> {
        let address = match self {
            Self::Tls(endpoint) => endpoint.address,
            Self::Unix(path) => {
                let path = path.display();
                return Err(Problem::new(
                    Reason::InvalidAddress,
                    format!("`unix:{path}` cannot be used in a network: give HOST:PORT"),
                ));
            }
            tcp => Box::new(tcp),
        };
        Ok(Self::Tls(TlsEndpoint {
            address,
            tls: tls.clone(),
            expected,
        }))
    }

    /// Whether the endpoint is on this machine. Resolves the host name if necessary.
    pub async fn is_local(&self) -> bool {
        let address = match self {
            Self::Tls(endpoint) => endpoint.address(),
            address => address,
        };
        let uri = match address {
            Self::Unix(_) => return true,
            Self::LinkLocal(_) | Self::Tls(_) => return false,
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
    fn a_listening_address_may_name_an_interface() {
        assert_eq!(parse_listen("127.0.0.1:7").unwrap().to_string(), "127.0.0.1:7");
        assert_eq!(parse_listen("[::1]:7").unwrap().to_string(), "[::1]:7");
        let text = parse_listen("[fe80::1%no-such-interface]:7").unwrap_err();
        assert!(text.contains("no-such-interface"), "{text}");
        for short in ["7", "localhost:7"] {
            assert_eq!(parse_listen(short).unwrap().to_string(), "127.0.0.1:7");
        }
        for bad in ["", "a.example:7", "127.0.0.1", "70000", ":7"] {
            assert!(parse_listen(bad).unwrap_err().contains("0.0.0.0:1313"), "{bad}");
        }
        let SocketAddr::V6(zoned) = parse_listen("[fe80::1%1]:7").unwrap() else {
            panic!("it is IPv6");
        };
        assert_eq!((zoned.scope_id(), zoned.port()), (1, 7));
    }

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (text, endpoint) in [
            ("1313", "http://127.0.0.1:1313"),
            ("localhost:1313", "http://localhost:1313"),
            ("a.example:7", "http://a.example:7"),
            ("http://a.example:7/", "http://a.example:7"),
            ("/run/potluck.sock", "unix:/run/potluck.sock"),
            ("unix:///run/x", "unix:/run/x"),
            ("//run/x", "unix:////run/x"),
            ("unix:////run/x", "unix:////run/x"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), endpoint);
        }
        for bad in [
            "",
            "localhost",
            "0",
            "70000",
            "ftp://a:1",
            "https://a:1",
            "a:1/x",
            "unix:",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
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
