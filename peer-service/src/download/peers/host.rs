//! Fairness among hosts: one owner can run any number of peers on a host, so peers are chosen
//! round-robin over the hosts, and a host whose peers stay silent comes last.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use potluck_core::{grpc::limiter::client_network, model::Address};

/// Silent peers of one host after which the host's other peers come last.
pub(crate) const MAX_SILENT: u32 = 2;

/// The unit of fairness among peers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Host {
    /// An IPv4 address, or an IPv6 network.
    Network(IpAddr),
    /// A host name.
    Name(Box<str>),
}

impl From<&Address> for Host {
    fn from(address: &Address) -> Self {
        match address.host.parse() {
            Ok(ip) => Self::Network(client_network(ip)),
            Err(_) => Self::Name(address.host.as_str().into()),
        }
    }
}

/// Numbers the peers of each host. Sorting by these numbers takes one peer of every host before a
/// second of any.
#[derive(Debug, Default)]
pub(crate) struct HostRounds<'a>(HashMap<&'a Host, u32>);

impl<'a> HostRounds<'a> {
    /// The number of the next peer of this host.
    pub(crate) fn next(&mut self, host: &'a Host) -> u32 {
        let round = self.0.entry(host).or_default();
        *round += 1;
        *round
    }
}

/// Number of silent peers of each host since one of its peers last answered.
#[derive(Debug, Default)]
pub(crate) struct SilentHosts(HashMap<Host, u32>);

impl SilentHosts {
    /// Counts a peer of this host that did not answer.
    pub(crate) fn record_silence(&mut self, host: &Host) {
        *self.0.entry(host.clone()).or_default() += 1;
    }

    /// Records that a peer of this host answered.
    pub(crate) fn record_answer(&mut self, host: &Host) {
        self.0.remove(host);
    }

    /// Whether [`MAX_SILENT`] peers of this host have been silent since the last answer.
    pub(crate) fn is_silent(&self, host: &Host) -> bool {
        self.0.get(host).is_some_and(|&count| count >= MAX_SILENT)
    }

    /// Forgets all other hosts.
    pub(crate) fn retain<'a>(&mut self, hosts: impl Iterator<Item = &'a Host>) {
        if !self.0.is_empty() {
            let hosts: HashSet<&Host> = hosts.collect();
            self.0.retain(|host, _| hosts.contains(host));
        }
    }
}
