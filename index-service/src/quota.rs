//! Limits on the call rate of one source and on the size of the index.
//!
//! Invariant: the table of sources never grows beyond its capacity. Pure: time is a parameter.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use potluck_core::grpc::limiter::{ClientAddress, client_network};

/// Limits on the use of the index. A request beyond a limit is refused with a reason.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Limits {
    /// Maximum files that one peer may register
    #[arg(long, env = "POTLUCK_INDEX_MAX_FILES_PER_PEER", value_name = "N", default_value_t = DEFAULT_FILES_PER_PEER)]
    pub max_files_per_peer: u64,

    /// Maximum peers with one host address
    #[arg(long, env = "POTLUCK_INDEX_MAX_PEERS_PER_ADDRESS", value_name = "N", default_value_t = DEFAULT_PEERS_PER_ADDRESS)]
    pub max_peers_per_address: u64,

    /// Maximum calls per second from one source address; 0 for no limit
    #[arg(long, env = "POTLUCK_INDEX_MAX_CALLS_PER_SECOND", value_name = "N", default_value_t = DEFAULT_CALLS_PER_SECOND)]
    pub max_calls_per_second: u32,

    /// Maximum open watch streams
    #[arg(long, env = "POTLUCK_INDEX_MAX_WATCHERS", value_name = "N", default_value_t = DEFAULT_WATCHERS)]
    pub max_watchers: usize,

    /// Maximum open connections; one address may hold at most half of those that others leave, the
    /// local machine any number
    #[arg(long, env = "POTLUCK_INDEX_MAX_CONNECTIONS", value_name = "N", default_value_t = DEFAULT_CONNECTIONS)]
    pub max_connections: usize,

    /// Maximum memory for registrations, in MiB; further ones are refused
    #[arg(long, env = "POTLUCK_INDEX_MAX_MEMORY_MIB", value_name = "MIB", default_value_t = DEFAULT_MEMORY_MIB)]
    pub max_memory_mib: u64,
}

/// Enough for the largest data sets that people share as folders of small files.
pub const DEFAULT_FILES_PER_PEER: u64 = 1_000_000;

/// Many peers may share one NAT address, but a flood of fake peers must not fill the index.
pub const DEFAULT_PEERS_PER_ADDRESS: u64 = 1_000;

/// Ten times the need of a thousand peers behind one address.
pub const DEFAULT_CALLS_PER_SECOND: u32 = 1_000;

/// Each watcher costs a stream and a short queue: some 10 KiB.
pub const DEFAULT_WATCHERS: usize = 20_000;

/// One connection per peer, with room for short-lived callers.
pub const DEFAULT_CONNECTIONS: usize = 10_000;

/// Some 10 million registrations, on a machine with this much memory to spare.
pub const DEFAULT_MEMORY_MIB: u64 = 4096;

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_files_per_peer: DEFAULT_FILES_PER_PEER,
            max_peers_per_address: DEFAULT_PEERS_PER_ADDRESS,
            max_calls_per_second: DEFAULT_CALLS_PER_SECOND,
            max_watchers: DEFAULT_WATCHERS,
            max_connections: DEFAULT_CONNECTIONS,
            max_memory_mib: DEFAULT_MEMORY_MIB,
        }
    }
}

/// The key under which hosts count as one: the client network of an IP address (see
/// [`client_network`]), or the host name itself.
pub fn host_key(host: &str) -> String {
    host.parse()
        .map_or_else(|_| host.to_owned(), |address| client_network(address).to_string())
}

/// Maximum percentage of the memory left by others that one peer, or all peers of one host
/// together, may use. It equals the limit for connections and leaves memory for later peers.
pub const MEMORY_SHARE: u64 = potluck_core::grpc::limiter::DEFAULT_MAX_SHARE as u64;

/// Whether the limit per host does not apply, because the address is local and its peers are
/// unrelated. The limit per peer still applies.
pub fn is_shared_host(host: &str) -> bool {
    host.parse::<IpAddr>()
        .is_ok_and(|address| ClientAddress::from(address) == ClientAddress::LOCAL)
}

/// Maximum sources remembered: some 3 MiB.
const MAX_SOURCES: usize = 65_536;

/// Burst size, in seconds of the permitted rate: a peer with a large folder starts with many calls.
const BURST: u32 = 5;

/// A source exceeded its call rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateExceeded {
    /// How long until the call would be admitted.
    pub retry_after: Duration,
}

/// Limits the calls per second of each source with the generic cell rate algorithm (ITU-T I.371),
/// which stores one instant per source.
#[derive(Debug)]
pub struct RateLimiter {
    /// Time that one call takes from the budget of its source; `None` for no limit.
    interval: Option<Duration>,
    burst: Duration,
    /// When the budget of each source is full again. Sources with a full budget may be forgotten.
    full_at: HashMap<IpAddr, Instant>,
    next_sweep: Option<Instant>,
}

impl RateLimiter {
    /// Limits each source to this many calls per second; 0 for no limit.
    pub fn new(per_second: u32) -> Self {
        let interval = Duration::from_secs(1).checked_div(per_second);
        Self {
            interval,
            burst: Duration::from_secs(u64::from(BURST)),
            full_at: HashMap::new(),
            next_sweep: None,
        }
    }

    /// Takes `cost` calls from the budget of `source`. A call that costs more than a full budget is
    /// admitted once the budget is full.
    ///
    /// # Errors
    /// [`RateExceeded`] if the budget is too low; then nothing is taken.
    pub fn take(&mut self, source: IpAddr, cost: u32, now: Instant) -> Result<(), RateExceeded> {
        let Some(interval) = self.interval else {
            return Ok(());
        };
        let source = client_network(source);
        if !self.full_at.contains_key(&source) && self.full_at.len() >= MAX_SOURCES {
            self.sweep(now)?;
        }
        let price = (interval * cost).min(self.burst);
        let whole_at = self.full_at.entry(source).or_insert(now);
        let then = (*whole_at).max(now) + price;
        let over = then.saturating_duration_since(now + self.burst);
        if !over.is_zero() {
            return Err(RateExceeded { retry_after: over });
        }
        *whole_at = then;
        Ok(())
    }

    /// Charges `source` for work that is done already, even beyond its budget. The debt is at most
    /// one full budget; the next calls of the source wait for it.
    pub fn spend(&mut self, source: IpAddr, cost: u32, now: Instant) {
        let Some(interval) = self.interval else { return };
        let source = client_network(source);
        // An admitted source is in the table unless its budget is full.
        if !self.full_at.contains_key(&source) && self.full_at.len() >= MAX_SOURCES {
            return;
        }
        let whole_at = self.full_at.entry(source).or_insert(now);
        let price = interval.saturating_mul(cost);
        *whole_at = ((*whole_at).max(now) + price.min(self.burst)).min(now + 2 * self.burst);
    }

    /// Forgets the sources with a full budget, at most once per second, because a scan of a full
    /// table is expensive.
    fn sweep(&mut self, now: Instant) -> Result<(), RateExceeded> {
        let pause = Duration::from_secs(1);
        if self.next_sweep.is_none_or(|at| at <= now) {
            self.full_at.retain(|_, whole_at| *whole_at > now);
            self.next_sweep = Some(now + pause);
        }
        match self.full_at.len() < MAX_SOURCES {
            true => Ok(()),
            false => Err(RateExceeded { retry_after: pause }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u32) -> IpAddr {
        IpAddr::V4(std::net::Ipv4Addr::from_bits(n))
    }

    #[test]
    fn a_burst_is_let_through_and_then_the_rate() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(10);
        for _ in 0..10 * BURST {
            assert_eq!(limiter.take(ip(1), 1, start), Ok(()));
        }
        let exceeded = limiter.take(ip(1), 1, start).unwrap_err();
        assert_eq!(exceeded.retry_after, Duration::from_millis(100));
        assert_eq!(
            limiter.take(ip(2), 1, start),
            Ok(()),
            "another source has its own budget"
        );
        assert_eq!(limiter.take(ip(1), 1, start + exceeded.retry_after), Ok(()));
        assert!(limiter.take(ip(1), 1, start + exceeded.retry_after).is_err());
    }

    #[test]
    fn what_was_done_already_is_paid_for_by_the_next_calls() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(10);
        limiter.spend(ip(1), 10 * BURST, start);
        limiter.spend(ip(1), 5, start);
        let exceeded = limiter.take(ip(1), 1, start).unwrap_err();
        assert_eq!(exceeded.retry_after, Duration::from_millis(600));
        for _ in 0..100 {
            limiter.spend(ip(1), u32::MAX, start);
        }
        let exceeded = limiter.take(ip(1), 1, start).unwrap_err();
        assert!(exceeded.retry_after <= Duration::from_secs(u64::from(BURST) + 1));
        assert_eq!(limiter.take(ip(2), 1, start), Ok(()));
    }

    #[test]
    fn no_limit_is_no_limit() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(0);
        for _ in 0..100_000 {
            assert_eq!(limiter.take(ip(1), 100, start), Ok(()));
        }
        assert!(limiter.full_at.is_empty());
    }

    #[test]
    fn the_costliest_call_passes_a_whole_budget() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(1);
        assert_eq!(limiter.take(ip(1), 1_000, start), Ok(()));
        assert!(limiter.take(ip(1), 1, start).is_err());
    }

    #[test]
    fn the_table_of_sources_is_bounded() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(1);
        for n in 0..MAX_SOURCES as u32 {
            assert_eq!(limiter.take(ip(n), 1, start), Ok(()));
        }
        assert!(limiter.take(ip(u32::MAX), 1, start).is_err());
        assert_eq!(limiter.full_at.len(), MAX_SOURCES);
        let later = start + Duration::from_secs(2);
        assert_eq!(limiter.take(ip(u32::MAX), 1, later), Ok(()));
        assert_eq!(limiter.full_at.len(), 1);
    }

    #[test]
    fn an_ipv6_customer_is_one_source() {
        assert_eq!(host_key("2001:db8::1"), host_key("2001:db8::ffff:1"));
        assert_ne!(host_key("2001:db8::1"), host_key("2001:db8:0:1::1"));
        assert_eq!(host_key("::ffff:10.0.0.1"), "10.0.0.1");
        assert_eq!(host_key("peer.example"), "peer.example");
    }
}
