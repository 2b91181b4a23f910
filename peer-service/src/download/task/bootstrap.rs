//! Asks peers for the metadata that a download needs before the swarm starts.
//!
//! Silent peers must not delay those that would answer. If no peer answers within [`STAGGER`], the
//! pool doubles the number of peers that it asks. Hosts take turns, and hosts with silent peers
//! come last.
//!
//! Invariants:
//!
//! - A peer whose answer failed verification is banned. It is asked again only if all others
//!   failed, after a delay that grows with each ban; its address and violation are kept.
//! - At most [`MAX_CONCURRENT`] peers are asked concurrently, plus as many that have been silent
//!   for [`SILENT`].
//! - At most [`MAX_CONCURRENT`] connections are kept.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use parking_lot::{Mutex, MutexGuard};
use potluck_core::{Problem, Reason, model::Address};
use rand::{RngExt as _, seq::SliceRandom as _};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};

use crate::download::peers::{
    MAX_CONNECTED,
    client::PeerClient,
    diagnostics::no_provider_serves,
    discovery::{Host, HostTurns, PeerCandidate, PeerCandidates},
};
use potluck_swarm::{BAN, MAX_BAN};

/// Delay before further peers are asked: most peers answer within it, wherever they are.
const STAGGER: Duration = Duration::from_millis(250);

/// Time after which a peer counts as silent and frees its permit; it may still answer.
const SILENT: Duration = Duration::from_secs(1);

/// Number of silent peers of one host after which the host's other peers come last.
const SILENT_HOST: u32 = 2;

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
    leave_from: Option<IpAddr>,
}

#[derive(Debug, Default)]
struct BootstrapState {
    clients: HashMap<Address, PeerClient>,
    misbehaving: HashMap<Address, Lie>,
    /// Number of silent peers of each host since one of its peers last answered.
    silent: HashMap<Host, u32>,
}

/// A false answer of a peer, and when the peer may be asked again.
#[derive(Debug)]
struct Lie {
    what: String,
    /// Number of false answers.
    times: u32,
    until: Instant,
}

impl Lie {
    /// A message with the violation and the time of the next attempt.
    fn told(&self) -> String {
        let left = self.until.saturating_duration_since(Instant::now()).as_secs();
        let what = &self.what;
        match left {
            0 => format!("banned: {what}; tried again now because no other peer serves it"),
            seconds => format!("banned: {what}; tried again in {seconds} s because no other peer serves it"),
        }
    }
}

impl BootstrapPool {
    /// A pool that asks the peers in `candidates`.
    pub(crate) fn new(sources: watch::Receiver<PeerCandidates>) -> Self {
        Self {
            candidates: sources,
            state: Mutex::default(),
            attempts: Semaphore::new(MAX_CONCURRENT),
            silent: Semaphore::new(MAX_CONCURRENT),
            leave_from: None,
        }
    }

    /// Makes connections leave from this local address.
    pub(crate) fn leaving_from(mut self, address: Option<IpAddr>) -> Self {
        self.leave_from = address;
        self
    }

    fn state(&self) -> MutexGuard<'_, BootstrapState> {
        self.state.lock()
    }

    /// The open connections, and the banned peers with their violations.
    pub(crate) fn into_parts(self) -> (HashMap<Address, PeerClient>, HashMap<Address, String>) {
        let state = self.state.into_inner();
        let misbehaving = state
            .misbehaving
            .into_iter()
            .map(|(address, lie)| (address, lie.what));
        (state.clients, misbehaving.collect())
    }

    /// Asks peers with staggered starts until one gives a valid answer; retries indefinitely. Calls
    /// `waiting` with the cause each time that all have failed. `op` returns
    /// [`Reason::VerificationFailed`] for a false answer, which bans the peer.
    pub(crate) async fn ask_any<T: Send>(
        &self,
        op: impl Fn(PeerClient) -> BoxFuture<'static, Result<T, Problem>> + Send + Sync,
        waiting: impl Fn(Problem) + Send + Sync,
    ) -> T {
        let mut sources = self.candidates.clone();
        let mut retry = RETRY;
        loop {
            let (list, missing) = {
                let now = sources.borrow_and_update();
                (Arc::clone(&now.list), no_provider(&now))
            };
            let mut candidates: Vec<Address> = {
                let state = self.state();
                let honest = list
                    .iter()
                    .filter(|source| !state.misbehaving.contains_key(&source.address));
                honest.map(|source| source.address.clone()).collect()
            };
            self.order(&mut candidates);
            let mut answered = self.try_candidates(candidates, &op).await;
            if answered.is_err()
                && let Some(liar) = self.due_liar(&list)
            {
                // Asked alone and only after all others failed.
                let second = self.try_candidates(vec![liar], &op).await;
                answered = second.or(answered);
            }
            match answered {
                Ok(answer) => return answer,
                Err(failed) => {
                    if let Some(problem) = self.combined_problem(&failed).or(missing) {
                        waiting(problem);
                    }
                }
            }
            tokio::select! {
                changed = sources.changed() => {
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

    /// A banned peer on the list whose ban has expired.
    fn due_liar(&self, list: &[PeerCandidate]) -> Option<Address> {
        let (state, now) = (self.state(), Instant::now());
        let mut misbehaving = list.iter().filter(|source| {
            let lie = state.misbehaving.get(&source.address);
            lie.is_some_and(|lie| lie.until <= now)
        });
        misbehaving.next().map(|source| source.address.clone())
    }

    /// Bans a peer for a delay that doubles with each false answer.
    fn ban(&self, address: Address, what: String) {
        let mut state = self.state();
        let times = state.misbehaving.get(&address).map_or(0, |lie| lie.times);
        let delay = (BAN * (1 << times.min(10))).min(MAX_BAN);
        let lie = Lie {
            what,
            times: times + 1,
            until: Instant::now() + delay.mul_f64(rand::rng().random_range(0.75..1.25)),
        };
        state.misbehaving.insert(address, lie);
    }

    /// Orders candidates: shuffled, with hosts taking turns and silent hosts last.
    fn order(&self, candidates: &mut [Address]) {
        candidates.shuffle(&mut rand::rng());
        let hosts: HashMap<Address, Host> = candidates
            .iter()
            .map(|address| (address.clone(), Host::from(address)))
            .collect();
        let mut turns = HostTurns::default();
        let state = self.state();
        candidates.sort_by_cached_key(|address| {
            let host = &hosts[address];
            let silent = state.silent.get(host).is_some_and(|&count| count >= SILENT_HOST);
            (silent, turns.next(host))
        });
    }

    /// The combined cause: peers that failed now and peers that are banned.
    fn combined_problem(&self, failed: &[(Address, Problem)]) -> Option<Problem> {
        let misbehaving: Vec<(Address, Problem)> = {
            let state = self.state();
            let before = state
                .misbehaving
                .iter()
                .filter(|(liar, _)| failed.iter().all(|(address, _)| address != *liar));
            before
                .map(|(liar, lie)| (liar.clone(), Problem::new(Reason::VerificationFailed, lie.told())))
                .collect()
        };
        let all = failed.iter().chain(&misbehaving);
        no_provider_serves(all.map(|(address, problem)| (address, problem)))
    }

    /// One round over all candidates; the problem of each if none gave a valid answer.
    async fn try_candidates<T: Send>(
        &self,
        candidates: Vec<Address>,
        op: &(impl Fn(PeerClient) -> BoxFuture<'static, Result<T, Problem>> + Send + Sync),
    ) -> Result<T, Vec<(Address, Problem)>> {
        let mut candidates = candidates.into_iter();
        let mut attempts = FuturesUnordered::new();
        let mut failed = Vec::new();
        let mut more = 1;
        loop {
            for address in candidates.by_ref().take(more) {
                attempts.push(async {
                    let asked = address.clone();
                    self.try_candidate(address, op)
                        .await
                        .map_err(|problem| (asked, problem))
                });
            }
            if attempts.is_empty() {
                return Err(failed);
            }
            let stagger = match candidates.len() {
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
        let asked = async {
            let client = match known {
                Some(client) => client,
                None => PeerClient::open(&address, self.leave_from).await?,
            };
            let told = op(client.clone()).await;
            // A peer that accepts the connection but does not answer is not kept.
            if !matches!(&told, Err(problem) if is_silence(problem)) {
                self.keep_client(&address, &client);
            }
            told
        };
        tokio::pin!(asked);
        let host = Host::from(&address);
        let told = match tokio::time::timeout(SILENT, &mut asked).await {
            Ok(told) => {
                self.state().silent.remove(&host);
                told
            }
            Err(_) => {
                *self.state().silent.entry(host).or_default() += 1;
                // Dropping the acquisition leaves the semaphore's queue.
                tokio::select! {
                    told = &mut asked => told,
                    silent = self.silent.acquire() => {
                        // Frees the permit for another peer.
                        drop(attempt);
                        let told = asked.await;
                        drop(silent);
                        told
                    }
                }
            }
        };
        if told.is_ok() {
            self.state().misbehaving.remove(&address);
        }
        if let Err(problem) = &told {
            match problem.reason {
                Reason::VerificationFailed => {
                    tracing::warn!(peer = %address, %problem, "banned a peer");
                    self.ban(address.clone(), problem.message.clone());
                }
                _ if is_silence(problem) => {
                    self.state().clients.remove(&address);
                }
                _ => {}
            }
        }
        told
    }
}

/// Whether the connection failed or timed out and is of no further use.
const fn is_silence(problem: &Problem) -> bool {
    matches!(problem.reason, Reason::Unreachable | Reason::TimedOut)
}

/// The problem to report if no peer is known.
pub(crate) fn no_provider(sources: &PeerCandidates) -> Option<Problem> {
    if !sources.list.is_empty() || !sources.index_answered {
        return None;
    }
    Some(match &sources.index_error {
        Some(problem) => problem.clone(),
        None => Problem::new(Reason::NoProviders, "no peer offers it now"),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt as _;

    use super::*;

    fn address(n: usize) -> Address {
        Address {
            host: "192.0.2.1".into(),
            port: 1000 + n as u16,
        }
    }

    /// A pool whose peers are already connected, so that it opens no connection.
    fn dialer(addresses: impl Iterator<Item = Address>) -> BootstrapPool {
        let (_list, sources) = watch::channel(PeerCandidates::default());
        let pool = BootstrapPool::new(sources);
        for address in addresses {
            pool.state().clients.insert(address, PeerClient::to_nobody());
        }
        pool
    }

    #[tokio::test(start_paused = true)]
    async fn however_many_say_nothing_few_are_asked_at_once() {
        let all = 4 * MAX_CONCURRENT;
        let pool = dialer((0..all).map(address));
        let asked = Arc::new(AtomicUsize::new(0));
        let op = |_| {
            let asked = Arc::clone(&asked);
            async move {
                let asked = asked.fetch_add(1, Ordering::Relaxed) + 1;
                tokio::time::sleep(Duration::from_secs(100)).await;
                match asked == all {
                    true => Ok(()),
                    false => Err(Problem::new(Reason::NotFound, "has nothing")),
                }
            }
            .boxed()
        };
        let round = pool.try_candidates((0..all).map(address).collect(), &op);
        tokio::pin!(round);
        let waited = tokio::time::timeout(Duration::from_secs(99), &mut round).await;
        assert!(waited.is_err());
        assert_eq!(
            asked.load(Ordering::Relaxed),
            2 * MAX_CONCURRENT,
            "those that are silent, and others"
        );
        assert!(round.await.is_ok(), "everyone has its turn");
    }

    /// A damaged connection may have corrupted the answer.
    #[tokio::test(start_paused = true)]
    async fn a_peer_that_lied_is_asked_again_after_a_while_where_nobody_else_is_left() {
        let list = PeerCandidates {
            list: Arc::new(vec![PeerCandidate {
                address: address(0),
                peer: None,
            }]),
            ..PeerCandidates::default()
        };
        let (_list, sources) = watch::channel(list);
        let pool = BootstrapPool::new(sources);
        pool.state().clients.insert(address(0), PeerClient::to_nobody());
        let asked = Arc::new(AtomicUsize::new(0));
        let op = |_| {
            let asked = Arc::clone(&asked);
            async move {
                match asked.fetch_add(1, Ordering::Relaxed) {
                    0 => Err(Problem::new(Reason::VerificationFailed, "lied")),
                    _ => Ok(()),
                }
            }
            .boxed()
        };
        let (begun, told) = (Instant::now(), Mutex::new(Vec::new()));
        let note = |problem: Problem| told.lock().push(problem.message);
        pool.ask_any(op, note).await;
        assert!(begun.elapsed() >= BAN.mul_f64(0.75), "{:?}", begun.elapsed());
        assert_eq!(asked.load(Ordering::Relaxed), 2);
        let told = told.into_inner();
        assert!(
            told.iter()
                .any(|message| message.contains("banned: lied; tried again in")),
            "{told:?}"
        );
        assert!(pool.into_parts().1.is_empty(), "it answered well");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_that_say_nothing_keep_nobody_waiting_for_long() {
        let count = 100;
        let pool = dialer((0..=count).map(address));
        let asked = Arc::new(AtomicUsize::new(0));
        let op = |_| {
            let asked = Arc::clone(&asked);
            async move {
                match asked.fetch_add(1, Ordering::Relaxed) == count {
                    true => Ok(()),
                    false => std::future::pending().await,
                }
            }
            .boxed()
        };
        let began = tokio::time::Instant::now();
        let round = pool.try_candidates((0..=count).map(address).collect(), &op).await;
        assert!(
            round.is_ok() && began.elapsed() < Duration::from_secs(3),
            "{:?}",
            began.elapsed()
        );
    }

    #[tokio::test]
    async fn hosts_take_turns_and_silent_ones_come_last() {
        let other = |n: u8| Address {
            host: format!("198.51.100.{n}"),
            port: 1,
        };
        let pool = dialer(std::iter::empty());
        let all = || -> Vec<Address> { (0..300).map(address).chain((1..=3).map(other)).collect() };
        let mut order = all();
        pool.order(&mut order);
        let hosts: std::collections::HashSet<_> = order[..4].iter().map(|address| &address.host).collect();
        assert_eq!(hosts.len(), 4, "{:?}", &order[..4]);
        pool.state().silent.insert(Host::from(&address(0)), SILENT_HOST);
        let mut order = all();
        pool.order(&mut order);
        assert!(order[..3].iter().all(|address| address.host != "192.0.2.1"));
    }

    #[tokio::test]
    async fn few_connections_are_kept() {
        let (_list, sources) = watch::channel(PeerCandidates::default());
        let pool = BootstrapPool::new(sources);
        (0..2 * MAX_CONCURRENT).for_each(|n| pool.keep_client(&address(n), &PeerClient::to_nobody()));
        assert_eq!(pool.into_parts().0.len(), MAX_CONCURRENT);
    }
}
