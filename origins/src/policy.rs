//! Which hosts a request may go to. Pure.
//!
//! The operator names an origin. A server may redirect to another host, as hubs do with their
//! storage. Such a redirect must not make this machine reach a service that only its own network
//! reaches: loopback, private and link-local addresses are refused unless the named origin is such
//! an address itself, or the operator trusts the host.
//!
//! Invariant: a request uses TLS, except to loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

use crate::error::OriginError;

/// Which addresses a host name may resolve to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The operator named the host: any address. A proxy of the environment is used.
    Named,
    /// A host of this machine: no proxy.
    Loopback,
    /// A redirect led here: only addresses of the Internet.
    Public,
}

/// Checks the address of an origin that the operator named.
///
/// # Errors
/// [`OriginError::InvalidReference`] for other schemes, and for plain HTTP beyond loopback.
pub fn check_origin(url: &Url) -> Result<(), OriginError> {
    let Some(host) = url.host() else {
        return Err(OriginError::InvalidReference("the URL has no host".into()));
    };
    match url.scheme() {
        "https" => Ok(()),
        "http" if is_loopback(&host) => Ok(()),
        "http" => Err(OriginError::InvalidReference(
            "plain http is for this machine only: give https://".into(),
        )),
        scheme => Err(OriginError::InvalidReference(format!(
            "`{scheme}:` is not an origin: give https://"
        ))),
    }
}

/// How a request to `next` may connect, if the operator named `origin`.
///
/// # Errors
/// [`OriginError::Refused`] if a redirect leads to where it must not.
pub fn check_hop(origin: &Url, next: &Url, trusted: &[String]) -> Result<Reach, OriginError> {
    let refused = |why: &str| {
        OriginError::Refused(format!("{} redirects to {}, {why}", host_of(origin), shown(next)))
    };
    let (Some(first), Some(host)) = (origin.host(), next.host()) else {
        return Err(refused("which has no host"));
    };
    match next.scheme() {
        "https" => {}
        "http" if is_loopback(&host) && is_loopback(&first) => {}
        "http" => return Err(refused("which is not encrypted")),
        _ => return Err(refused("which is not a web address")),
    }
    if is_loopback(&host) && is_loopback(&first) {
        return Ok(Reach::Loopback);
    }
    let is_trusted = next
        .host_str()
        .is_some_and(|host| trusted.iter().any(|name| name == host));
    if host == first || is_trusted || is_local(&first) {
        return Ok(Reach::Named);
    }
    match is_local(&host) {
        true => Err(refused("which is an address of a private network")),
        false => Ok(Reach::Public),
    }
}

/// Whether an address belongs to the public Internet.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// Special ranges of the IANA registry for IPv4 (RFC 6890).
fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        || a == 0
        || a >= 240
        || (a == 100 && b & 0xc0 == 64)
        || (a == 198 && b & 0xfe == 18)
        || (a == 192 && b == 0 && c == 0))
}

/// Special ranges of the IANA registry for IPv6. An address that embeds one of IPv4 counts as that.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let embedded = || Ipv4Addr::from_bits(u32::from(segments[6]) << 16 | u32::from(segments[7]));
    match segments {
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
            is_public_v4(embedded())
        }
        // 6to4: the address of IPv4 follows.
        [0x2002, high, low, ..] => {
            is_public_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
        }
        [0x2001, 0xdb8, ..] => false,
        // Only 2000::/3 is assigned.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

fn is_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => name.eq_ignore_ascii_case("localhost"),
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
    }
}

fn is_local(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(_) => is_loopback(host),
        Host::Ipv4(address) => !is_public_v4(*address),
        Host::Ipv6(address) => !is_public_v6(*address),
    }
}

/// The host and port of a URL, for messages.
pub fn host_of(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (host, _) => host.unwrap_or_default().to_owned(),
    }
}

/// A URL without its query and fragment, which can hold signatures.
pub fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Fails only for URLs that cannot have a user.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn redirects_to_private_addresses_are_refused() {
        let origin = url("https://hub.example/a");
        for bad in [
            "https://127.0.0.1/a",
            "https://localhost/a",
            "https://10.1.2.3/a",
            "https://[::1]/a",
            "https://[::ffff:10.0.0.1]/a",
            "https://[64:ff9b::7f00:1]/a",
            "https://[2002:7f00:1::]/a",
            "https://[fd00::1]/a",
            "https://169.254.169.254/latest/meta-data",
            "https://100.64.0.1/a",
            "https://0.0.0.0/a",
            "http://cdn.example/a",
            "file:///etc/passwd",
            "ftp://cdn.example/a",
        ] {
            let refused = check_hop(&origin, &url(bad), &[]);
            assert!(
                matches!(refused, Err(OriginError::Refused(_))),
                "{bad}: {refused:?}"
            );
        }
        assert_eq!(
            check_hop(&origin, &url("https://cdn.example/a"), &[]),
            Ok(Reach::Public)
        );
        assert_eq!(
            check_hop(&origin, &url("https://hub.example/b"), &[]),
            Ok(Reach::Named)
        );
    }

    #[test]
    fn what_the_operator_named_is_allowed() {
        let local = url("http://127.0.0.1:8080/a");
        assert_eq!(
            check_hop(&local, &url("http://localhost:1/a"), &[]),
            Ok(Reach::Loopback)
        );
        let inside = url("https://10.0.0.1/a");
        assert_eq!(
            check_hop(&inside, &url("https://10.0.0.2/a"), &[]),
            Ok(Reach::Named)
        );
        let origin = url("https://hub.example/a");
        let trusted = ["10.0.0.2".to_owned()];
        assert_eq!(
            check_hop(&origin, &url("https://10.0.0.2/a"), &trusted),
            Ok(Reach::Named)
        );
    }

    #[test]
    fn messages_do_not_show_signatures() {
        assert_eq!(
            shown(&url("https://u:p@a.example/b?X-Amz-Signature=1#c")),
            "https://a.example/b"
        );
    }
}
