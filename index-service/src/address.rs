//! The addresses of peers: which address a peer may register, and which addresses are one host.
//!
//! A peer may register its own address or an allowed host. If the index accepted any address, a
//! caller could aim a swarm at a stranger. Pure: no name is resolved and no connection is made.
#![deny(
    clippy::disallowed_methods,
    reason = "pure: time, randomness and I/O come in from outside"
)]

use std::{net::IpAddr, str::FromStr};

use ipnet::IpNet;
use potluck_core::{
    grpc::limiter::{ClientAddress, client_network},
    model::Address,
};

/// Longest DNS host name, in bytes (RFC 1035, section 2.3.4).
const MAX_HOST_NAME: usize = 253;

/// A host that peers may register without calling from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedHost {
    /// All addresses of a network.
    Network(IpNet),
    /// A host name, in lower case.
    Name(String),
}

/// The text is not a network, an address or a host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither a network such as 10.0.0.0/8, an IP address nor a host name")]
pub struct AllowedHostError(String);

impl FromStr for AllowedHost {
    type Err = AllowedHostError;

    fn from_str(text: &str) -> Result<Self, AllowedHostError> {
        if let Ok(network) = text.parse::<IpNet>() {
            return Ok(Self::Network(network.trunc()));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Network(address.to_canonical().into()));
        }
        host_name(text)
            .map(Self::Name)
            .ok_or_else(|| AllowedHostError(text.to_owned()))
    }
}

/// The reason why an address was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddressError {
    /// The host is not an IP address or a host name.
    #[error(
        "the host is neither an IP address nor a host name: leave it empty to register the address \
         that you call from"
    )]
    NotAHost,
    /// The address does not identify a single machine.
    #[error(
        "{0} is not the address of one machine: leave the host empty to register the address that \
         you call from"
    )]
    NotOneMachine(IpAddr),
    /// The address is link-local: it identifies another machine on each network.
    #[error(
        "{0} is link-local, so other machines cannot reach it: call the index through an address \
         that is not link-local, or register another address with --advertise"
    )]
    LinkLocal(IpAddr),
    /// The host is neither the caller's address nor allowed.
    #[error(
        "{host} is not the address that you call from ({caller}): leave the host empty, or have \
         the index started with --allow-host {host}"
    )]
    Refused {
        /// The requested host.
        host: String,
        /// The caller's address.
        caller: String,
    },
    /// A loopback address, registered from another machine.
    #[error(
        "{address} is reachable only on its own machine, and the call comes from {caller}: start \
         the peer with --listen 0.0.0.0:{}, or register another address with --advertise",
        .address.port
    )]
    Loopback {
        /// The requested address.
        address: Address,
        /// The caller's address.
        caller: String,
    },
}

/// Returns the address that other peers receive: `claimed` with its host in canonical form, or with
/// the caller's IP address if its host is empty.
///
/// `source` is the caller's IP address; `None` if the transport has none.
///
/// # Errors
/// [`AddressError`] if the host is invalid, or neither the caller's address nor allowed.
pub(crate) fn resolve(
    claimed: &Address,
    source: Option<IpAddr>,
    allowed: &[AllowedHost],
) -> Result<Address, AddressError> {
    let source = source.map(|ip| ip.to_canonical());
    let caller = || source.map_or_else(|| "an unknown address".to_owned(), |ip| ip.to_string());
    let refused = |host: &str| AddressError::Refused {
        host: host.to_owned(),
        caller: caller(),
    };
    if claimed.host.is_empty() {
        let ip = source.ok_or_else(|| refused("an empty host"))?;
        if is_link_local(ip) {
            return Err(AddressError::LinkLocal(ip));
        }
        return Ok(Address {
            host: ip.to_string(),
            port: claimed.port,
        });
    }
    let Ok(ip) = claimed.host.parse::<IpAddr>() else {
        let name = host_name(&claimed.host).ok_or(AddressError::NotAHost)?;
        return match allowed
            .iter()
            .any(|host| matches!(host, AllowedHost::Name(allowed) if *allowed == name))
        {
            true => Ok(Address {
                host: name,
                port: claimed.port,
            }),
            false => Err(refused(&name)),
        };
    };
    let ip = ip.to_canonical();
    if ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(std::net::Ipv4Addr::BROADCAST) {
        return Err(AddressError::NotOneMachine(ip));
    }
    if is_link_local(ip) {
        return Err(AddressError::LinkLocal(ip));
    }
    let contains_ip =
        |host: &AllowedHost| matches!(host, AllowedHost::Network(network) if network.contains(&ip));
    match source == Some(ip) || allowed.iter().any(contains_ip) {
        true => Ok(Address {
            host: ip.to_string(),
            port: claimed.port,
        }),
        false if ip.is_loopback() && source.is_some_and(|source| !source.is_loopback()) => {
            Err(AddressError::Loopback {
                address: claimed.clone(),
                caller: caller(),
            })
        }
        false => Err(refused(&ip.to_string())),
    }
}

/// The key under which hosts count as one: the client network of an IP address (see
/// [`client_network`]), or the host name itself.
pub(crate) fn host_key(host: &str) -> String {
    host.parse()
        .map_or_else(|_| host.to_owned(), |address| client_network(address).to_string())
}

/// Whether the limit per host does not apply, because the address is local and its peers are
/// unrelated. The limit per peer still applies.
pub(crate) fn is_shared_host(host: &str) -> bool {
    host.parse::<IpAddr>()
        .is_ok_and(|address| ClientAddress::from(address) == ClientAddress::LOCAL)
}

/// Whether this is an IPv6 address that needs a zone, that is, the name of an interface (RFC 4291,
/// section 2.5.6). IPv4 link-local addresses have no zone (RFC 3927).
fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// The text in lower case if it is a host name (RFC 1123) with at least one letter.
fn host_name(text: &str) -> Option<String> {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_valid = text.len() <= MAX_HOST_NAME
        && text.split('.').all(is_label)
        && text.bytes().any(|b| b.is_ascii_alphabetic());
    is_valid.then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(host: &str) -> Address {
        Address {
            host: host.to_owned(),
            port: 12349,
        }
    }

    fn resolved(source: &str, host: &str, allowed: &[&str]) -> Result<String, AddressError> {
        let allowed: Vec<AllowedHost> = allowed.iter().map(|text| text.parse().unwrap()).collect();
        resolve(&claim(host), Some(source.parse().unwrap()), &allowed).map(|address| address.host)
    }

    #[test]
    fn an_empty_host_becomes_the_callers_address() {
        assert_eq!(resolved("192.0.2.7", "", &[]), Ok("192.0.2.7".to_owned()));
        assert_eq!(resolved("::ffff:192.0.2.7", "", &[]), Ok("192.0.2.7".to_owned()));
        assert_eq!(resolved("2001:db8::7", "", &[]), Ok("2001:db8::7".to_owned()));
    }

    #[test]
    fn a_peer_may_register_the_callers_address() {
        assert_eq!(
            resolved("192.0.2.7", "192.0.2.7", &[]),
            Ok("192.0.2.7".to_owned())
        );
        assert_eq!(
            resolved("::ffff:192.0.2.7", "192.0.2.7", &[]),
            Ok("192.0.2.7".to_owned())
        );
        assert_eq!(
            resolved("2001:db8::7", "2001:DB8:0::7", &[]),
            Ok("2001:db8::7".to_owned())
        );
    }

    #[test]
    fn a_loopback_address_from_another_machine_is_refused_with_what_to_do() {
        let refused = resolved("192.0.2.7", "127.0.0.1", &[]).unwrap_err();
        assert!(matches!(refused, AddressError::Loopback { .. }), "{refused:?}");
        let message = refused.to_string();
        assert!(message.contains("--listen 0.0.0.0:12349"), "{message}");
        assert!(!message.contains("--allow-host"), "{message}");
        assert!(matches!(
            resolved("192.0.2.7", "::1", &[]),
            Err(AddressError::Loopback { .. })
        ));
        assert!(matches!(
            resolved("127.0.0.5", "127.0.0.1", &[]),
            Err(AddressError::Refused { .. })
        ));
        assert_eq!(
            resolved("192.0.2.7", "127.0.0.1", &["127.0.0.1"]),
            Ok("127.0.0.1".to_owned())
        );
    }

    #[test]
    fn another_host_must_be_allowed() {
        assert!(matches!(
            resolved("192.0.2.7", "192.0.2.8", &[]),
            Err(AddressError::Refused { .. })
        ));
        assert!(matches!(
            resolved("192.0.2.7", "victim.example", &[]),
            Err(AddressError::Refused { .. })
        ));
        assert_eq!(
            resolved("192.0.2.7", "192.0.2.8", &["192.0.2.0/24"]),
            Ok("192.0.2.8".to_owned())
        );
        assert_eq!(
            resolved("192.0.2.7", "::ffff:192.0.2.8", &["192.0.2.8"]),
            Ok("192.0.2.8".to_owned())
        );
        assert!(matches!(
            resolved("192.0.2.7", "192.0.3.8", &["192.0.2.0/24"]),
            Err(AddressError::Refused { .. })
        ));
        assert_eq!(
            resolved("192.0.2.7", "Peer.Example", &["peer.example"]),
            Ok("peer.example".to_owned())
        );
    }

    #[test]
    fn addresses_of_no_machine_are_refused_even_if_all_are_allowed() {
        for host in ["0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "ff02::1"] {
            let result = resolved("192.0.2.7", host, &["0.0.0.0/0", "::/0"]);
            assert!(
                matches!(result, Err(AddressError::NotOneMachine(_))),
                "{host}: {result:?}"
            );
        }
        for host in ["a b", "a/b", "1.2.3", "[::1]", "-a", "x\n", &"a".repeat(300)] {
            assert_eq!(
                resolved("192.0.2.7", host, &["0.0.0.0/0"]),
                Err(AddressError::NotAHost),
                "{host}"
            );
        }
    }

    #[test]
    fn link_local_addresses_are_always_refused() {
        let link_local = |result| matches!(result, Err(AddressError::LinkLocal(_)));
        assert!(link_local(resolved("fe80::1", "", &[])), "the caller's own");
        assert!(link_local(resolved("fe80::1", "fe80::1", &[])));
        assert!(
            link_local(resolved("2001:db8::7", "fe80::1", &["::/0"])),
            "allowed"
        );
        assert!(link_local(resolved("2001:db8::7", "febf::1", &["febf::1"])));
        assert_eq!(resolved("169.254.1.2", "", &[]), Ok("169.254.1.2".to_owned()));
        assert_eq!(resolved("fec0::1", "", &[]), Ok("fec0::1".to_owned()));
        let text = resolved("fe80::1", "", &[]).unwrap_err().to_string();
        assert!(text.contains("--advertise"), "{text}");
    }

    #[test]
    fn without_a_source_no_address_is_the_callers() {
        assert!(resolve(&claim(""), None, &[]).is_err());
        assert!(resolve(&claim("127.0.0.1"), None, &[]).is_err());
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_host() {
        assert_eq!(host_key("2001:db8::1"), host_key("2001:db8::ffff:1"));
        assert_ne!(host_key("2001:db8::1"), host_key("2001:db8:0:1::1"));
        assert_eq!(host_key("::ffff:10.0.0.1"), "10.0.0.1");
        assert_eq!(host_key("peer.example"), "peer.example");
    }
}
