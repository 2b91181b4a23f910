//! Domain types for the reports of a peer's control service, and their conversion from messages.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use potluck_core::{
    FileId, PeerId, Problem, Reason,
    model::{Address, FileKind, FileRecord, Labels, Reachability},
    proto::v1,
};
use potluck_peer::library::OmissionKind;
use serde::Serialize;

use crate::arguments::seed::Seed;

/// An item that the peer shares.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) record: FileRecord,
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) file_count: u64,
    /// Content size in bytes; for a collection, the sum of its files.
    pub(crate) content_size: u64,
    /// Files that no longer match their hashes. The peer does not offer an item that has any.
    pub(crate) damaged_paths: Vec<String>,
}

/// An event of a running check.
#[derive(Debug, Clone)]
pub(crate) enum CheckEvent {
    /// Hashing progress: the current path, and bytes done and total over all paths.
    Progress { path: String, done: u64, total: u64 },
    /// A file does not match its hashes, or cannot be read.
    Bad {
        path: String,
        file: FileId,
        problem: Problem,
    },
    /// The path is not shared.
    Failed { path: String, problem: Problem },
    /// The check is complete.
    Summary { files: u64, bytes: u64, bad: u64 },
}

/// An event of a running share.
#[derive(Debug, Clone)]
pub(crate) enum ShareEvent {
    /// Hashing progress: the current path, and bytes done and found so far over all paths.
    Progress { path: String, done: u64, total: u64 },
    /// Entries that are left out of a folder. A long list comes in several events, and only the
    /// first has the counts.
    Omitted(FolderOmissions),
    /// A path is shared.
    Shared(Item),
    /// A path, or an entry in a folder, could not be shared.
    Failed { path: String, problem: Problem },
}

/// The entries that are left out of a folder.
#[derive(Debug, Clone, Default)]
pub(crate) struct FolderOmissions {
    pub(crate) folder: String,
    pub(crate) counts: Vec<(OmissionKind, u64)>,
    /// Some or all of them.
    pub(crate) entries: Vec<OmittedEntry>,
}

/// An entry that is left out of a folder.
#[derive(Debug, Clone)]
pub(crate) struct OmittedEntry {
    pub(crate) path: String,
    pub(crate) kind: OmissionKind,
    pub(crate) message: String,
}

impl FolderOmissions {
    /// Adds a later event about the same folder.
    pub(crate) fn append(&mut self, mut more: Self) {
        self.folder = more.folder;
        self.counts.append(&mut more.counts);
        self.entries.append(&mut more.entries);
    }
}

/// The state of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TransferState {
    Preparing,
    Running,
    Waiting,
    Paused,
    Finishing,
    Done,
    Failed,
    Cancelled,
}

impl TransferState {
    /// The word used in text and in JSON.
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

    /// Whether the transfer has ended.
    pub(crate) const fn has_ended(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// The state of a peer within a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PeerState {
    Connecting,
    Active,
    Idle,
    BackingOff,
    Unreachable,
    Banned,
}

impl PeerState {
    /// The word used in text.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Active => "active",
            Self::Idle => "idle",
            Self::BackingOff => "backing off",
            Self::Unreachable => "unreachable",
            Self::Banned => "banned",
        }
    }
}

/// A peer of a transfer.
#[derive(Debug, Clone)]
pub(crate) struct TransferPeer {
    /// `None` if only the address is known.
    pub(crate) peer: Option<PeerId>,
    pub(crate) address: Address,
    /// The address of the file, if this is an origin and not a peer.
    pub(crate) origin: Option<String>,
    /// Where it says that it is.
    pub(crate) labels: Labels,
    pub(crate) state: PeerState,
    pub(crate) reason: Option<String>,
    pub(crate) bytes: u64,
    pub(crate) bytes_per_second: u64,
    pub(crate) requests: u32,
    pub(crate) units: u32,
}

/// A unit that takes longer than this many seconds is "long": the rate is averaged over this time.
const LONG_UNIT: u64 = 3;

/// A download.
#[derive(Debug, Clone)]
pub(crate) struct Transfer {
    pub(crate) number: u64,
    pub(crate) file: FileId,
    pub(crate) name: String,
    pub(crate) kind: FileKind,
    pub(crate) path: String,
    pub(crate) state: TransferState,
    /// Number of chosen files, and of all files in the collection; `None` if all are downloaded.
    pub(crate) chosen_files: Option<(u64, u64)>,
    /// Whether the finished download is served until a limit is reached.
    pub(crate) is_seeding: bool,
    /// Bytes sent to others, if that limit is a ratio.
    pub(crate) uploaded: u64,
    pub(crate) done: u64,
    /// `None` until known.
    pub(crate) total: Option<u64>,
    pub(crate) resumed: u64,
    /// The part of `done` that was copied from files on the peer's machine, in bytes.
    pub(crate) copied: u64,
    /// Received bytes of incomplete units: not yet verified, and not part of `done`.
    pub(crate) unverified: u64,
    pub(crate) bytes_per_second: u64,
    pub(crate) elapsed: Duration,
    /// When it was requested; `None` if unknown.
    pub(crate) created_at: Option<SystemTime>,
    pub(crate) units_total: u32,
    pub(crate) units_done: u32,
    pub(crate) peers: Vec<TransferPeer>,
    pub(crate) error: Option<Problem>,
    /// Why a completed download is not shared, or is shared only until the peer stops.
    pub(crate) sharing_error: Option<Problem>,
    /// Properties that the target's file system could not store, one sentence each.
    pub(crate) not_kept: Vec<String>,
    /// Maximum bytes per second; 0: no limit.
    pub(crate) limit: u64,
    /// Relative weight among the peer's downloads, 1 to 100.
    pub(crate) priority: u32,
}

impl Transfer {
    /// Estimated seconds left at the present rate; `None` if the rate or the total is unknown.
    pub(crate) fn seconds_left(&self) -> Option<u64> {
        let left = self.total?.saturating_sub(self.done + self.unverified);
        (self.bytes_per_second > 0).then(|| left.div_ceil(self.bytes_per_second))
    }

    /// The unverified bytes if a unit takes so long that `done` rarely changes; otherwise 0.
    pub(crate) fn unverified_to_show(&self) -> u64 {
        let unit = self.total.unwrap_or(0) / u64::from(self.units_total.max(1));
        match unit > self.bytes_per_second.saturating_mul(LONG_UNIT) {
            true => self.unverified,
            false => 0,
        }
    }
}

/// A run of consecutive missing units.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct MissingUnits {
    pub(crate) first: u32,
    pub(crate) count: u32,
    pub(crate) providers: u32,
    pub(crate) in_flight: u32,
}

/// A picture of the content of a transfer in cells; each list but the last has one entry for each
/// cell, as `ContentMap` in control.proto describes.
#[derive(Debug, Clone, Default)]
pub(crate) struct ContentMap {
    pub(crate) verified: Bytes,
    pub(crate) in_flight: Bytes,
    pub(crate) providers: Bytes,
    pub(crate) sender: Bytes,
    pub(crate) senders: Vec<Address>,
}

/// The activity of a transfer, and its reasons.
#[derive(Debug, Clone)]
pub(crate) struct Explanation {
    pub(crate) transfer: Transfer,
    pub(crate) missing: Vec<MissingUnits>,
    pub(crate) findings: Vec<String>,
    /// Without cells if the peer has none, or is of an earlier version.
    pub(crate) map: ContentMap,
}

/// A peer's limits; 0: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Upload rate, in bytes per second.
    pub(crate) upload: u64,
    /// Download rate, in bytes per second.
    pub(crate) download: u64,
    /// Concurrent downloads served.
    pub(crate) slots: u32,
}

/// Changes to a peer's limits. `None` leaves a limit as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LimitsUpdate {
    pub(crate) upload: Option<u64>,
    pub(crate) download: Option<u64>,
    pub(crate) slots: Option<u32>,
}

/// Whether the index has the peer's complete list of files.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registration {
    pub(crate) registered: bool,
    /// The reason why it does not; `None` for a peer without an index.
    pub(crate) problem: Option<Problem>,
}

impl From<v1::AwaitRegistrationResponse> for Registration {
    fn from(answer: v1::AwaitRegistrationResponse) -> Self {
        Self {
            registered: answer.registered,
            problem: answer.failure.map(problem),
        }
    }
}

/// A peer's status.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    pub(crate) peer: PeerId,
    pub(crate) listening: Option<Address>,
    pub(crate) advertised: Option<Address>,
    pub(crate) index: Option<String>,
    pub(crate) registered: bool,
    pub(crate) index_error: Option<Problem>,
    pub(crate) items: u64,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    pub(crate) uploaded: u64,
    pub(crate) downloaded: u64,
    /// Transfers that have not ended, including paused ones.
    pub(crate) transfers: u32,
    pub(crate) paused: u32,
    /// Problems that the owner should know about.
    pub(crate) warnings: Vec<String>,
    pub(crate) home: String,
    pub(crate) files_folder: String,
    pub(crate) uptime: Duration,
    pub(crate) version: String,
    /// Items with files that no longer match their hashes.
    pub(crate) damaged_items: u64,
    /// Whether the index can connect to the peer; `None` if it has not checked.
    pub(crate) reachability: Option<Reachability>,
    /// Whether the peer accepts no connections and registers nothing.
    pub(crate) is_download_only: bool,
    /// The peer id that this home had before it was found on another machine at this start.
    pub(crate) previous_peer: Option<PeerId>,
    /// Where its machine is.
    pub(crate) labels: Labels,
}

fn problem(failure: v1::Failure) -> Problem {
    Problem::new(
        Reason::from_wire(&failure.reason).unwrap_or(Reason::Internal),
        failure.message,
    )
}

fn missing_field(what: &str) -> Problem {
    Problem::new(
        Reason::NotPotluck,
        format!("the peer sent {what} with missing fields: it may be of another version"),
    )
}

fn address(address: v1::Address) -> Address {
    // The address is only displayed: port 0 stands for an unknown port.
    Address {
        host: address.host,
        port: u16::try_from(address.port).unwrap_or(0),
    }
}

impl TryFrom<v1::LibraryItem> for Item {
    type Error = Problem;

    fn try_from(item: v1::LibraryItem) -> Result<Self, Problem> {
        Ok(Self {
            record: item.file.ok_or_else(|| missing_field("an item"))?.try_into()?,
            name: item.name,
            path: item.path,
            file_count: item.file_count,
            content_size: item.content_size,
            damaged_paths: item.damaged_paths,
        })
    }
}

impl TryFrom<v1::ShareResponse> for ShareEvent {
    type Error = Problem;

    fn try_from(response: v1::ShareResponse) -> Result<Self, Problem> {
        use v1::share_response::Event;
        Ok(match response.event.ok_or_else(|| missing_field("an event"))? {
            Event::Progress(p) => Self::Progress {
                path: p.path,
                done: p.bytes_done,
                total: p.bytes_total,
            },
            Event::Omitted(omitted) => Self::Omitted(omitted.into()),
            Event::Shared(item) => Self::Shared(item.try_into()?),
            Event::Failed(failed) => Self::Failed {
                path: failed.path,
                problem: problem(failed.failure.unwrap_or_default()),
            },
        })
    }
}

impl From<v1::ShareOmissions> for FolderOmissions {
    fn from(omitted: v1::ShareOmissions) -> Self {
        let entries = omitted.entries.into_iter();
        let counts = omitted.counts.iter();
        Self {
            folder: omitted.path,
            counts: counts
                .map(|count| (omission_kind(count.kind), count.count))
                .collect(),
            entries: entries
                .map(|entry| OmittedEntry {
                    path: entry.path,
                    kind: omission_kind(entry.kind),
                    message: entry.failure.unwrap_or_default().message,
                })
                .collect(),
        }
    }
}

/// The kind with this number; an unknown one counts as unreadable.
fn omission_kind(kind: i32) -> OmissionKind {
    match v1::OmissionKind::try_from(kind).unwrap_or_default() {
        v1::OmissionKind::Unspecified | v1::OmissionKind::Unreadable => OmissionKind::Unreadable,
        v1::OmissionKind::Link => OmissionKind::Link,
        v1::OmissionKind::DanglingLink => OmissionKind::DanglingLink,
        v1::OmissionKind::LinkLoop => OmissionKind::LinkLoop,
        v1::OmissionKind::Special => OmissionKind::Special,
        v1::OmissionKind::InvalidName => OmissionKind::InvalidName,
        v1::OmissionKind::Vanished => OmissionKind::Vanished,
        v1::OmissionKind::PeerState => OmissionKind::PeerState,
        v1::OmissionKind::Excluded => OmissionKind::Excluded,
    }
}

impl TryFrom<v1::CheckResponse> for CheckEvent {
    type Error = Problem;

    fn try_from(response: v1::CheckResponse) -> Result<Self, Problem> {
        use v1::check_response::Event;
        Ok(match response.event.ok_or_else(|| missing_field("an event"))? {
            Event::Progress(p) => Self::Progress {
                path: p.path,
                done: p.bytes_done,
                total: p.bytes_total,
            },
            Event::Bad(bad) => Self::Bad {
                path: bad.path,
                file: potluck_core::convert::file_id(&bad.file_id, "bad.file_id")?,
                problem: problem(bad.failure.unwrap_or_default()),
            },
            Event::Failed(failed) => Self::Failed {
                path: failed.path,
                problem: problem(failed.failure.unwrap_or_default()),
            },
            Event::Summary(sum) => Self::Summary {
                files: sum.files,
                bytes: sum.bytes,
                bad: sum.bad_files,
            },
        })
    }
}

/// Converts how long a finished download is served.
pub(super) fn seed_limit(seed: Seed) -> v1::SeedLimit {
    use v1::seed_limit::Limit;
    let limit = match seed {
        Seed::No => Limit::Seconds(0),
        Seed::For(time) => Limit::Seconds(time.as_secs()),
        Seed::Ratio(thousandths) => Limit::Thousandths(thousandths),
    };
    v1::SeedLimit { limit: Some(limit) }
}

/// An event of a file that is read.
#[derive(Debug)]
pub(crate) enum ReadEvent {
    /// The state of the transfer.
    Progress(Box<Transfer>),
    /// The next bytes.
    Data(Bytes),
}

impl TryFrom<v1::ReadFileResponse> for ReadEvent {
    type Error = Problem;

    fn try_from(response: v1::ReadFileResponse) -> Result<Self, Problem> {
        use v1::read_file_response::Event;
        Ok(match response.event.ok_or_else(|| missing_field("an event"))? {
            Event::Transfer(state) => Self::Progress(Box::new(state.try_into()?)),
            Event::Data(data) => Self::Data(data),
        })
    }
}

impl From<v1::TransferState> for TransferState {
    fn from(state: v1::TransferState) -> Self {
        use v1::TransferState as Wire;
        match state {
            Wire::Unspecified | Wire::Preparing => Self::Preparing,
            Wire::Running => Self::Running,
            Wire::Waiting => Self::Waiting,
            Wire::Paused => Self::Paused,
            Wire::Finishing => Self::Finishing,
            Wire::Done => Self::Done,
            Wire::Failed => Self::Failed,
            Wire::Cancelled => Self::Cancelled,
        }
    }
}

impl From<v1::PeerState> for PeerState {
    fn from(state: v1::PeerState) -> Self {
        use v1::PeerState as Wire;
        match state {
            Wire::Unspecified | Wire::Connecting => Self::Connecting,
            Wire::Active => Self::Active,
            Wire::Idle => Self::Idle,
            Wire::BackingOff => Self::BackingOff,
            Wire::Unreachable => Self::Unreachable,
            Wire::Banned => Self::Banned,
        }
    }
}

impl From<v1::TransferPeer> for TransferPeer {
    fn from(peer: v1::TransferPeer) -> Self {
        Self {
            state: peer.state().into(),
            peer: PeerId::try_from(&peer.peer_id[..]).ok(),
            address: address(peer.address.unwrap_or_default()),
            origin: Some(peer.origin).filter(|origin| !origin.is_empty()),
            labels: peer.labels.map(Labels::from).unwrap_or_default(),
            reason: Some(peer.reason).filter(|reason| !reason.is_empty()),
            bytes: peer.bytes,
            bytes_per_second: peer.bytes_per_second,
            requests: peer.requests,
            units: peer.units,
        }
    }
}

impl TryFrom<v1::Transfer> for Transfer {
    type Error = Problem;

    fn try_from(transfer: v1::Transfer) -> Result<Self, Problem> {
        Ok(Self {
            kind: transfer.kind().into(),
            state: transfer.state().into(),
            number: transfer.transfer_id,
            file: potluck_core::convert::file_id(&transfer.file_id, "transfer.file_id")?,
            name: transfer.name,
            path: transfer.path,
            is_seeding: transfer.is_seeding,
            uploaded: transfer.uploaded_bytes,
            chosen_files: Some((transfer.chosen_files, transfer.collection_files))
                .filter(|&(_, all)| all > 0),
            done: transfer.bytes_done,
            // A total of 0 means unknown, except for an empty file, which is done.
            total: Some(transfer.bytes_total)
                .filter(|&total| total > 0 || transfer.state == i32::from(v1::TransferState::Done)),
            resumed: transfer.resumed_bytes,
            copied: transfer.copied_bytes,
            not_kept: transfer.not_kept,
            unverified: transfer.unverified_bytes,
            bytes_per_second: transfer.bytes_per_second,
            elapsed: Duration::from_millis(transfer.elapsed_ms),
            created_at: match transfer.created_unix_seconds {
                0 => None,
                seconds => UNIX_EPOCH.checked_add(Duration::from_secs(seconds)),
            },
            units_total: transfer.units_total,
            units_done: transfer.units_done,
            peers: transfer.peers.into_iter().map(Into::into).collect(),
            error: transfer.error.map(problem),
            sharing_error: transfer.sharing_error.map(problem),
            limit: transfer.max_bytes_per_second,
            priority: transfer.priority,
        })
    }
}

impl From<v1::ContentMap> for ContentMap {
    fn from(map: v1::ContentMap) -> Self {
        Self {
            verified: map.verified,
            in_flight: map.in_flight,
            providers: map.providers,
            sender: map.sender,
            senders: map.senders.into_iter().map(address).collect(),
        }
    }
}

impl TryFrom<v1::ExplainTransferResponse> for Explanation {
    type Error = Problem;

    fn try_from(answer: v1::ExplainTransferResponse) -> Result<Self, Problem> {
        Ok(Self {
            transfer: answer
                .transfer
                .ok_or_else(|| missing_field("a transfer"))?
                .try_into()?,
            missing: answer
                .missing
                .into_iter()
                .map(|run| MissingUnits {
                    first: run.first,
                    count: run.count,
                    providers: run.providers,
                    in_flight: run.in_flight,
                })
                .collect(),
            findings: answer.findings,
            map: answer.map.map(Into::into).unwrap_or_default(),
        })
    }
}

impl TryFrom<v1::GetStatusResponse> for Status {
    type Error = Problem;

    fn try_from(status: v1::GetStatusResponse) -> Result<Self, Problem> {
        Ok(Self {
            reachability: Reachability::from_message(status.reachability()),
            is_download_only: status.download_only,
            peer: PeerId::try_from(&status.peer_id[..]).map_err(|_| missing_field("a status"))?,
            listening: status.listening.map(address),
            advertised: status.advertised.map(address),
            index: Some(status.index).filter(|url| !url.is_empty()),
            registered: status.registered,
            index_error: status.index_error.map(problem),
            items: status.items,
            files: status.files,
            bytes: status.bytes,
            uploaded: status.uploaded_bytes,
            downloaded: status.downloaded_bytes,
            transfers: status.transfers,
            paused: status.paused_transfers,
            warnings: status.warnings,
            home: status.home,
            files_folder: status.files_folder,
            uptime: Duration::from_millis(status.uptime_ms),
            version: status.version,
            damaged_items: status.damaged_items,
            previous_peer: PeerId::try_from(&status.previous_peer_id[..]).ok(),
            labels: status.labels.map(Labels::from).unwrap_or_default(),
        })
    }
}

impl From<LimitsUpdate> for v1::Limits {
    fn from(update: LimitsUpdate) -> Self {
        Self {
            upload_bytes_per_second: update.upload,
            download_bytes_per_second: update.download,
            upload_slots: update.slots,
        }
    }
}

/// Converts limits; fails if they are missing.
pub(crate) fn limits(limits: Option<v1::Limits>) -> Result<Limits, Problem> {
    let limits = limits.ok_or_else(|| missing_field("limits"))?;
    Ok(Limits {
        upload: limits.upload_bytes_per_second.unwrap_or(0),
        download: limits.download_bytes_per_second.unwrap_or(0),
        slots: limits.upload_slots.unwrap_or(0),
    })
}

/// Converts a transfer; fails if it is missing.
pub(crate) fn transfer(transfer: Option<v1::Transfer>) -> Result<Transfer, Problem> {
    transfer.ok_or_else(|| missing_field("a transfer"))?.try_into()
}
