//! Writes the progress of a run into the status of its download.
//!
//! Invariant: once the run is stopped, the status shows no activity.

use std::{collections::HashMap, path::Path, time::Duration};

use parking_lot::Mutex;
use potluck_core::{
    FileId, Problem,
    collection::plan::Plan,
    model::{FileKind, Labels},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::download::{
    engine::driver::DriverView,
    origin::pieces::Fault,
    peers::discovery::PeerCandidates,
    status::{
        ContentMap, DownloadState, DownloadStatus, PeerState, PeerStatus,
        explanation::{hung_disk_problem, stuck_problem},
        rate::RateWindow,
        rows::{findings, missing_units, peer_statuses},
    },
};
use potluck_swarm::PeerKey;

/// Interval between scans of the missing units.
const MISSING_INTERVAL: Duration = Duration::from_secs(1);

/// Writes the status of one run.
#[derive(Debug)]
pub(crate) struct StatusReporter {
    status: watch::Sender<DownloadStatus>,
    /// Once cancelled, updates no longer show activity.
    stop: CancellationToken,
    start: Instant,
    state: Mutex<ReporterState>,
}

#[derive(Debug, Default)]
struct ReporterState {
    /// Bytes at the target that this run leaves as they are.
    existing_bytes: u64,
    /// Units of which the download needs nothing.
    unneeded_units: u32,
    /// Bytes in the part before the swarm started.
    initial_bytes: u64,
    rate: RateWindow,
    peer_rates: HashMap<PeerKey, RateWindow>,
    missing_at: Option<Instant>,
}

impl StatusReporter {
    /// Resets the status for a new run. Once `stop` is cancelled, updates no longer show activity.
    pub(crate) fn new(status: watch::Sender<DownloadStatus>, stop: CancellationToken) -> Self {
        status.send_modify(|status| {
            status.state = DownloadState::Preparing;
            status.error = None;
            status.resumed_bytes = 0;
            status.unverified_bytes = 0;
            status.copied_bytes = 0;
            status.not_kept.clear();
            status.bytes_per_second = 0;
            status.elapsed = Duration::ZERO;
            status.peers.clear();
            status.missing.clear();
            status.map = ContentMap::default();
            status.findings.clear();
            status.sharing_error = None;
        });
        Self {
            status,
            stop,
            start: Instant::now(),
            state: Mutex::default(),
        }
    }

    fn update(&self, change: impl FnOnce(&mut DownloadStatus)) {
        self.status.send_modify(|status| {
            let before = status.state;
            change(status);
            if self.stop.is_cancelled() {
                status.show_inactive(before);
            }
            status.elapsed = self.start.elapsed();
        });
    }

    /// Changes the state to finishing; false if the run is stopping. The check is atomic with
    /// pausing: a download is either paused before this or finishes.
    pub(crate) fn start_finishing(&self) -> bool {
        let mut finishes = false;
        self.update(|status| {
            finishes = !self.stop.is_cancelled();
            if finishes {
                status.show_inactive(DownloadState::Finishing);
            }
        });
        finishes
    }

    /// Sets the state and the problem.
    pub(crate) fn set_state(&self, state: DownloadState, error: Option<Problem>) {
        self.update(|status| {
            status.state = state;
            status.error = error;
            // Nothing arrives until the swarm reports again.
            status.unverified_bytes = 0;
            status.bytes_per_second = 0;
            status.peers.iter_mut().for_each(|row| row.bytes_per_second = 0);
        });
    }

    /// Sets the final path.
    pub(crate) fn set_path(&self, path: &Path) {
        self.update(|status| status.path = path.to_owned());
    }

    /// Sets the id of the content once it is known, in place of a provisional one.
    pub(crate) fn set_id(&self, id: FileId) {
        self.update(|status| status.id = id);
    }

    /// Shows peers that are at fault, and why.
    pub(crate) fn show_faults(&self, faults: &[Fault]) {
        let addresses = faults
            .iter()
            .filter_map(|fault| Some((fault.unit, fault.address.clone()?)));
        let rows: Vec<PeerStatus> = addresses
            .map(|(unit, address)| PeerStatus {
                peer: None,
                address,
                origin: None,
                labels: Labels::default(),
                state: PeerState::Banned,
                reason: format!("piece {unit} differs from the origin"),
                bytes: 0,
                bytes_per_second: 0,
                requests: 0,
                units: 0,
            })
            .collect();
        self.update(|status| {
            status
                .peers
                .retain(|row| rows.iter().all(|fault| fault.address != row.address));
            status.peers.extend(rows);
        });
    }

    /// Sets name and size.
    pub(crate) fn set_identity(&self, name: &str, size: u64) {
        self.update(|status| {
            status.state = DownloadState::Preparing;
            status.error = None;
            status.name = name.to_owned();
            status.bytes_total = size;
        });
    }

    /// Sets the kind, and the totals from the plan. `existing` bytes are at the target already.
    pub(crate) fn set_plan(&self, kind: FileKind, plan: &Plan, existing: u64) {
        let unneeded = (0..plan.unit_count())
            .filter(|&unit| plan.unit_len(unit) == 0)
            .count();
        {
            let mut state = self.state.lock();
            // Fits: a part of the units.
            state.unneeded_units = unneeded as u32;
            state.existing_bytes = existing;
        }
        self.update(|status| {
            status.kind = Some(kind);
            status.bytes_total = plan.written() + existing;
            status.units_total = plan.unit_count() - unneeded as u32;
        });
    }

    /// Sets the number of chosen files, and of all files in the collection.
    pub(crate) fn set_chosen_files(&self, chosen: u64, all: u64) {
        self.update(|status| status.chosen_files = Some((chosen, all)));
    }

    /// Reports that all content was already present.
    pub(crate) fn set_preexisting(&self, kind: FileKind, size: u64) {
        self.update(|status| {
            status.kind = Some(kind);
            status.bytes_total = size;
            status.bytes_done = size;
            status.resumed_bytes = size;
            if status.name.is_empty() {
                status.name = status
                    .path
                    .file_name()
                    .map_or_else(String::new, |name| name.to_string_lossy().into());
            }
        });
    }

    /// Reports that the content is not shared, or only until the peer stops.
    pub(crate) fn set_not_shared(&self, problem: Problem) {
        self.update(|status| status.sharing_error = Some(problem));
    }

    /// Sets the bytes that were present before the swarm started.
    pub(crate) fn set_bytes(&self, bytes: u64) {
        let existing = {
            let mut state = self.state.lock();
            state.initial_bytes = bytes;
            state.existing_bytes
        };
        self.update(|status| {
            status.bytes_done = bytes + existing;
            status.copied_bytes = 0;
        });
    }

    /// Sets the bytes copied so far of content with several paths.
    pub(crate) fn set_copied_bytes(&self, copied: u64) {
        self.update(|status| {
            let downloaded = status.bytes_done - status.copied_bytes;
            status.copied_bytes = copied;
            status.bytes_done = downloaded + copied;
        });
    }

    /// Sets the notes on properties that the file system could not preserve.
    pub(crate) fn set_not_kept(&self, notes: Vec<String>) {
        self.update(|status| status.not_kept = notes);
    }

    /// Sets the bytes of an earlier run.
    pub(crate) fn set_resumed_bytes(&self, bytes: u64) {
        let existing = self.state.lock().existing_bytes;
        self.update(|status| status.resumed_bytes = bytes + existing);
    }

    /// Shows the state of the swarm, its peers and the disk.
    pub(crate) fn show_swarm(
        &self,
        plan: &Plan,
        view: DriverView<'_>,
        candidates: &PeerCandidates,
    ) {
        let now = Instant::now();
        let swarm = view.swarm;
        let (done, existing, unneeded, rate, rows, missing_is_due) = {
            let mut state = self.state.lock();
            let done = (state.initial_bytes + swarm.counters().verified_bytes).min(plan.total());
            // The rate counts unverified bytes, because a unit may take minutes.
            let rate = state.rate.sample(now, swarm.counters().received_bytes);
            let rows = peer_statuses(&view, &mut state.peer_rates, now);
            let is_old = state.missing_at.is_none_or(|at| now - at >= MISSING_INTERVAL);
            let missing_is_due = is_old || swarm.is_finished();
            if missing_is_due {
                state.missing_at = Some(now);
            }
            let (existing, unneeded) = (state.existing_bytes, state.unneeded_units);
            (done, existing, unneeded, rate, rows, missing_is_due)
        };
        let error = stuck_problem(&view, candidates).or_else(|| hung_disk_problem(view.disk));
        let error = view.disk_problem.or(error);
        self.update(|status| {
            status.state = match &error {
                Some(_) => DownloadState::Waiting,
                None => DownloadState::Running,
            };
            status.findings = findings(&rows, candidates);
            status.error = error;
            status.bytes_done = done + existing;
            status.copied_bytes = 0;
            status.unverified_bytes = swarm.unverified_bytes().min(plan.total() - done);
            status.bytes_per_second = rate;
            status.units_total = plan.unit_count() - unneeded;
            status.units_done = swarm.have().count() - unneeded;
            status.peers = rows;
            if missing_is_due {
                let missing = swarm.missing();
                status.map = view.senders.map(&missing);
                status.missing = missing_units(missing);
            }
        });
    }
}
