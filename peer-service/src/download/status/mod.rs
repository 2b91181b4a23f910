//! The request for a download, and the status that it reports: plain data.

pub(crate) mod content_map;
mod explanation;
mod rate;
pub(crate) mod reporter;
mod rows;

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use potluck_core::{
    FileId, PeerId, Problem, Sha256,
    model::{Address, FileKind, Labels},
};

pub use self::content_map::ContentMap;
use crate::{
    download::{origin::spec::OriginSpec, seeding::SeedLimit, selection::PathFilter},
    limits::Priority,
};

/// The limits of a download; they may change while it runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DownloadLimits {
    /// Maximum bytes per second; 0: no limit for this download.
    pub max_bytes_per_second: u64,
    /// Relative weight among this peer's downloads.
    pub priority: Priority,
}

/// A change to the limits; `None` leaves a limit unchanged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LimitsUpdate {
    /// Maximum bytes per second; 0: no limit for this download.
    pub max_bytes_per_second: Option<u64>,
    /// Relative weight among this peer's downloads.
    pub priority: Option<Priority>,
}

impl LimitsUpdate {
    /// Replaces the limits that the update sets.
    pub fn applied_to(self, limits: DownloadLimits) -> DownloadLimits {
        DownloadLimits {
            max_bytes_per_second: self.max_bytes_per_second.unwrap_or(limits.max_bytes_per_second),
            priority: self.priority.unwrap_or(limits.priority),
        }
    }
}

impl From<DownloadLimits> for LimitsUpdate {
    fn from(limits: DownloadLimits) -> Self {
        Self {
            max_bytes_per_second: Some(limits.max_bytes_per_second),
            priority: Some(limits.priority),
        }
    }
}

/// A request for a download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownloadSpec {
    /// The id of the content.
    pub id: FileId,
    /// The name inside the target folder; `None`: the name that peers report.
    pub name: Option<String>,
    /// The target, an absolute path; `None`: inside the peer's files folder.
    pub target: Option<PathBuf>,
    /// The SHA-256 that the finished file must have.
    pub sha256: Option<Sha256>,
    /// Peers to ask in addition to those from the index.
    pub providers: Vec<Address>,
    /// Where bytes come from that no peer has. If `id` is the provisional one, the root is not known
    /// yet.
    pub origin: Option<OriginSpec>,
    /// Whether the earliest missing units are requested first, because somebody reads the file while
    /// it arrives.
    pub in_order: bool,
    /// Whether the download continues without watchers.
    pub detach: bool,
    /// Whether a collection may write many times its distinct content.
    pub allow_expansion: bool,
    /// The files of a collection to download.
    pub filter: PathFilter,
    /// When the finished download stops being served; `None`: when its owner unshares it.
    pub seed: Option<SeedLimit>,
    /// The limits; unset ones have their default, or stay unchanged if the request joins a
    /// download.
    pub limits: LimitsUpdate,
}

impl DownloadSpec {
    /// A request with defaults: into the files folder, under the name that peers report.
    pub fn new(id: FileId) -> Self {
        Self {
            id,
            name: None,
            target: None,
            sha256: None,
            providers: Vec::new(),
            origin: None,
            in_order: false,
            detach: false,
            allow_expansion: false,
            filter: PathFilter::default(),
            seed: None,
            limits: LimitsUpdate::default(),
        }
    }
}

impl DownloadSpec {
    /// The origin, if the root of its content is not known yet.
    pub fn provisional_origin(&self) -> Option<&OriginSpec> {
        self.origin
            .as_ref()
            .filter(|origin| origin.provisional_id() == self.id)
    }
}

/// The state of a download; matches `TransferState` of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownloadState {
    /// Finds providers, piece hashes or the manifest.
    Preparing,
    /// Downloads units.
    Running,
    /// Cannot continue for now; the status has the cause.
    Waiting,
    /// Paused by the user.
    Paused,
    /// All units are verified; the content is being finalized.
    Finishing,
    /// Done and verified.
    Done,
    /// Failed; the status has the cause.
    Failed,
    /// Cancelled by the user.
    Cancelled,
}

impl DownloadState {
    /// All states.
    pub(crate) const ALL: [Self; 8] = [
        Self::Preparing,
        Self::Running,
        Self::Waiting,
        Self::Paused,
        Self::Finishing,
        Self::Done,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The state as the value of a label.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Paused => "paused",
            Self::Finishing => "finishing",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether a task works on the download.
    pub const fn is_active(self) -> bool {
        matches!(
            self,
            Self::Preparing | Self::Running | Self::Waiting | Self::Finishing
        )
    }

    /// Whether the state changes only on a command, so that waiting is pointless.
    pub const fn is_settled(self) -> bool {
        !self.is_active()
    }
}

/// The state of a peer within a download; matches `PeerState` of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerState {
    /// Connecting, or waiting for a connection slot.
    Connecting,
    /// Has requests and is expected to send.
    Active,
    /// Connected, without requests.
    Idle,
    /// Not asked for a while after a failure.
    BackingOff,
    /// Could not be reached, or was lost.
    Unreachable,
    /// Sent data that failed verification.
    Banned,
}

/// The status of one peer within a download.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerStatus {
    /// The peer's id, if the index reported it.
    pub peer: Option<PeerId>,
    /// The peer's address.
    pub address: Address,
    /// The address of the file, without a query, if this is an origin and not a peer.
    pub origin: Option<String>,
    /// Where the peer says that it is.
    pub labels: Labels,
    /// The peer's state.
    pub state: PeerState,
    /// An explanation of the state; may be empty.
    pub reason: String,
    /// Verified bytes received from the peer.
    pub bytes: u64,
    /// Bytes per second from the peer.
    pub bytes_per_second: u64,
    /// Requests in flight to the peer.
    pub requests: u32,
    /// Units that the peer has.
    pub units: u32,
}

/// A range of missing units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingUnits {
    /// The first unit.
    pub first: u32,
    /// The number of units.
    pub count: u32,
    /// Peers that can send them.
    pub providers: u32,
    /// Whether they are requested.
    pub in_flight: bool,
}

/// The status of a download.
#[derive(Debug, Clone, PartialEq)]
pub struct DownloadStatus {
    /// The number of the download.
    pub number: u64,
    /// The id of the content.
    pub id: FileId,
    /// The name of the content.
    pub name: String,
    /// File or collection; `None` until known.
    pub kind: Option<FileKind>,
    /// The final path; empty until known.
    pub path: PathBuf,
    /// The state.
    pub state: DownloadState,
    /// The current limits.
    pub limits: DownloadLimits,
    /// Number of files that were chosen, and of all files in the collection; `None` if all are
    /// downloaded.
    pub chosen_files: Option<(u64, u64)>,
    /// Whether the finished download is served until a limit is reached.
    pub is_seeding: bool,
    /// Bytes sent to others of a finished download whose limit is a ratio.
    pub uploaded_bytes: u64,
    /// Bytes verified and kept.
    pub bytes_done: u64,
    /// Total bytes; 0 until known.
    pub bytes_total: u64,
    /// Bytes that were already present when the run started.
    pub resumed_bytes: u64,
    /// Bytes of `bytes_done` that were copied locally, for content with several paths in a
    /// collection.
    pub copied_bytes: u64,
    /// Bytes received of incomplete units; unverified and not in `bytes_done`.
    pub unverified_bytes: u64,
    /// Bytes received per second over the last seconds, verified or not.
    pub bytes_per_second: u64,
    /// Time since the run started.
    pub elapsed: Duration,
    /// When the download was requested; `None` if unknown.
    pub created_at: Option<SystemTime>,
    /// Total units; 0 until known.
    pub units_total: u32,
    /// Verified units.
    pub units_done: u32,
    /// The peers, ordered by bytes received, descending.
    pub peers: Vec<PeerStatus>,
    /// The missing units, the rarest first.
    pub missing: Vec<MissingUnits>,
    /// The picture of the content; empty before the first unit is requested.
    pub map: ContentMap,
    /// The current problem, if any.
    pub error: Option<Problem>,
    /// Readable notes on further problems.
    pub findings: Vec<String>,
    /// The reason why a finished download is not shared, or is shared only until the peer stops.
    pub sharing_error: Option<Problem>,
    /// Readable notes on properties that the target's file system could not preserve.
    pub not_kept: Vec<String>,
}

impl DownloadStatus {
    /// The initial status of a download.
    pub fn new(number: u64, spec: &DownloadSpec) -> Self {
        Self {
            number,
            id: spec.id,
            name: spec.name.clone().unwrap_or_default(),
            kind: None,
            path: spec.target.clone().unwrap_or_default(),
            state: DownloadState::Preparing,
            limits: spec.limits.applied_to(DownloadLimits::default()),
            chosen_files: None,
            is_seeding: false,
            uploaded_bytes: 0,
            bytes_done: 0,
            bytes_total: 0,
            resumed_bytes: 0,
            copied_bytes: 0,
            unverified_bytes: 0,
            bytes_per_second: 0,
            elapsed: Duration::ZERO,
            created_at: None,
            units_total: 0,
            units_done: 0,
            peers: Vec::new(),
            missing: Vec::new(),
            map: ContentMap::default(),
            error: None,
            findings: Vec::new(),
            sharing_error: None,
            not_kept: Vec::new(),
        }
    }

    /// Shows the download in `state` without activity: no rates and no requests. The peers' bytes
    /// and the reasons of failed peers stay visible.
    pub(crate) fn show_inactive(&mut self, state: DownloadState) {
        self.state = state;
        self.unverified_bytes = 0;
        self.bytes_per_second = 0;
        self.error = None;
        self.findings.clear();
        self.missing.iter_mut().for_each(|run| run.in_flight = false);
        self.map.in_flight.fill(false);
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

    fn row(state: PeerState, bytes: u64) -> PeerStatus {
        PeerStatus {
            peer: None,
            origin: None,
            labels: Labels::default(),
            address: Address {
                host: "192.0.2.1".into(),
                port: 9,
            },
            state,
            reason: "why".into(),
            bytes,
            bytes_per_second: 5,
            requests: 2,
            units: 7,
        }
    }

    #[test]
    fn an_inactive_download_shows_no_activity() {
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
        status.show_inactive(DownloadState::Paused);
        assert_eq!(
            (status.state, status.bytes_per_second, status.unverified_bytes),
            (DownloadState::Paused, 0, 0)
        );
        assert!(status.findings.is_empty() && status.missing.iter().all(|run| !run.in_flight));
        let states =
            |status: &DownloadStatus| status.peers.iter().map(|row| row.state).collect::<Vec<_>>();
        use PeerState::{Banned, Idle, Unreachable};
        assert_eq!(states(&status), [Idle, Idle, Unreachable, Banned]);
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
