//! Asking whichever peer answers: for what a transfer needs to know before the swarm can begin.
//!
//! Peers that say nothing must not keep those that would answer waiting: each time nobody has
//! answered for [`STAGGER`], as many more are asked as were before. Hosts take turns, and one whose
//! peers were silent comes last.
//!
//! Invariants: a peer whose answer was checked and found false is asked again only where all others
//! failed, after a delay that grows each time, and its name and lie are kept; at most [`MAX_CONCURRENT`]
//! peers are asked at once, besides as many that have been silent for [`SILENT`]; as many
//! connections are kept, however many there are.

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

/// How long peers have before others are asked as well: most answer within it, wherever they are.
const STAGGER: Duration = Duration::from_millis(250);

/// How long a peer may take before it no longer counts as one that is asked: it may still answer.
const SILENT: Duration = Duration::from_secs(1);

/// Silent peers of one host after which its others come last.
const SILENT_HOST: u32 = 2;

/// Peers asked at once, over all questions, and connections kept: as many as the swarm then connects to.
const MAX_CONCURRENT: usize = MAX_CONNECTED;

/// First wait after everyone failed; doubles up to [`MAX_RETRY`].
const RETRY: Duration = Duration::from_millis(250);

/// Longest such wait.
const MAX_RETRY: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(crate) struct BootstrapPool {
    candidates: watch::Receiver<PeerCandidates>,
    state: Mutex<BootstrapState>,
    attempts: Semaphore,
    /// For those that are silent.
    silent: Semaphore,
    leave_from: Option<IpAddr>,
}

#[derive(Debug, Default)]
struct BootstrapState {
    clients: HashMap<Address, PeerClient>,
    misbehaving: HashMap<Address, Lie>,
    /// How many peers of each host were silent since one of them answered.
    silent: HashMap<Host, u32>,
}

/// What a peer answered falsely, and when it may be asked again.
#[derive(Debug)]
struct Lie {
    what: String,
    /// How often it lied.
    times: u32,
    until: Instant,
}

impl Lie {
    /// In words, with when the peer is asked again.
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
    /// Asks those in `candidates`.
    pub(crate) fn new(sources: watch::Receiver<PeerCandidates>) -> Self {
        Self {
            candidates: sources,
            state: Mutex::default(),
            attempts: Semaphore::new(MAX_CONCURRENT),
            silent: Semaphore::new(MAX_CONCURRENT),
            leave_from: None,
        }
    }

    /// The same, whose connections leave from this address of this machine.
    pub(crate) fn leaving_from(mut self, address: Option<IpAddr>) -> Self {
        self.leave_from = address;
        self
    }

    fn state(&self) -> MutexGuard<'_, BootstrapState> {
        self.state.lock()
    }

    /// Connections that were made and the peers that lied, with what they did.
    pub(crate) fn into_parts(self) -> (HashMap<Address, PeerClient>, HashMap<Address, String>) {
        let state = self.state.into_inner();
        let misbehaving = state
            .misbehaving
            .into_iter()
            .map(|(address, lie)| (address, lie.what));
        (state.clients, misbehaving.collect())
    }

    /// Asks one peer after the other, each a while after the one before, until one answers well; tries again for as long as it takes.
    /// `waiting` is told why each time that all have failed. An answer with [`Reason::VerificationFailed`] is a lie.
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
                // Alone, and only now: nobody else has it.
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
                        // Nobody will ever add a source: only time can help.
                        tokio::time::sleep(retry).await;
                    }
                }
                () = tokio::time::sleep(retry) => {}
            }
            retry = (retry * 2).min(MAX_RETRY);
        }
    }

    /// Of those on the list that lied, one that may be asked again.
    fn due_liar(&self, list: &[PeerCandidate]) -> Option<Address> {
        let (state, now) = (self.state(), Instant::now());
        let mut misbehaving = list.iter().filter(|source| {
            let lie = state.misbehaving.get(&source.address);
            lie.is_some_and(|lie| lie.until <= now)
        });
        misbehaving.next().map(|source| source.address.clone())
    }

    /// Notes that a peer lied; it may be asked again after a while.
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

    /// Puts candidates in the order in which they are asked: by lot, hosts taking turns, silent hosts last.
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

    /// What keeps all from answering well: those who failed now, and those who lied before.
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

    /// One round over all candidates; each one's problem where none answered well.
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
                // Beyond this many they would only wait for each other.
                Err(_) => attempts.len().min(MAX_CONCURRENT),
            };
        }
    }

    /// Keeps a connection for later, if there is room for it.
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
            // Whoever only takes connections has not answered.
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
                // An acquisition that is dropped leaves the queue.
                tokio::select! {
                    told = &mut asked => told,
                    silent = self.silent.acquire() => {
                        // Others have their turn.
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

/// Whether a connection that fails so is of no further use.
const fn is_silence(problem: &Problem) -> bool {
    matches!(problem.reason, Reason::Unreachable | Reason::TimedOut)
}

/// What to say where nobody is known who could be asked.
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

    /// A dialer whose peers are connected already, so that nobody is called.
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

    /// The link to it may have damaged its answer.
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
