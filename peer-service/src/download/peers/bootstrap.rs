//! Asks peers for the metadata that a download needs before the swarm starts.
//!
//! Silent peers must not delay those that would answer. If no peer answers within [`STAGGER`], the
//! pool doubles the number of peers that it asks. It asks one peer of every host before a second of
//! any, and peers of silent hosts last.
//!
//! Invariants:
//!
//! - A peer whose answer failed verification is banned. It is asked again only if all others
//!   failed, after a delay that grows with each ban; its address and violation are kept.
//! - At most [`MAX_CONCURRENT`] peers are asked concurrently, plus as many that have been silent
//!   for [`SILENCE_TIMEOUT`].
//! - At most [`MAX_CONCURRENT`] connections are kept.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use parking_lot::{Mutex, MutexGuard};
use potluck_core::{PeerId, Problem, Reason, model::Address};
use rand::{RngExt as _, seq::SliceRandom as _};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};

use crate::download::{
    counters::{BanReason, DownloadCounters},
    outgoing::Outgoing,
    peers::{
        diagnostics::no_provider_serves,
        discovery::{PeerCandidate, PeerCandidates},
        host::{Host, HostRounds, SilentHosts},
        peer_set::{KnownPeers, MAX_CONNECTED},
        rpc::client::PeerClient,
    },
};
use potluck_swarm::{BAN, MAX_BAN};

/// Delay before further peers are asked: most peers answer within it, wherever they are.
const STAGGER: Duration = Duration::from_millis(250);

/// Time after which a peer counts as silent and frees its permit; it may still answer.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum peers asked concurrently, and connections kept: as many as the swarm then connects to.
const MAX_CONCURRENT: usize = MAX_CONNECTED;

/// First delay after all peers failed; doubles up to [`MAX_RETRY`].
const RETRY: Duration = Duration::from_millis(250);

/// Maximum of that delay.
const MAX_RETRY: Duration = Duration::from_secs(5);

/// Asks candidates until one answers, and keeps the connections.
#[derive(Debug)]
pub(crate) struct BootstrapPool {
    candidates: watch::Receiver<PeerCandidates>,
    state: Mutex<BootstrapState>,
    attempts: Semaphore,
    /// Permits for silent peers.
    silent: Semaphore,
    outgoing: Outgoing,
    counters: DownloadCounters,
}

#[derive(Debug, Default)]
struct BootstrapState {
    clients: HashMap<Address, PeerClient>,
    violations: HashMap<Address, Violation>,
    silent_hosts: SilentHosts,
}

/// A false answer of a peer, and when the peer may be asked again.
#[derive(Debug)]
struct Violation {
    description: String,
    /// Number of false answers.
    count: u32,
    banned_until: Instant,
}

impl Violation {
    /// A message with the violation and the time of the next attempt.
    fn message(&self) -> String {
        let left = self
            .banned_until
            .saturating_duration_since(Instant::now())
            .as_secs();
        let description = &self.description;
        let when = match left {
            0 => "now".to_owned(),
            seconds => format!("in {seconds} s"),
        };
        format!("banned: {description}; tried again {when} because no other peer serves it")
    }
}

impl BootstrapPool {
    /// A pool that asks the peers in `candidates`, and counts bans in `counters`.
    pub(crate) fn new(
        candidates: watch::Receiver<PeerCandidates>,
        outgoing: Outgoing,
        counters: DownloadCounters,
    ) -> Self {
        Self {
            candidates,
            state: Mutex::default(),
            attempts: Semaphore::new(MAX_CONCURRENT),
            silent: Semaphore::new(MAX_CONCURRENT),
            outgoing,
            counters,
        }
    }

    fn state(&self) -> MutexGuard<'_, BootstrapState> {
        self.state.lock()
    }

    /// The peers that were asked, for the swarm.
    pub(crate) fn into_known_peers(self) -> KnownPeers {
        let state = self.state.into_inner();
        let violations = state.violations.into_iter();
        KnownPeers {
            clients: state.clients,
            violations: violations
                .map(|(address, violation)| (address, violation.description))
                .collect(),
        }
    }

    /// Asks peers with staggered starts until one gives a valid answer; retries indefinitely. Calls
    /// `waiting` with the cause each time that all have failed. `op` returns
    /// [`Reason::VerificationFailed`] for a false answer, which bans the peer.
    pub(crate) async fn ask_any<T: Send>(
        &self,
        op: impl Fn(PeerClient) -> BoxFuture<'static, Result<T, Problem>> + Send + Sync,
        waiting: impl Fn(Problem) + Send + Sync,
    ) -> T {
        let mut candidates = self.candidates.clone();
        let mut retry = RETRY;
        loop {
            let (list, no_provider) = {
                let now = candidates.borrow_and_update();
                (Arc::clone(&now.list), now.no_provider())
            };
            let mut addresses: Vec<Address> = {
                let state = self.state();
                let not_banned = list
                    .iter()
                    .filter(|candidate| !state.violations.contains_key(&candidate.address));
                not_banned.map(|candidate| candidate.address.clone()).collect()
            };
            self.order(&mut addresses);
            let mut result = self.try_candidates(addresses, &op).await;
            if result.is_err()
                && let Some(address) = self.expired_ban(&list)
            {
                // Asked alone and only after all others failed.
                let second = self.try_candidates(vec![address], &op).await;
                result = second.or(result);
            }
            match result {
                Ok(answer) => return answer,
                Err(failed) => {
                    if let Some(problem) = self.combined_problem(&failed).or(no_provider) {
                        waiting(problem);
                    }
                }
            }
            tokio::select! {
                changed = candidates.changed() => {
                    if changed.is_err() {
                        // The list of candidates can no longer change, so only waiting can help.
                        tokio::time::sleep(retry).await;
                    }
                }
                () = tokio::time::sleep(retry) => {}
            }
            retry = (retry * 2).min(MAX_RETRY);
        }
    }

    /// A peer on the list whose ban has expired.
    fn expired_ban(&self, list: &[PeerCandidate]) -> Option<Address> {
        let (state, now) = (self.state(), Instant::now());
        let mut expired = list.iter().filter(|candidate| {
            let violation = state.violations.get(&candidate.address);
            violation.is_some_and(|violation| violation.banned_until <= now)
        });
        expired.next().map(|candidate| candidate.address.clone())
    }

    /// Bans a peer for a time that doubles with each false answer.
    fn ban(&self, address: Address, description: String) {
        self.counters.add_ban(BanReason::WrongMetadata);
        let mut state = self.state();
        let count = state
            .violations
            .get(&address)
            .map_or(0, |violation| violation.count);
        let time = (BAN * (1 << count.min(10))).min(MAX_BAN);
        let violation = Violation {
            description,
            count: count + 1,
            banned_until: Instant::now() + time.mul_f64(rand::rng().random_range(0.75..1.25)),
        };
        state.violations.insert(address, violation);
    }

    /// Orders addresses: one of every host before a second of any, and silent hosts last; random
    /// otherwise.
    fn order(&self, addresses: &mut [Address]) {
        addresses.shuffle(&mut rand::rng());
        let hosts: HashMap<Address, Host> = addresses
            .iter()
            .map(|address| (address.clone(), Host::from(address)))
            .collect();
        let mut rounds = HostRounds::default();
        let state = self.state();
        addresses.sort_by_cached_key(|address| {
            let host = &hosts[address];
            (state.silent_hosts.is_silent(host), rounds.next(host))
        });
    }

    /// The combined cause: peers that failed now and peers that are banned.
    fn combined_problem(&self, failed: &[(Address, Problem)]) -> Option<Problem> {
        let banned: Vec<(Address, Problem)> = {
            let state = self.state();
            let others = state
                .violations
                .iter()
                .filter(|(banned, _)| failed.iter().all(|(address, _)| address != *banned));
            others
                .map(|(address, violation)| {
                    let problem = Problem::new(Reason::VerificationFailed, violation.message());
                    (address.clone(), problem)
                })
                .collect()
        };
        let all = failed.iter().chain(&banned);
        no_provider_serves(all.map(|(address, problem)| (address, problem)))
    }

    /// One round over all candidates; the problem of each if none gave a valid answer.
    async fn try_candidates<T: Send>(
        &self,
        addresses: Vec<Address>,
        op: &(impl Fn(PeerClient) -> BoxFuture<'static, Result<T, Problem>> + Send + Sync),
    ) -> Result<T, Vec<(Address, Problem)>> {
        let mut addresses = addresses.into_iter();
        let mut attempts = FuturesUnordered::new();
        let mut failed = Vec::new();
        let mut more = 1;
        loop {
            for address in addresses.by_ref().take(more) {
                attempts.push(async {
                    let failed = address.clone();
                    self.try_candidate(address, op)
                        .await
                        .map_err(|problem| (failed, problem))
                });
            }
            if attempts.is_empty() {
                return Err(failed);
            }
            let stagger = match addresses.len() {
                0 => Duration::MAX,
                _ => STAGGER,
            };
            more = match tokio::time::timeout(stagger, attempts.next()).await {
                Ok(Some(Ok(answer))) => return Ok(answer),
                Ok(Some(Err(failure))) => {
                    failed.push(failure);
                    1
                }
                Ok(None) => 1,
                // More attempts than this would only wait for permits.
                Err(_) => attempts.len().min(MAX_CONCURRENT),
            };
        }
    }

    /// The id of the peer at this address, if the index reported it.
    fn peer_at(&self, address: &Address) -> Option<PeerId> {
        let candidates = self.candidates.borrow();
        let mut found = candidates.list.iter().filter(|found| found.address == *address);
        found.next().and_then(|candidate| candidate.peer)
    }

    /// Keeps a connection for later if there is room.
    fn keep_client(&self, address: &Address, client: &PeerClient) {
        let mut state = self.state();
        if state.clients.len() < MAX_CONCURRENT {
            state.clients.insert(address.clone(), client.clone());
        }
    }

    async fn try_candidate<T: Send>(
        &self,
        address: Address,
        op: &(impl Fn(PeerClient) -> BoxFuture<'static, Result<T, Problem>> + Send + Sync),
    ) -> Result<T, Problem> {
        let attempt = self.attempts.acquire().await;
        let known = self.state().clients.get(&address).cloned();
        let call = async {
            let client = match known {
                Some(client) => client,
                None => {
                    let peer = self.peer_at(&address);
                    PeerClient::open(&address, peer, &self.outgoing).await?
                }
            };
            let answer = op(client.clone()).await;
            // A peer that accepts the connection but does not answer is not kept.
            if !matches!(&answer, Err(problem) if is_silence(problem)) {
                self.keep_client(&address, &client);
            }
            answer
        };
        tokio::pin!(call);
        let host = Host::from(&address);
        let answer = match tokio::time::timeout(SILENCE_TIMEOUT, &mut call).await {
            Ok(answer) => {
                self.state().silent_hosts.record_answer(&host);
                answer
            }
            Err(_) => {
                self.state().silent_hosts.record_silence(&host);
                // Dropping the acquisition leaves the semaphore's queue.
                tokio::select! {
                    answer = &mut call => answer,
                    silent = self.silent.acquire() => {
                        // Frees the permit for another peer.
                        drop(attempt);
                        let answer = call.await;
                        drop(silent);
                        answer
                    }
                }
            }
        };
        match &answer {
            Ok(_) => {
                self.state().violations.remove(&address);
            }
            Err(problem) if problem.reason == Reason::VerificationFailed => {
                tracing::warn!(peer = %address, %problem, "banned a peer");
                self.ban(address.clone(), problem.message.clone());
            }
            Err(problem) if is_silence(problem) => {
                self.state().clients.remove(&address);
            }
            Err(_) => {}
        }
        answer
    }
}

/// Whether the connection failed or timed out and is of no further use.
const fn is_silence(problem: &Problem) -> bool {
    matches!(problem.reason, Reason::Unreachable | Reason::TimedOut)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt as _;

    use super::*;
    use crate::download::peers::host::MAX_SILENT;

    fn address(n: usize) -> Address {
        Address {
            host: "192.0.2.1".into(),
            port: 1000 + n as u16,
        }
    }

    /// A pool whose peers are already connected, so that it opens no connection.
    fn pool(addresses: impl Iterator<Item = Address>) -> BootstrapPool {
        let (_list, candidates) = watch::channel(PeerCandidates::default());
        let pool = BootstrapPool::new(candidates, Outgoing::default(), DownloadCounters::default());
        for address in addresses {
            pool.state().clients.insert(address, PeerClient::to_nobody());
        }
        pool
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_concurrent_requests_is_bounded_however_many_peers_are_silent() {
        let all = 4 * MAX_CONCURRENT;
        let pool = pool((0..all).map(address));
        let calls = Arc::new(AtomicUsize::new(0));
        let op = |_| {
            let calls = Arc::clone(&calls);
            async move {
                let number = calls.fetch_add(1, Ordering::Relaxed) + 1;
                tokio::time::sleep(Duration::from_secs(100)).await;
                match number == all {
                    true => Ok(()),
                    false => Err(Problem::new(Reason::NotFound, "not shared")),
                }
            }
            .boxed()
        };
        let round = pool.try_candidates((0..all).map(address).collect(), &op);
        tokio::pin!(round);
        let waited = tokio::time::timeout(Duration::from_secs(99), &mut round).await;
        assert!(waited.is_err());
        assert_eq!(
            calls.load(Ordering::Relaxed),
            2 * MAX_CONCURRENT,
            "the silent ones, and as many others"
        );
        assert!(round.await.is_ok(), "every peer is asked in the end");
    }

    /// A damaged connection may have corrupted the answer.
    #[tokio::test(start_paused = true)]
    async fn a_banned_peer_is_asked_again_later_if_there_is_no_other() {
        let list = PeerCandidates {
            list: Arc::new(vec![PeerCandidate {
                address: address(0),
                peer: None,
            }]),
            ..PeerCandidates::default()
        };
        let (_list, candidates) = watch::channel(list);
        let pool = BootstrapPool::new(candidates, Outgoing::default(), DownloadCounters::default());
        pool.state().clients.insert(address(0), PeerClient::to_nobody());
        let calls = Arc::new(AtomicUsize::new(0));
        let op = |_| {
            let calls = Arc::clone(&calls);
            async move {
                match calls.fetch_add(1, Ordering::Relaxed) {
                    0 => Err(Problem::new(Reason::VerificationFailed, "false answer")),
                    _ => Ok(()),
                }
            }
            .boxed()
        };
        let (started, messages) = (Instant::now(), Mutex::new(Vec::new()));
        let waiting = |problem: Problem| messages.lock().push(problem.message);
        pool.ask_any(op, waiting).await;
        assert!(started.elapsed() >= BAN.mul_f64(0.75), "{:?}", started.elapsed());
        assert_eq!(calls.load(Ordering::Relaxed), 2);
        assert_eq!(pool.counters.bans().map(|(_, count)| count).sum::<u64>(), 1);
        let messages = messages.into_inner();
        assert!(
            messages
                .iter()
                .any(|message| message.contains("banned: false answer; tried again in")),
            "{messages:?}"
        );
        assert!(pool.into_known_peers().violations.is_empty(), "it answered well");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_silent_peers_do_not_delay_the_answer_of_another() {
        let count = 100;
        let pool = pool((0..=count).map(address));
        let calls = Arc::new(AtomicUsize::new(0));
        let op = |_| {
            let calls = Arc::clone(&calls);
            async move {
                match calls.fetch_add(1, Ordering::Relaxed) == count {
                    true => Ok(()),
                    false => std::future::pending().await,
                }
            }
            .boxed()
        };
        let started = Instant::now();
        let round = pool.try_candidates((0..=count).map(address).collect(), &op).await;
        assert!(
            round.is_ok() && started.elapsed() < Duration::from_secs(3),
            "{:?}",
            started.elapsed()
        );
    }

    #[tokio::test]
    async fn hosts_are_asked_in_rounds_and_silent_ones_last() {
        let other = |n: u8| Address {
            host: format!("198.51.100.{n}"),
            port: 1,
        };
        let pool = pool(std::iter::empty());
        let all = || -> Vec<Address> { (0..300).map(address).chain((1..=3).map(other)).collect() };
        let mut order = all();
        pool.order(&mut order);
        let hosts: std::collections::HashSet<_> =
            order[..4].iter().map(|address| &address.host).collect();
        assert_eq!(hosts.len(), 4, "{:?}", &order[..4]);
        (0..MAX_SILENT)
            .for_each(|_| pool.state().silent_hosts.record_silence(&Host::from(&address(0))));
        let mut order = all();
        pool.order(&mut order);
        assert!(order[..3].iter().all(|address| address.host != "192.0.2.1"));
    }

    #[tokio::test]
    async fn the_number_of_kept_connections_is_bounded() {
        let (_list, candidates) = watch::channel(PeerCandidates::default());
        let pool = BootstrapPool::new(candidates, Outgoing::default(), DownloadCounters::default());
        (0..2 * MAX_CONCURRENT)
            .for_each(|n| pool.keep_client(&address(n), &PeerClient::to_nobody()));
        assert_eq!(pool.into_known_peers().clients.len(), MAX_CONCURRENT);
    }
}
