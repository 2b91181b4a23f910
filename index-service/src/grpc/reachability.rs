//! Connects to a peer at its registered address, to tell it whether others can reach it.
//!
//! This is the only place where the index connects to anybody. A check must be useless as a port
//! scanner, so:
//!
//! - The index connects only to the IP address from which the call comes, at the port that the peer
//!   has registered. A peer that registered another host, which `--allow-host` permits, is not
//!   checked.
//! - A caller on the index's own machine, which is what every caller looks like behind a proxy on
//!   that machine, gets no details: each failure gives the same answer after the same time. A check
//!   succeeds only if the peer with the caller's own id answers, so such a caller learns nothing
//!   about other programs.
//! - One check per peer runs at a time, at most [`MAX_CHECKS`] in total, each for at most
//!   [`CHECK_TIMEOUT`]; the checks of one address are rate limited.
//! - No byte that the address sends is returned.
//!
//! docs/decisions/0026-reachability.md has the analysis.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use potluck_core::{
    PeerId, Problem, Reason,
    grpc::transport::{Endpoint, admission::SMALL_REQUEST},
    model::{Address, Reachability},
    network::tls::{ServerIdentity, TlsContext},
    proto::v1::{IdentifyRequest, peer_service_client::PeerServiceClient},
};
use tokio::{net::TcpStream, sync::Semaphore};

use crate::{problem::SHORT_DELAY, rate_limiter::RateLimiter};

/// Duration of a check at most. A peer across the world answers well within a second.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// Maximum checks at the same time: each holds a socket and a timer.
const MAX_CHECKS: usize = 64;

/// Time between two checks of one address, after a burst of [`CHECK_BURST`]. A peer checks rarely,
/// and a scan of all ports of an address takes days.
const CHECK_INTERVAL: Duration = Duration::from_secs(3);

/// Checks of one address that need not wait: dozens of peers may start behind one NAT router.
const CHECK_BURST: u32 = 20;

/// Checks peers, with limits.
#[derive(Debug)]
pub(crate) struct ReachabilityChecker {
    is_enabled: bool,
    /// In a private network, a peer proves its id with its certificate.
    tls: Option<TlsContext>,
    permits: Semaphore,
    limiter: Mutex<RateLimiter>,
    running: Mutex<HashSet<PeerId>>,
}

impl ReachabilityChecker {
    /// A checker; if it is not enabled, it connects to nobody.
    pub(crate) fn new(is_enabled: bool, tls: Option<TlsContext>) -> Self {
        Self {
            is_enabled,
            tls,
            permits: Semaphore::new(MAX_CHECKS),
            limiter: Mutex::new(RateLimiter::with_interval(CHECK_INTERVAL, CHECK_BURST)),
            running: Mutex::default(),
        }
    }

    /// Connects to a peer at its registered address. `source` is the IP address of the call.
    ///
    /// # Errors
    /// [`Reason::RateLimited`] if a check of this peer is running, too many run, or this address was
    /// checked too often.
    pub(crate) async fn check(
        &self,
        peer: PeerId,
        registered: &Address,
        source: Option<IpAddr>,
    ) -> Result<Reachability, Problem> {
        let Some(address) = callers_own(registered, source).filter(|_| self.is_enabled) else {
            return Ok(Reachability::NotChecked);
        };
        let _running = RunningCheck::begin(&self.running, peer)?;
        let _permit = self
            .permits
            .try_acquire()
            .map_err(|_| busy("too many checks run"))?;
        self.limiter.lock().take(address.ip(), 1, Instant::now())?;
        let deadline = tokio::time::Instant::now() + CHECK_TIMEOUT;
        let found = self.connect(address, peer, deadline).await;
        if found == Reachability::Reachable || !is_own_address(address.ip()) {
            return Ok(found);
        }
        // The time that a failure takes must not show what is at the port.
        tokio::time::sleep_until(deadline).await;
        Ok(Reachability::Unreachable)
    }

    /// Connects to the address, and finds out who answers.
    async fn connect(
        &self,
        address: SocketAddr,
        peer: PeerId,
        deadline: tokio::time::Instant,
    ) -> Reachability {
        match tokio::time::timeout_at(deadline, TcpStream::connect(address)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                return Reachability::Refused;
            }
            // No route, or out of descriptors: neither shows that anything answers.
            Ok(Err(_)) | Err(_) => return Reachability::TimedOut,
        }
        let identify = async {
            let endpoint: Endpoint = address.to_string().parse().ok()?;
            Some(match &self.tls {
                // The peer refuses calls of the index, which is not a member.
                Some(tls) => {
                    let secured = endpoint.secured(tls, ServerIdentity::Peer(peer)).ok()?;
                    secured.proves_identity().await
                }
                None => answers_as(&endpoint, peer).await,
            })
        };
        match tokio::time::timeout_at(deadline, identify).await {
            Ok(Some(true)) => Reachability::Reachable,
            Ok(_) | Err(_) => Reachability::NotThisPeer,
        }
    }
}

/// Marks a peer while it is checked.
struct RunningCheck<'a> {
    running: &'a Mutex<HashSet<PeerId>>,
    peer: PeerId,
}

impl<'a> RunningCheck<'a> {
    fn begin(running: &'a Mutex<HashSet<PeerId>>, peer: PeerId) -> Result<Self, Problem> {
        match running.lock().insert(peer) {
            true => Ok(Self { running, peer }),
            false => Err(busy("a check of this peer is running")),
        }
    }
}

impl Drop for RunningCheck<'_> {
    fn drop(&mut self) {
        self.running.lock().remove(&self.peer);
    }
}

fn busy(why: &str) -> Problem {
    Problem::new(Reason::RateLimited, format!("{why}: wait for the retry delay"))
        .retry_after(SHORT_DELAY)
}

/// The registered address if its host is the IP address from which the call comes.
fn callers_own(registered: &Address, source: Option<IpAddr>) -> Option<SocketAddr> {
    let source = source?.to_canonical();
    let host: IpAddr = registered.host.parse().ok()?;
    (host.to_canonical() == source).then(|| SocketAddr::new(source, registered.port))
}

/// Whether this is an address of the index's own machine: a socket can be bound to it.
fn is_own_address(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

/// Connects to the address of a peer without TLS, and compares the id that it returns.
async fn answers_as(endpoint: &Endpoint, peer: PeerId) -> bool {
    let mut client =
        PeerServiceClient::new(endpoint.lazy_channel()).max_decoding_message_size(SMALL_REQUEST);
    let answer = client.identify(IdentifyRequest {}).await;
    answer.is_ok_and(|answer| answer.get_ref().peer_id[..] == peer.as_bytes()[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: &str) -> Address {
        Address {
            host: host.to_owned(),
            port: 7,
        }
    }

    #[test]
    fn only_the_callers_own_address_is_checked() {
        let own = |host: &str, source: &str| {
            callers_own(&address(host), source.parse().ok()).map(|found| found.to_string())
        };
        assert_eq!(own("192.0.2.7", "192.0.2.7").as_deref(), Some("192.0.2.7:7"));
        assert_eq!(
            own("192.0.2.7", "::ffff:192.0.2.7").as_deref(),
            Some("192.0.2.7:7")
        );
        assert_eq!(own("192.0.2.8", "192.0.2.7"), None);
        assert_eq!(own("127.0.0.1", "192.0.2.7"), None);
        assert_eq!(own("localhost", "127.0.0.1"), None, "names are never resolved");
        assert_eq!(callers_own(&address("192.0.2.7"), None), None);
    }

    #[test]
    fn a_peer_is_checked_once_at_a_time() {
        let running = Mutex::default();
        let first = RunningCheck::begin(&running, PeerId([1; 32])).unwrap();
        assert!(RunningCheck::begin(&running, PeerId([1; 32])).is_err());
        assert!(RunningCheck::begin(&running, PeerId([2; 32])).is_ok());
        drop(first);
        assert!(RunningCheck::begin(&running, PeerId([1; 32])).is_ok());
    }

    #[test]
    fn this_machines_addresses_are_known() {
        assert!(is_own_address([127, 0, 0, 1].into()) && is_own_address([127, 9, 9, 9].into()));
        assert!(!is_own_address([192, 0, 2, 7].into()));
    }
}
