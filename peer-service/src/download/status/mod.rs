//! What is asked of a transfer, and what it shows of itself: plain data.

pub(crate) mod rate;
pub(crate) mod reporter;

use std::{path::PathBuf, time::Duration};

use potluck_core::{
    FileId, PeerId, Problem, Sha256,
    model::{Address, FileKind},
};

use crate::limits::Priority;

/// What a transfer is held to; can be changed while it runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TransferLimits {
    /// Most bytes a second; 0: no limit of its own.
    pub max_bytes_per_second: u64,
    /// How much it counts beside other transfers.
    pub priority: Priority,
}

/// Terms that somebody wants, and those that are left as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LimitsUpdate {
    /// Most bytes a second; 0: no limit of its own.
    pub max_bytes_per_second: Option<u64>,
    /// How much it counts beside other transfers.
    pub priority: Option<Priority>,
}

impl LimitsUpdate {
    /// What is named replaces what was.
    pub fn applied_to(self, limits: TransferLimits) -> TransferLimits {
        TransferLimits {
            max_bytes_per_second: self.max_bytes_per_second.unwrap_or(limits.max_bytes_per_second),
            priority: self.priority.unwrap_or(limits.priority),
        }
    }
}

impl From<TransferLimits> for LimitsUpdate {
    fn from(limits: TransferLimits) -> Self {
        Self {
            max_bytes_per_second: Some(limits.max_bytes_per_second),
            priority: Some(limits.priority),
        }
    }
}

/// What somebody wants fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownloadSpec {
    /// What to fetch.
    pub id: FileId,
    /// What to call it inside a folder; `None`: as the peers call it.
    pub name: Option<String>,
    /// Where to put it: an absolute path. `None`: the peer's own files folder.
    pub target: Option<PathBuf>,
    /// The SHA-256 that the finished file must have.
    pub sha256: Option<Sha256>,
    /// Peers to ask besides those the index knows.
    pub providers: Vec<Address>,
    /// Whether it goes on when nobody watches it.
    pub detach: bool,
    /// Whether a collection may write many times its distinct content.
    pub allow_expansion: bool,
    /// What it is to be held to. What is left open is as usual, or as the transfer has it that it joins.
    pub limits: LimitsUpdate,
}

impl DownloadSpec {
    /// A plain wish for this file: into the files folder, as the peers call it.
    pub fn new(id: FileId) -> Self {
        Self {
            id,
            name: None,
            target: None,
            sha256: None,
            providers: Vec::new(),
            detach: false,
            allow_expansion: false,
            limits: LimitsUpdate::default(),
        }
    }
}

/// Where a transfer stands; as `TransferState` of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownloadState {
    /// Looks for providers, piece hashes or the manifest.
    Preparing,
    /// Fetches.
    Running,
    /// Wants to fetch and cannot; the view's error says why.
    Waiting,
    /// Paused by its owner.
    Paused,
    /// All fetched; being put in its place.
    Finishing,
    /// Done and verified.
    Done,
    /// Failed; the view's error says why.
    Failed,
    /// Cancelled by its owner.
    Cancelled,
}

impl DownloadState {
    /// Whether a task works on it.
    pub const fn is_active(self) -> bool {
        matches!(
            self,
            Self::Preparing | Self::Running | Self::Waiting | Self::Finishing
        )
    }

    /// Whether whoever waits for it need not wait longer.
    pub const fn is_settled(self) -> bool {
        !self.is_active()
    }
}

/// What a transfer makes of a peer; as `PeerState` of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerState {
    /// Being connected, or waiting for its turn to be.
    Connecting,
    /// Sends.
    Active,
    /// Connected, and nothing is wanted of it now.
    Idle,
    /// Asked to wait.
    BackingOff,
    /// Could not be reached, or went away.
    Unreachable,
    /// Sent bytes that failed verification.
    Banned,
}

/// One peer of a transfer.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerStatus {
    /// Its public id, where the index told it.
    pub peer: Option<PeerId>,
    /// Where it is.
    pub address: Address,
    /// What the transfer makes of it.
    pub state: PeerState,
    /// Why, where that needs saying.
    pub reason: String,
    /// Verified bytes it gave.
    pub bytes: u64,
    /// Bytes a second of it.
    pub bytes_per_second: u64,
    /// Requests to it that are open.
    pub requests: u32,
    /// Units it has.
    pub units: u32,
}

/// A run of missing units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingUnits {
    /// First unit.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// Peers that could give them.
    pub providers: u32,
    /// Whether they are being fetched.
    pub in_flight: bool,
}

/// A transfer as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct DownloadStatus {
    /// Its number.
    pub transfer: u64,
    /// What is fetched.
    pub id: FileId,
    /// Its label.
    pub name: String,
    /// What it is, once known.
    pub kind: Option<FileKind>,
    /// Where it will be, or is; empty until known.
    pub path: PathBuf,
    /// Where it stands.
    pub state: DownloadState,
    /// What it is held to.
    pub limits: TransferLimits,
    /// Bytes verified and kept.
    pub bytes_done: u64,
    /// Bytes in all; 0 until known.
    pub bytes_total: u64,
    /// Bytes that were there when it began or was resumed.
    pub resumed_bytes: u64,
    /// Bytes among those done that were copied on this machine, of content that several paths of a collection have.
    pub copied_bytes: u64,
    /// Bytes that came of units under way, not verified yet and not among `bytes_done`.
    pub unverified_bytes: u64,
    /// Bytes a second that came, verified yet or not, over the last seconds.
    pub bytes_per_second: u64,
    /// Time since it began or was resumed.
    pub elapsed: Duration,
    /// Units in all; 0 until known.
    pub units_total: u32,
    /// Units verified.
    pub units_done: u32,
    /// Who it comes from, those that gave most first.
    pub peers: Vec<PeerStatus>,
    /// What is missing, the scarcest first.
    pub missing: Vec<MissingUnits>,
    /// What is wrong, if anything.
    pub error: Option<Problem>,
    /// For people: what else holds it up.
    pub findings: Vec<String>,
    /// Why it is done and not shared, or only until the peer stops.
    pub sharing_error: Option<Problem>,
    /// For people: what the file system at the target could not keep.
    pub not_kept: Vec<String>,
}

impl DownloadStatus {
    /// A transfer of which nothing is known yet.
    pub fn new(transfer: u64, spec: &DownloadSpec) -> Self {
        Self {
            transfer,
            id: spec.id,
            name: spec.name.clone().unwrap_or_default(),
            kind: None,
            path: spec.target.clone().unwrap_or_default(),
            state: DownloadState::Preparing,
            limits: spec.limits.applied_to(TransferLimits::default()),
            bytes_done: 0,
            bytes_total: 0,
            resumed_bytes: 0,
            copied_bytes: 0,
            unverified_bytes: 0,
            bytes_per_second: 0,
            elapsed: Duration::ZERO,
            units_total: 0,
            units_done: 0,
            peers: Vec::new(),
            missing: Vec::new(),
            error: None,
            findings: Vec::new(),
            sharing_error: None,
            not_kept: Vec::new(),
        }
    }

    /// Shows the transfer in `state` with nobody at work on it: nothing comes and nothing is asked
    /// for. What its peers gave, and why some gave nothing, stays to be seen.
    pub(crate) fn rest(&mut self, state: DownloadState) {
        self.state = state;
        self.unverified_bytes = 0;
        self.bytes_per_second = 0;
        self.error = None;
        self.findings.clear();
        self.missing.iter_mut().for_each(|run| run.in_flight = false);
        for row in &mut self.peers {
            row.bytes_per_second = 0;
            row.requests = 0;
            match row.state {
                PeerState::Active => row.reason.clear(),
                PeerState::Connecting | PeerState::BackingOff => {}
                PeerState::Idle | PeerState::Unreachable | PeerState::Banned => continue,
            }
            row.state = PeerState::Idle;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(standing: PeerState, bytes: u64) -> PeerStatus {
        PeerStatus {
            peer: None,
            address: Address {
                host: "192.0.2.1".into(),
                port: 9,
            },
            state: standing,
            reason: "why".into(),
            bytes,
            bytes_per_second: 5,
            requests: 2,
            units: 7,
        }
    }

    #[test]
    fn a_view_at_rest_shows_no_activity_anywhere() {
        let mut status = DownloadStatus::new(1, &DownloadSpec::new(FileId([7; 32])));
        status.bytes_per_second = 10;
        status.unverified_bytes = 3;
        status
            .findings
            .push("1 of 2 providers busy or silent; asked again soon".into());
        status.missing.push(MissingUnits {
            first: 0,
            count: 2,
            providers: 1,
            in_flight: true,
        });
        status.peers = vec![
            row(PeerState::Active, 5),
            row(PeerState::BackingOff, 1),
            row(PeerState::Unreachable, 0),
            row(PeerState::Banned, 0),
        ];
        status.rest(DownloadState::Paused);
        assert_eq!(
            (status.state, status.bytes_per_second, status.unverified_bytes),
            (DownloadState::Paused, 0, 0)
        );
        assert!(status.findings.is_empty() && status.missing.iter().all(|run| !run.in_flight));
        let standings =
            |status: &DownloadStatus| status.peers.iter().map(|row| row.state).collect::<Vec<_>>();
        use PeerState::{Banned, Idle, Unreachable};
        assert_eq!(standings(&status), [Idle, Idle, Unreachable, Banned]);
        assert!(
            status
                .peers
                .iter()
                .all(|row| row.bytes_per_second == 0 && row.requests == 0)
        );
        let reasons: Vec<_> = status.peers.iter().map(|row| &*row.reason).collect();
        assert_eq!(reasons, ["", "why", "why", "why"]);
    }
}
