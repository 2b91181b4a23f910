//! Asking whichever peer answers: for what a transfer needs to know before the swarm can begin.
//!
//! Invariants: a peer whose answer was checked and found false is not asked again, and its name and lie are kept; at most
//! [`AT_ONCE`] peers are asked at once, and as many connections kept, however many there are.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use potluck_core::{Problem, Reason, index_client::Address};
use rand::seq::SliceRandom as _;
use tokio::sync::{Semaphore, watch};

use super::{link::Link, peers::MAX_CONNECTED, sources::Sources, unserved::unserved};

/// How long one peer has before another is asked as well.
const STAGGER: Duration = Duration::from_millis(500);

/// Peers asked at once, over all questions, and connections kept: as many as the swarm then connects to.
const AT_ONCE: usize = MAX_CONNECTED;

/// First wait after everyone failed; doubles up to [`MAX_RETRY`].
const RETRY: Duration = Duration::from_millis(250);

/// Longest such wait.
const MAX_RETRY: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(crate) struct Dialer {
    sources: watch::Receiver<Sources>,
    state: Mutex<State>,
    attempts: Semaphore,
    leave_from: Option<IpAddr>,
}

#[derive(Debug, Default)]
struct State {
    links: HashMap<Address, Link>,
    liars: HashMap<Address, String>,
}

impl Dialer {
    /// Asks those in `sources`.
    pub(crate) fn new(sources: watch::Receiver<Sources>) -> Self {
        Self {
            sources,
            state: Mutex::default(),
            attempts: Semaphore::new(AT_ONCE),
            leave_from: None,
        }
    }

    /// The same, whose connections leave from this address of this machine.
    pub(crate) fn leaving_from(mut self, address: Option<IpAddr>) -> Self {
        self.leave_from = address;
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connections that were made and the peers that lied, with what they did.
    pub(crate) fn into_parts(self) -> (HashMap<Address, Link>, HashMap<Address, String>) {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        (state.links, state.liars)
    }

    /// Asks one peer after the other, each a while after the one before, until one answers well; tries again for as long as it takes.
    /// `waiting` is told why each time that all have failed. An answer with [`Reason::VerificationFailed`] is a lie.
    pub(crate) async fn ask<T: Send>(
        &self,
        op: impl Fn(Link) -> BoxFuture<'static, Result<T, Problem>> + Send + Sync,
        waiting: impl Fn(Problem) + Send + Sync,
    ) -> T {
        let mut sources = self.sources.clone();
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
                    .filter(|source| !state.liars.contains_key(&source.address));
                honest.map(|source| source.address.clone()).collect()
            };
            candidates.shuffle(&mut rand::rng());
            match self.round(candidates, &op).await {
                Ok(answer) => return answer,
                Err(failed) => {
                    if let Some(problem) = self.told(&failed).or(missing) {
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

    /// What keeps all from answering well: those who failed now, and those who lied before.
    fn told(&self, failed: &[(Address, Problem)]) -> Option<Problem> {
        let liars: Vec<(Address, Problem)> = {
            let state = self.state();
            let before = state
                .liars
                .iter()
                .filter(|(liar, _)| failed.iter().all(|(address, _)| address != *liar));
            before
                .map(|(liar, what)| (liar.clone(), Problem::new(Reason::VerificationFailed, what)))
                .collect()
        };
        let all = failed.iter().chain(&liars);
        unserved(all.map(|(address, problem)| (address, problem)))
    }

    /// One round over all candidates; each one's problem where none answered well.
    async fn round<T: Send>(
        &self,
        candidates: Vec<Address>,
        op: &(impl Fn(Link) -> BoxFuture<'static, Result<T, Problem>> + Send + Sync),
    ) -> Result<T, Vec<(Address, Problem)>> {
        let mut candidates = candidates.into_iter();
        let mut attempts = FuturesUnordered::new();
        let mut failed = Vec::new();
        loop {
            if let Some(address) = candidates.next() {
                attempts.push(async {
                    let asked = address.clone();
                    self.attempt(address, op)
                        .await
                        .map_err(|problem| (asked, problem))
                });
            } else if attempts.is_empty() {
                return Err(failed);
            }
            let stagger = match candidates.len() {
                0 => Duration::MAX,
                _ => STAGGER,
            };
            match tokio::time::timeout(stagger, attempts.next()).await {
                Ok(Some(Ok(answer))) => return Ok(answer),
                Ok(Some(Err(failure))) => failed.push(failure),
                Ok(None) | Err(_) => {}
            }
        }
    }

    /// Keeps a connection for later, if there is room for it.
    fn keep(&self, address: &Address, link: &Link) {
        let mut state = self.state();
        if state.links.len() < AT_ONCE {
            state.links.insert(address.clone(), link.clone());
        }
    }

    async fn attempt<T: Send>(
        &self,
        address: Address,
        op: &(impl Fn(Link) -> BoxFuture<'static, Result<T, Problem>> + Send + Sync),
    ) -> Result<T, Problem> {
        let _attempt = self.attempts.acquire().await;
        let known = self.state().links.get(&address).cloned();
        let link = match known {
            Some(link) => link,
            None => {
                let link = Link::open(&address, self.leave_from).await?;
                self.keep(&address, &link);
                link
            }
        };
        let told = op(link).await;
        if let Err(problem) = &told {
            match problem.reason {
                Reason::VerificationFailed => {
                    tracing::warn!(peer = %address, %problem, "banned a peer");
                    self.state().liars.insert(address, problem.message.clone());
                }
                Reason::Unreachable | Reason::TimedOut => {
                    self.state().links.remove(&address);
                }
                _ => {}
            }
        }
        told
    }
}

/// What to say where nobody is known who could be asked.
pub(crate) fn no_provider(sources: &Sources) -> Option<Problem> {
    if !sources.list.is_empty() || !sources.asked {
        return None;
    }
    Some(match &sources.index_error {
        Some(problem) => problem.clone(),
        None => Problem::new(
            Reason::NoProviders,
            "no peer offers it now: it goes on as soon as one does",
        ),
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

    #[tokio::test(start_paused = true)]
    async fn however_many_say_nothing_few_are_asked_at_once() {
        let (_list, sources) = watch::channel(Sources::default());
        let dialer = Dialer::new(sources);
        let all = 3 * AT_ONCE;
        for n in 0..all {
            dialer.state().links.insert(address(n), Link::to_nobody());
        }
        let asked = Arc::new(AtomicUsize::new(0));
        let op = |_| {
            let asked = Arc::clone(&asked);
            async move {
                let asked = asked.fetch_add(1, Ordering::Relaxed) + 1;
                tokio::time::sleep(STAGGER * all as u32).await;
                match asked == all {
                    true => Ok(()),
                    false => Err(Problem::new(Reason::NotFound, "has nothing")),
                }
            }
            .boxed()
        };
        let round = dialer.round((0..all).map(address).collect(), &op);
        tokio::pin!(round);
        let waited = tokio::time::timeout(STAGGER * (all as u32 - 1), &mut round).await;
        assert!(waited.is_err());
        assert_eq!(asked.load(Ordering::Relaxed), AT_ONCE);
        assert!(round.await.is_ok(), "everyone has its turn");
    }

    #[tokio::test]
    async fn few_connections_are_kept() {
        let (_list, sources) = watch::channel(Sources::default());
        let dialer = Dialer::new(sources);
        (0..2 * AT_ONCE).for_each(|n| dialer.keep(&address(n), &Link::to_nobody()));
        assert_eq!(dialer.into_parts().0.len(), AT_ONCE);
    }
}
