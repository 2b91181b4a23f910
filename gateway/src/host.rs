//! Which `Host` headers are accepted. Pure.
//!
//! A web page can give its own host name an address of this machine, and then read the gateway's
//! answers (DNS rebinding). Its requests carry that name in `Host`.

use std::net::{IpAddr, SocketAddr};

/// Whether a request with this `Host` is meant for a gateway that listens at `address`. `names` are
/// further names of it.
pub(crate) fn is_own(host: Option<&str>, address: SocketAddr, names: &[String]) -> bool {
    let Some(host) = host else { return false };
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    if name.eq_ignore_ascii_case("localhost")
        || names.iter().any(|own| own.eq_ignore_ascii_case(name))
    {
        return true;
    }
    // A literal address cannot be bound to another one. Beyond loopback, any address leads here.
    name.parse::<IpAddr>()
        .is_ok_and(|ip| ip.is_loopback() || !address.ip().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_strangers_are_refused() {
        let local = SocketAddr::from(([127, 0, 0, 1], 8080));
        for own in ["127.0.0.1:8080", "localhost:8080", "LOCALHOST", "[::1]:8080"] {
            assert!(is_own(Some(own), local, &[]), "{own}");
        }
        for other in ["evil.example:8080", "evil.example", "192.0.2.1:8080", ""] {
            assert!(!is_own(Some(other), local, &[]), "{other}");
        }
        assert!(!is_own(None, local, &[]));
        assert!(is_own(Some("gateway:8080"), local, &["gateway".to_owned()]));
    }
}
