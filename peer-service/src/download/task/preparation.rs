//! Prepares the data of a download: opens the part file, recovers units, and publishes the
//! download.
//!
//! Invariant: steps that use the part file run to their end before the next step starts.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use potluck_core::{Problem, Reason, bitfield::Bitfield, problem::RAISE_OPEN_FILES};

use crate::{
    download::{
        engine::{active::ActiveDownload, verifier::UnitVerifier},
        origin::{pieces::ProvisionalPieces, settle},
        storage::part_file::{FoundPart, PartFile},
        task::{planning::PlannedDownload, recovery, run_context::RunContext},
    },
    fs::blocking::blocking,
};

/// Interval between updates of the recovered bytes.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);

/// Opens the part file; waits if the disk is full. `None` if stopped.
///
/// # Errors
/// As [`PartFile::open`].
pub(crate) async fn open_part(
    context: &RunContext,
    planned: &PlannedDownload,
) -> Result<Option<(PartFile, FoundPart)>, Problem> {
    let id = context.spec.id;
    while !context.stop.is_cancelled() {
        let (target, plan) = (planned.target.clone(), Arc::clone(&planned.plan));
        let entries = planned.entries.clone();
        let stop = context.stop.clone();
        match blocking(move || PartFile::open(id, target, plan, entries, &stop)).await? {
            Err(problem) if problem.reason.is_exhaustion() => {
                let (near, bytes) = (&planned.target.path, planned.plan.total());
                if !context.make_room(&problem, near, bytes).await {
                    context.wait_to_retry(problem).await;
                }
            }
            opened => return opened.map(Some),
        }
    }
    Ok(None)
}

/// Recovers units of an earlier run and copies units from the library. `None` if stopped.
///
/// # Errors
/// Only if this process is ending.
pub(crate) async fn recover_units(
    context: &RunContext,
    part_file: &Arc<PartFile>,
    verifier: &Arc<UnitVerifier>,
    found: FoundPart,
) -> Result<Option<Bitfield>, Problem> {
    if part_file.plan().manifest().is_none() && context.spec.provisional_origin().is_some() {
        // Nothing verifies a piece. Those that a resume state lists were written before it.
        return Ok(Some(match found {
            FoundPart::Resume(have) => {
                let bytes = have.ones().map(|unit| part_file.plan().unit_len(unit)).sum();
                context.reporter.set_resumed_bytes(bytes);
                context.reporter.set_bytes(bytes);
                have
            }
            FoundPart::Created | FoundPart::Unverified => {
                Bitfield::new(part_file.plan().unit_count())
            }
        }));
    }
    let (part, verifier) = (Arc::clone(part_file), Arc::clone(verifier));
    let (library, threads) = (context.peer.library.clone(), context.peer.resources.hash_threads);
    let stop = context.stop.clone();
    let recovered_bytes = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&recovered_bytes);
    let work = blocking(move || {
        let on_unit = |len: u64| {
            counter.fetch_add(len, Ordering::Relaxed);
        };
        let is_wanted = || !stop.is_cancelled();
        let mut have = recovery::recover(&part, &verifier, found, threads, &is_wanted, &on_unit);
        let resumed_bytes: u64 = have.ones().map(|unit| part.plan().unit_len(unit)).sum();
        let copied =
            recovery::copy_local(&library, &part, &verifier, &mut have, &is_wanted, &on_unit);
        if let Err(error) = copied {
            // The swarm's first write fails the same way and reports the error.
            tracing::warn!(%error, "could not copy units from the library");
        }
        (have, resumed_bytes)
    });
    tokio::pin!(work);
    let mut report = tokio::time::interval(REPORT_INTERVAL);
    let (have, resumed_bytes) = loop {
        // The work is pinned outside the loop, so polling the other arm does not drop it.
        tokio::select! {
            result = &mut work => break result?,
            _ = report.tick() => {
                context.reporter.set_bytes(recovered_bytes.load(Ordering::Relaxed));
            }
        }
    };
    context.reporter.set_resumed_bytes(resumed_bytes);
    context
        .reporter
        .set_bytes(recovered_bytes.load(Ordering::Relaxed));
    Ok(Some(have).filter(|_| !context.stop.is_cancelled()))
}

/// Makes the download available to readers, and to uploads unless it is not shared.
///
/// # Errors
/// If the temporary file for a manifest cannot be written.
pub(crate) async fn publish(
    context: &RunContext,
    planned: &PlannedDownload,
    part_file: Arc<PartFile>,
    verifier: Arc<UnitVerifier>,
    have: Bitfield,
) -> Result<Arc<ActiveDownload>, Problem> {
    let (record, name) = (planned.record, planned.name.clone());
    let pieces = record.is_provisional().then(|| {
        let pieces = ProvisionalPieces::new(have.len());
        settle::restore(&pieces, &have);
        Arc::new(pieces)
    });
    let collection = planned.collection.clone();
    let download = blocking(move || {
        let manifest = collection
            .as_ref()
            .map(|it| (it.tree.clone(), &**it.manifest.bytes()));
        ActiveDownload::new(record, name, part_file, verifier, manifest, have)
    });
    let download = download.await?.map_err(|error| temporary_file_problem(&error))?;
    let download = download.provisional(pieces).shared(context.shares());
    let download = Arc::new(download);
    context.channels.active.send_replace(Some(Arc::clone(&download)));
    Ok(download)
}

fn temporary_file_problem(error: &io::Error) -> Problem {
    let folder = std::env::temp_dir();
    let folder = folder.display();
    match Reason::of_exhaustion(error) {
        Some(Reason::DiskFull) => Problem::new(
            Reason::DiskFull,
            format!(
                "no room for a temporary file in {folder}: make room there; the download then \
                 continues by itself"
            ),
        ),
        Some(reason) => Problem::new(
            reason,
            format!(
                "cannot create a temporary file: {RAISE_OPEN_FILES}; the download then continues \
                 by itself"
            ),
        ),
        None => Problem::new(
            Reason::Internal,
            format!("cannot create a temporary file in {folder}: {error}"),
        ),
    }
}
