//! The connections to the indexes of a list, and calls that fail over from one to the next.
//!
//! - A call goes to the index in use. If that cannot be reached, does not answer, or cannot store
//!   anything, the same call goes to the next. Every call of the index can be repeated.
//! - Indexes that do not share a store give different answers. So before the first call, all
//!   indexes are asked for their cluster id, and a list with different ones is refused as a whole.
//!   An index that did not answer then is asked before it is used.
//! - While an index further down the list is in use, an earlier one is tried from time to time.
//!
//! A list of one index has none of this: each call goes to it directly.

use std::{
    future::Future,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use parking_lot::Mutex;
use tonic::{Response, Status};

use crate::{
    Problem, Reason,
    grpc::transport::Endpoint,
    index_client::{failover::Failover, index_list::IndexList},
    model::ClusterId,
    process::traces::{TracedChannel, traced},
    proto::v1::{self, index_service_client::IndexServiceClient},
};

/// Deadline of one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a call may take before its index is asked whether it answers at all, if there is
/// another: longer than a write to a busy disk.
const CHECK_AFTER: Duration = Duration::from_secs(2);

/// Deadline of a question for the cluster id: an index answers it from memory.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long to wait for the cluster ids of the other indexes once the first has answered.
const PROBE_GRACE: Duration = Duration::from_millis(500);

/// How long a list stays refused before its indexes are asked again.
const REFUSED_FOR: Duration = Duration::from_secs(5);

/// The indexes of a list.
#[derive(Debug)]
pub(super) struct Indexes {
    list: IndexList,
    indexes: Vec<Index>,
    state: Mutex<State>,
    /// Held while the cluster ids of the list are compared.
    comparing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Index {
    endpoint: Endpoint,
    channel: TracedChannel,
}

#[derive(Debug)]
struct State {
    failover: Failover,
    comparison: Comparison,
    /// Whether a task tries to return to an earlier index.
    is_returning: bool,
}

/// Whether the indexes share a store.
#[derive(Debug, Clone)]
enum Comparison {
    /// None has been asked yet, or none has answered.
    Pending,
    /// Those that answered have this id.
    Same(ClusterId),
    /// They differ, as found at this time.
    Different(Problem, Instant),
}

impl Indexes {
    /// Connects on the first call, from the local address `from` if that can reach the index.
    pub(super) fn new(list: IndexList, from: Option<IpAddr>) -> Self {
        let indexes: Vec<Index> = list
            .iter()
            .map(|endpoint| Index {
                channel: traced(endpoint.lazy_from(from)),
                endpoint: endpoint.clone(),
            })
            .collect();
        let state = State {
            failover: Failover::new(indexes.len()),
            comparison: Comparison::Pending,
            is_returning: false,
        };
        Self {
            list,
            indexes,
            state: Mutex::new(state),
            comparing: tokio::sync::Mutex::default(),
        }
    }

    /// The indexes, in order of preference.
    pub(super) const fn list(&self) -> &IndexList {
        &self.list
    }

    /// The endpoint of the index in use.
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.indexes[self.state.lock().failover.current()].endpoint
    }

    /// Makes a call, at the next index if one fails.
    ///
    /// # Errors
    /// The problem of the call. If no index answers, that of the first, with the messages of all.
    /// [`Reason::IndexesDiffer`] if the indexes do not share a store.
    pub(super) async fn call<T, F>(
        self: &Arc<Self>,
        call: impl Fn(TracedChannel) -> F,
    ) -> Result<T, Problem>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        if let [index] = &self.indexes[..] {
            return index.call(&call).await;
        }
        self.compare().await?;
        self.return_to_earlier();
        let (candidates, current) = {
            let state = self.state.lock();
            (
                state.failover.candidates(Instant::now()),
                state.failover.current(),
            )
        };
        let mut problems = Vec::new();
        for place in candidates {
            let is_current = place == current;
            let answer = match is_current {
                true => self.call_unless_dead(place, &call).await,
                false => match self.admit(place).await {
                    Ok(()) => self.indexes[place].call(&call).await,
                    Err(problem) => Err(problem),
                },
            };
            match answer {
                Err(problem) if says_that_index_fails(problem.reason) => {
                    self.state.lock().failover.failed(place, Instant::now());
                    problems.push(problem);
                }
                answer => {
                    if self.state.lock().failover.works(place, current) {
                        let index = &self.indexes[place].endpoint;
                        tracing::info!(%index, "using this index from now on");
                    }
                    return answer;
                }
            }
        }
        Err(all_failed(problems))
    }

    /// Makes a call at the index in use. Gives up early if the index does not answer anything and
    /// there is another.
    async fn call_unless_dead<T, F>(
        &self,
        place: usize,
        call: &impl Fn(TracedChannel) -> F,
    ) -> Result<T, Problem>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let index = &self.indexes[place];
        let dead = async {
            loop {
                tokio::time::sleep(CHECK_AFTER).await;
                if self.state.lock().failover.has_alternative(Instant::now())
                    && let Err(problem) = index.cluster_id().await
                    && says_that_index_fails(problem.reason)
                {
                    return problem;
                }
            }
        };
        // Dropping the call loses nothing but its answer: the same call follows at another index.
        tokio::select! {
            biased;
            answer = index.call(call) => answer,
            problem = dead => Err(problem),
        }
    }

    /// Checks that an index answers and shares the store with the others.
    async fn admit(&self, place: usize) -> Result<(), Problem> {
        let id = self.indexes[place].cluster_id().await?;
        let mut state = self.state.lock();
        match &state.comparison {
            Comparison::Same(known) if *known == id => Ok(()),
            Comparison::Pending => {
                state.comparison = Comparison::Same(id);
                Ok(())
            }
            Comparison::Same(known) => {
                let endpoint = &self.indexes[place].endpoint;
                Err(differ(&format!(
                    "the index at {endpoint} has the cluster id {id}, but the others have {known}"
                )))
            }
            Comparison::Different(problem, _) => Err(problem.clone()),
        }
    }

    /// Before the first call: asks all indexes for their cluster ids and compares them.
    async fn compare(&self) -> Result<(), Problem> {
        if matches!(self.state.lock().comparison, Comparison::Same(_)) {
            return Ok(());
        }
        // Dropped without effect if the caller goes away.
        let _one = self.comparing.lock().await;
        match &self.state.lock().comparison {
            Comparison::Same(_) => return Ok(()),
            Comparison::Different(problem, at) if at.elapsed() < REFUSED_FOR => {
                return Err(problem.clone());
            }
            Comparison::Pending | Comparison::Different(..) => {}
        }
        let probe = async |(place, index): (usize, &Index)| (place, index.cluster_id().await);
        let mut probes: FuturesUnordered<_> = self.indexes.iter().enumerate().map(probe).collect();
        let mut ids: Vec<(usize, ClusterId)> = Vec::new();
        let mut problems: Vec<(usize, Problem)> = Vec::new();
        let grace = tokio::time::sleep(PROBE_TIMEOUT + PROBE_GRACE);
        tokio::pin!(grace);
        loop {
            // Both arms are cancel-safe.
            let (place, answer) = tokio::select! {
                Some(answer) = probes.next() => answer,
                () = &mut grace => break,
                else => break,
            };
            match answer {
                Ok(id) => {
                    ids.push((place, id));
                    if ids.len() == 1 {
                        grace.as_mut().reset(tokio::time::Instant::now() + PROBE_GRACE);
                    }
                }
                Err(problem) => problems.push((place, problem)),
            }
        }
        drop(probes);
        self.conclude(ids, problems)
    }

    /// Takes the answers of a comparison: the ids, and the problems of those that did not answer.
    fn conclude(
        &self,
        mut ids: Vec<(usize, ClusterId)>,
        mut problems: Vec<(usize, Problem)>,
    ) -> Result<(), Problem> {
        ids.sort_by_key(|&(place, _)| place);
        problems.sort_by_key(|&(place, _)| place);
        let now = Instant::now();
        let mut state = self.state.lock();
        let Some(&(first, id)) = ids.first() else {
            // A refusal, such as that of a certificate, is for the caller.
            let refused = problems
                .iter()
                .position(|(_, problem)| !says_that_index_fails(problem.reason));
            return Err(match refused {
                Some(at) => problems.swap_remove(at).1,
                None => all_failed(problems.into_iter().map(|(_, problem)| problem).collect()),
            });
        };
        if let Some(&(other, other_id)) = ids.iter().find(|&&(_, other)| other != id) {
            let (one, two) = (&self.indexes[first].endpoint, &self.indexes[other].endpoint);
            let problem = differ(&format!(
                "the index at {one} has the cluster id {id}, and the one at {two} has {other_id}"
            ));
            state.comparison = Comparison::Different(problem.clone(), now);
            return Err(problem);
        }
        for place in 0..first {
            state.failover.failed(place, now);
        }
        for (place, _) in problems.iter().filter(|&&(place, _)| place > first) {
            state.failover.failed(*place, now);
        }
        let used = state.failover.current();
        state.failover.works(first, used);
        state.comparison = Comparison::Same(id);
        Ok(())
    }

    /// Starts to try an earlier index than the one in use, if one is due.
    fn return_to_earlier(self: &Arc<Self>) {
        let mut state = self.state.lock();
        let Some(place) = state.failover.preferred(Instant::now()) else {
            return;
        };
        if std::mem::replace(&mut state.is_returning, true) {
            return;
        }
        drop(state);
        let indexes = Arc::clone(self);
        // Ends by itself: the probe has a deadline.
        tokio::spawn(async move {
            let admitted = indexes.admit(place).await;
            let index = &indexes.indexes[place].endpoint;
            let mut state = indexes.state.lock();
            state.is_returning = false;
            match admitted {
                Ok(()) => {
                    let used = state.failover.current();
                    state.failover.works(place, used);
                    tracing::info!(%index, "this index answers again, and is used from now on");
                }
                Err(problem) => {
                    state.failover.failed(place, Instant::now());
                    tracing::debug!(%index, %problem, "an earlier index cannot be used yet");
                }
            }
        });
    }
}

impl Index {
    async fn call<T, F>(&self, call: &impl Fn(TracedChannel) -> F) -> Result<T, Problem>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.endpoint
            .call("index", CALL_TIMEOUT, call(self.channel.clone()))
            .await
    }

    /// The identity of its store.
    async fn cluster_id(&self) -> Result<ClusterId, Problem> {
        let mut client = IndexServiceClient::new(self.channel.clone());
        let answer = self
            .endpoint
            .call("index", PROBE_TIMEOUT, client.get_stats(v1::GetStatsRequest {}))
            .await?;
        ClusterId::from_bytes(&answer.cluster_id).ok_or_else(|| {
            differ(&format!(
                "the index at {} is too old to report a cluster id",
                self.endpoint
            ))
        })
    }
}

/// Whether the same call may succeed at another index of the list.
pub(super) const fn says_that_index_fails(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Unreachable
            | Reason::TimedOut
            | Reason::NotPotluck
            | Reason::ShuttingDown
            | Reason::StoreUnavailable
            | Reason::IndexesDiffer
    )
}

fn differ(why: &str) -> Problem {
    Problem::new(
        Reason::IndexesDiffer,
        format!(
            "the indexes do not share a store, so that each knows other files: {why}. Give one of \
             them, or start all of them with the same `--store redis://…`"
        ),
    )
}

/// The problem of a call that failed at all indexes.
pub(super) fn all_failed(mut problems: Vec<Problem>) -> Problem {
    let messages: Vec<&str> = problems.iter().map(|problem| &*problem.message).collect();
    let message = match messages[..] {
        [only] => only.to_owned(),
        _ => format!(
            "none of the {} indexes can be used: {}",
            messages.len(),
            messages.join("; ")
        ),
    };
    match problems.is_empty() {
        true => Problem::new(Reason::TimedOut, "no index answers in time"),
        false => Problem {
            message,
            ..problems.swap_remove(0)
        },
    }
}
