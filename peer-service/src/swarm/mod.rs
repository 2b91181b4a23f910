//! The swarm: which peer is asked for which unit, and when. Skeleton of the public API.

mod config;
mod types;

pub use config::*;
pub use types::*;

use crate::{bits::Bits, offer::Units};

/// The state of one transfer.
#[derive(Debug)]
pub struct Swarm {
    have: Bits,
    fetching: Bits,
}

impl Swarm {
    /// A transfer of units of these lengths in bytes, of which `have` are here already.
    pub fn new(_config: SwarmConfig, unit_lens: Vec<u64>, have: Bits, _seed: u64) -> Self {
        Self {
            have,
            fetching: Bits::new(unit_lens.len() as u32),
        }
    }
    /// A peer can be asked. What it has comes with `availability`.
    pub fn peer_joined(&mut self, _peer: PeerKey, _now: Time) {}
    /// A peer is gone: its requests are cancelled.
    pub fn peer_left(&mut self, _peer: PeerKey, _now: Time) {}
    /// All that a peer has and is fetching.
    pub fn availability(&mut self, _peer: PeerKey, _units: &Units, _now: Time) {}
    /// What changed since.
    pub fn availability_changed(
        &mut self,
        _peer: PeerKey,
        _have: &[u32],
        _fetching: &[u32],
        _abandoned: &[u32],
        _now: Time,
    ) {
    }
    /// Bytes of a request arrived, not verified yet.
    pub fn progressed(&mut self, _id: RequestId, _bytes: u64, _now: Time) {}
    /// The unit verified. Returns false if it was not needed any more: drop the bytes.
    pub fn verified(&mut self, _id: RequestId, _now: Time) -> bool {
        false
    }
    /// The unit did not verify.
    pub fn corrupt(&mut self, _id: RequestId, _now: Time) {}
    /// The request failed otherwise.
    pub fn failed(&mut self, _id: RequestId, _failure: Failure, _now: Time) {}
    /// The unit is not here after all (a local write failed); nobody's fault.
    pub fn reset_unit(&mut self, _unit: u32, _now: Time) {}
    /// Time passed: call it when `poll_timeout` says so; early or late calls do no harm.
    pub fn handle_timeout(&mut self, _now: Time) {}
    /// What to do next. Call until `None` after each event.
    pub fn poll_action(&mut self, _now: Time) -> Option<Action> {
        None
    }
    /// When `handle_timeout` wants to be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        None
    }
    /// Units that are here.
    pub fn have(&self) -> &Bits {
        &self.have
    }
    /// Units that are asked for.
    pub fn fetching(&self) -> &Bits {
        &self.fetching
    }
    /// Where a unit stands; `None` beyond the end.
    pub fn unit_state(&self, _unit: u32) -> Option<UnitState> {
        None
    }
    /// The peers, by key.
    pub fn peers(&self) -> impl Iterator<Item = PeerView> + '_ {
        std::iter::empty()
    }
    /// What is not here, in runs.
    pub fn missing(&self) -> Vec<MissingRun> {
        Vec::new()
    }
    /// Whether every unit is here.
    pub fn is_finished(&self) -> bool {
        self.have.is_full()
    }
    /// Why nothing is in flight; `None` if something is, or nothing is wanted.
    pub fn stuck_reason(&self) -> Option<StuckReason> {
        None
    }
    /// What it cost so far.
    pub fn counters(&self) -> Counters {
        Counters::default()
    }
}
