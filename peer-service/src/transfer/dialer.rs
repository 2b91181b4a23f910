//! Asking whichever peer answers: for what a transfer needs to know before the swarm can begin.
//!
//! Invariant: a peer whose answer was checked and found false is not asked again, and its name and lie are kept.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use potluck_core::{Problem, Reason, index_client::Address};
use rand::seq::SliceRandom as _;
use tokio::sync::watch;

use super::{link::Link, sources::Sources};

/// How long one peer has before another is asked as well.
const STAGGER: Duration = Duration::from_millis(500);

/// First wait after everyone failed; doubles up to [`MAX_RETRY`].
const RETRY: Duration = Duration::from_millis(250);

/// Longest such wait.
const MAX_RETRY: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(crate) struct Dialer {
    sources: watch::Receiver<Sources>,
    state: Mutex<State>,
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
        }
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
                Err(problem) => {
                    if let Some(problem) = problem.or(missing) {
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

    /// One round over all candidates; the last problem where none answered well.
    async fn round<T: Send>(
        &self,
        candidates: Vec<Address>,
        op: &(impl Fn(Link) -> BoxFuture<'static, Result<T, Problem>> + Send + Sync),
    ) -> Result<T, Option<Problem>> {
        let mut candidates = candidates.into_iter();
        let mut attempts = FuturesUnordered::new();
        let mut last = None;
        loop {
            if let Some(address) = candidates.next() {
                attempts.push(self.attempt(address, op));
            } else if attempts.is_empty() {
                return Err(last);
            }
            let stagger = match candidates.len() {
                0 => Duration::MAX,
                _ => STAGGER,
            };
            match tokio::time::timeout(stagger, attempts.next()).await {
                Ok(Some(Ok(answer))) => return Ok(answer),
                Ok(Some(Err(problem))) => last = Some(problem),
                Ok(None) | Err(_) => {}
            }
        }
    }

    async fn attempt<T: Send>(
        &self,
        address: Address,
        op: &(impl Fn(Link) -> BoxFuture<'static, Result<T, Problem>> + Send + Sync),
    ) -> Result<T, Problem> {
        let known = self.state().links.get(&address).cloned();
        let link = match known {
            Some(link) => link,
            None => {
                let link = Link::open(&address).await?;
                self.state().links.insert(address.clone(), link.clone());
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
