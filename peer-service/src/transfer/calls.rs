//! One call of a running transfer: requests for units of one peer, from the question to verified bytes on disk.
//!
//! Invariant: each request ends in exactly one event, unless its token is cancelled; then in at most one.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use potluck_core::{Problem, Reason};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    allowance::Allowance,
    link::DATA_TIMEOUT,
    link::Link,
    live::Live,
    receive::{Assembly, Broken, Incoming},
    rope::Rope,
    target,
    verifying::Disk,
};
use crate::{
    offer::BadPieces,
    swarm::{Failure, PeerKey, RequestId},
};

/// How long the end of a stream may take after its last byte; past that it is dropped.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes after which progress is reported: what comes at once is more unless a peer sends crumbs.
const PROGRESS_STEP: u64 = 64 * 1024;

/// Least pause between two reports of the same unit: a fast peer's rate is as well known from a few.
const PROGRESS_PAUSE: Duration = Duration::from_millis(5);

/// How often it is said that bytes wait for our own limit, or to be verified and written: sooner than any silence counts as one.
const BEAT: Duration = Duration::from_millis(200);

/// Least wait before a busy peer is asked for the rest of a unit.
const BUSY_RETRY: Duration = Duration::from_millis(250);

/// Longest such wait.
const MAX_BUSY_RETRY: Duration = Duration::from_secs(5);

/// A request as a call carries it.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// What the swarm calls it.
    pub(crate) id: RequestId,
    /// What for.
    pub(crate) unit: u32,
    /// Cancelled when it is not wanted any more.
    pub(crate) token: CancellationToken,
}

/// What came of requests.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// So many bytes more came, not verified.
    Progress(u64),
    /// What came, or comes next, waits for our own limit, or for us to verify and write what came before.
    Held,
    /// Verified and written.
    Verified,
    /// Not what it should be; what was wrong.
    Corrupt(String),
    /// Failed verification: what to say of that, and which pieces it was, where that can be told.
    Unverified(String, Option<BadPieces>),
    /// Verified, and could not be written.
    NotWritten(Problem),
    /// Did not come.
    Failed(Failure, Problem),
}

/// Something that a call tells the driver.
#[derive(Debug)]
pub(crate) struct Told {
    /// Of whom.
    pub(crate) peer: PeerKey,
    /// Which request.
    pub(crate) id: RequestId,
    /// For which unit.
    pub(crate) unit: u32,
    /// What came of it.
    pub(crate) outcome: Outcome,
}

/// Everything a call needs.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) live: Arc<Live>,
    /// Where it is written to.
    pub(crate) disk: Arc<Disk>,
    /// How fast the transfer may be.
    pub(crate) allowance: Arc<Allowance>,
    pub(crate) peer: PeerKey,
    pub(crate) link: Link,
    pub(crate) told: mpsc::Sender<Told>,
    /// Where what it starts is counted.
    pub(crate) tasks: TaskTracker,
}

impl Caller {
    /// Asks for the units until each has come, failed or been cancelled.
    pub(crate) async fn run(self, wanted: Vec<Wanted>) {
        let mut rest = VecDeque::from(wanted);
        let mut alone = false;
        loop {
            rest.retain(|wanted| !wanted.token.is_cancelled());
            if rest.is_empty() || self.told.is_closed() {
                return;
            }
            match self.call(&mut rest, alone).await {
                Ended::Again => {}
                Ended::OneByOne => alone = true,
                Ended::All(failure, problem) => {
                    for wanted in rest {
                        self.tell(&wanted, Outcome::Failed(failure, problem.clone()))
                            .await;
                    }
                    return;
                }
                Ended::Corrupt(what) => {
                    // The ban that follows cancels the others. Where none follows, as the request
                    // was taken back meanwhile, they failed.
                    if let Some(wanted) = rest.pop_front() {
                        self.tell(&wanted, Outcome::Corrupt(what.clone())).await;
                    }
                    let problem = Problem::new(Reason::VerificationFailed, what);
                    for wanted in rest {
                        self.tell(&wanted, Outcome::Failed(Failure::Refused, problem.clone()))
                            .await;
                    }
                    return;
                }
            }
        }
    }

    async fn tell(&self, wanted: &Wanted, outcome: Outcome) {
        let told = Told {
            peer: self.peer,
            id: wanted.id,
            unit: wanted.unit,
            outcome,
        };
        // Nobody listens any more: the transfer is over.
        let _ = self.told.send(told).await;
    }

    /// `Download` for all of `rest`, or for its first alone; takes from it what came. Where there is a limit, in several calls.
    async fn call(&self, rest: &mut VecDeque<Wanted>, alone: bool) -> Ended {
        let count = if alone { 1 } else { rest.len() };
        let units: Vec<u32> = rest.iter().take(count).map(|wanted| wanted.unit).collect();
        let mut assembly = Assembly::new(self.live.part.plan(), &units);
        let mut progress = Progress::new();
        while let (Some(_), Some(wanted)) = (assembly.current(), rest.front().cloned()) {
            let spans = assembly.ask(self.allowance.call());
            // Dropping the call or the stream resets it at the other end: nothing is half taken.
            let opened = tokio::select! {
                () = wanted.token.cancelled() => return Ended::Again,
                opened = self.link.download(spans) => opened,
            };
            let stream = match opened {
                Ok(stream) => stream,
                Err(problem) if assembly.has_begun() && is_busy(problem.reason) => {
                    // For a part of a unit the rest is not given up; where the peer stays busy, the swarm takes the unit back.
                    let wait = problem
                        .retry_after
                        .unwrap_or(BUSY_RETRY)
                        .clamp(BUSY_RETRY, MAX_BUSY_RETRY);
                    tokio::select! {
                        () = wanted.token.cancelled() => return Ended::Again,
                        () = tokio::time::sleep(wait) => continue,
                    }
                }
                Err(problem) => return self.refused(rest, count > 1, problem).await,
            };
            let mut incoming = Incoming::new(stream, assembly.owed());
            if let Err(ended) = self
                .receive(rest, &mut assembly, &mut incoming, &mut progress)
                .await
            {
                return ended;
            }
        }
        Ended::Again
    }

    /// All that one call brings; what completes a unit is handed on.
    async fn receive(
        &self,
        rest: &mut VecDeque<Wanted>,
        assembly: &mut Assembly,
        incoming: &mut Incoming,
        progress: &mut Progress,
    ) -> Result<(), Ended> {
        while let (true, Some(wanted)) = (assembly.owed() > 0, rest.front().cloned()) {
            let Some(part) = incoming.take() else {
                if self.ours(&wanted, self.disk.may_read()).await.is_none() {
                    return Err(Ended::Again);
                }
                let read = tokio::select! {
                    () = wanted.token.cancelled() => return Err(Ended::Again),
                    read = tokio::time::timeout(DATA_TIMEOUT, incoming.read()) => read,
                };
                match read {
                    Ok(Ok(())) => continue,
                    Ok(Err(broken)) => return Err(self.broken(rest, broken).await),
                    Err(_) => {
                        let problem = Problem::new(Reason::TimedOut, "fell silent in the middle of a unit");
                        return Err(Ended::All(Failure::TimedOut, problem));
                    }
                }
            };
            let mut waiting = part.data.len() as u64;
            while waiting > 0 {
                let step = self.allowance.step(waiting);
                if let Err(broken) = self.allowed(step, &wanted, incoming, progress).await {
                    return Err(match broken {
                        Some(broken) => self.broken(rest, broken).await,
                        None => Ended::Again,
                    });
                }
                waiting -= step;
                progress.unreported += step;
                if progress.is_due() {
                    self.tell(&wanted, progress.told()).await;
                }
            }
            let taken = match assembly.take(part) {
                Ok(taken) => taken,
                Err(error) => return Err(Ended::Corrupt(error.to_string())),
            };
            if taken.is_some() && progress.unreported > 0 {
                self.tell(&wanted, progress.told()).await;
            }
            if assembly.owed() == 0 && tokio::time::timeout(END_TIMEOUT, incoming.goes_on()).await == Ok(true)
            {
                return Err(Ended::Corrupt("it sent more than was asked for".into()));
            }
            if let Some((_, data)) = taken {
                rest.pop_front();
                self.check(wanted, data).await;
            }
        }
        Ok(())
    }

    /// Waits until so many bytes may count, and meanwhile says that they are here: whoever sent them is not silent. What comes behind
    /// them is read. Fails where that cannot be, or with nothing where the unit is not wanted any more.
    async fn allowed(
        &self,
        bytes: u64,
        wanted: &Wanted,
        incoming: &mut Incoming,
        progress: &mut Progress,
    ) -> Result<(), Option<Broken>> {
        let mut allowed = std::pin::pin!(self.allowance.acquire(bytes, wanted.id));
        loop {
            let beat = progress.held.map_or_else(Instant::now, |held| held + BEAT);
            // All arms are cancel-safe: what is not wanted any more is not waited for, and what is not read stays in the stream.
            tokio::select! {
                biased;
                () = &mut allowed => return Ok(()),
                () = wanted.token.cancelled() => return Err(None),
                read = incoming.read(), if incoming.is_due() => read?,
                () = tokio::time::sleep_until(beat) => {
                    progress.held = Some(Instant::now());
                    if progress.unreported > 0 {
                        self.tell(wanted, progress.told()).await;
                    }
                    self.tell(wanted, Outcome::Held).await;
                }
            }
        }
    }

    /// Waits for what takes time here, such as a disk that writes nothing for a while, and says so: whoever was asked is not silent. `None`
    /// where the unit is not wanted any more.
    async fn ours<T>(&self, wanted: &Wanted, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        loop {
            // The work is pinned outside: polling the other arms loses nothing of it.
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = wanted.token.cancelled() => return None,
                () = tokio::time::sleep(BEAT) => self.tell(wanted, Outcome::Held).await,
            }
        }
    }

    async fn broken(&self, rest: &mut VecDeque<Wanted>, broken: Broken) -> Ended {
        match broken {
            Broken::Unasked(error) => Ended::Corrupt(error.to_string()),
            Broken::Short => {
                let problem = Problem::new(Reason::NotPotluck, "ended the stream before all was sent");
                Ended::All(Failure::Refused, problem)
            }
            Broken::Failed(problem) => self.refused(rest, false, problem).await,
        }
    }

    /// Has a unit verified and written, while the next comes in.
    async fn check(&self, wanted: Wanted, data: Rope) {
        let room = self.ours(&wanted, self.disk.room(data.len())).await;
        let Some(room) = room.flatten() else {
            return;
        };
        // Kept free from now on, so that telling never waits. Nobody listens any more: the transfer is over.
        let Ok(slot) = self.told.clone().reserve_owned().await else {
            return;
        };
        let (live, tasks, peer) = (Arc::clone(&self.live), self.tasks.clone(), self.peer);
        let work = move || {
            let Wanted { id, unit, token } = wanted;
            // Counted before it is asked whether to begin: whoever cancelled it and counts none finds nothing begun later.
            let _counted = tasks.token();
            if token.is_cancelled() {
                return;
            }
            let slot = Some(slot);
            let owed = Owed { slot, peer, id, unit };
            let outcome = match live.checks.verify(unit, &data) {
                false => Outcome::Unverified(
                    format!("unit {unit} failed verification"),
                    live.checks.bad_pieces(unit, &data),
                ),
                // Another peer was faster: the bytes are there.
                true if live.has(unit) => Outcome::Verified,
                true => match live.part.write(unit, &data) {
                    Ok(()) => Outcome::Verified,
                    Err(error) => Outcome::NotWritten(target::problem(&live.part.target().path, &error)),
                },
            };
            drop((data, live));
            owed.tell(outcome);
        };
        self.disk.submit(room, &self.live.part.target().path, work);
    }

    /// What a status means for the requests that are still open. `any`: it could speak of any of them.
    async fn refused(&self, rest: &mut VecDeque<Wanted>, any: bool, problem: Problem) -> Ended {
        let failure = match problem.reason {
            reason if is_busy(reason) => Failure::Busy {
                retry_after: problem.retry_after,
            },
            Reason::PieceNotAvailable | Reason::NotFound | Reason::FileChanged => Failure::NotAvailable,
            Reason::TimedOut => Failure::TimedOut,
            // A lack of file descriptors is this machine's own, and passes.
            Reason::Unreachable | Reason::Cancelled | Reason::ShuttingDown | Reason::TooManyOpenFiles => {
                Failure::Disconnected
            }
            _ => Failure::Refused,
        };
        if failure == Failure::NotAvailable {
            if any {
                return Ended::OneByOne;
            }
            // Only the unit that was being sent: the others may be there.
            if let Some(wanted) = rest.pop_front() {
                self.tell(&wanted, Outcome::Failed(failure, problem)).await;
            }
            return Ended::Again;
        }
        Ended::All(failure, problem)
    }
}

/// What came of a request, still to be told. Dropped untold, as where the work on it panicked, it tells that the request failed:
/// otherwise its unit would be on its way for ever.
struct Owed {
    slot: Option<mpsc::OwnedPermit<Told>>,
    peer: PeerKey,
    id: RequestId,
    unit: u32,
}

impl Owed {
    fn tell(mut self, outcome: Outcome) {
        self.send(outcome);
    }

    fn send(&mut self, outcome: Outcome) {
        if let Some(slot) = self.slot.take() {
            slot.send(Told {
                peer: self.peer,
                id: self.id,
                unit: self.unit,
                outcome,
            });
        }
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        if self.slot.is_some() {
            let problem = Problem::new(
                Reason::Internal,
                "a unit could not be verified: see the peer's log",
            );
            self.send(Outcome::Failed(Failure::Refused, problem));
        }
    }
}

/// What came and was not reported yet.
#[derive(Debug)]
struct Progress {
    unreported: u64,
    reported: Instant,
    /// When it was last said that bytes wait for our own limit.
    held: Option<Instant>,
}

impl Progress {
    fn new() -> Self {
        Self {
            unreported: 0,
            reported: Instant::now(),
            held: None,
        }
    }

    fn is_due(&self) -> bool {
        self.unreported >= PROGRESS_STEP && self.reported.elapsed() >= PROGRESS_PAUSE
    }

    /// What to tell, and nothing is left to be told.
    fn told(&mut self) -> Outcome {
        self.reported = Instant::now();
        Outcome::Progress(std::mem::take(&mut self.unreported))
    }
}

const fn is_busy(reason: Reason) -> bool {
    matches!(reason, Reason::Busy | Reason::RateLimited)
}

/// How a call ended.
enum Ended {
    /// Ask again for what is left, if anything is.
    Again,
    /// One of them cannot be had, and it is not said which.
    OneByOne,
    /// What is left will not come.
    All(Failure, Problem),
    /// The peer breaks the rules.
    Corrupt(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bits::Bitfield,
        offer::Availability,
        swarm::{Action, Swarm, SwarmConfig},
    };

    fn request() -> RequestId {
        let (peer, now) = (PeerKey(1), Duration::ZERO);
        let mut swarm = Swarm::new(SwarmConfig::default(), vec![10], Bitfield::new(1), 1);
        swarm.peer_joined(peer, now);
        let (have, fetching) = (Bitfield::full(1), Bitfield::new(1));
        swarm.availability(peer, &Availability { have, fetching }, now);
        match swarm.poll_action(now) {
            Some(Action::Request { id, .. }) => id,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_request_whose_verification_panics_fails() {
        let (tell, mut told) = mpsc::channel(1);
        for panics in [true, false] {
            let owed = Owed {
                slot: Some(tell.clone().reserve_owned().await.unwrap()),
                peer: PeerKey(1),
                id: request(),
                unit: 3,
            };
            let work = tokio::task::spawn_blocking(move || {
                assert!(!panics, "a defect");
                owed.tell(Outcome::Verified);
            });
            assert_eq!(work.await.is_err(), panics);
            match told.try_recv().unwrap().outcome {
                Outcome::Failed(..) if panics => {}
                Outcome::Verified if !panics => {}
                other => panic!("{other:?}"),
            }
            assert!(told.try_recv().is_err(), "told once");
        }
    }
}
