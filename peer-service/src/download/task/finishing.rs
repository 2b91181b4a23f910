//! Finishes a run that has all its units: gives the content its final name and shares it.
//!
//! Invariant: the content is served without interruption, first by the download and then by the
//! library.

use std::{path::PathBuf, sync::Arc, time::Duration};

use potluck_core::{
    FileId, Problem, Sha256,
    collection::path::Label,
    identity::{hash, merkle::FileTree},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    announce::set::PartialAnnouncement,
    download::{
        context::DownloadContext,
        engine::{active::ActiveDownload, driver::AttemptOutcome},
        origin::aliases::ALIAS_TTL,
        status::DownloadStatus,
        storage::{
            finalize::{self, FinalStamps},
            part_file::PartStorage,
            target,
        },
        task::{metadata::CollectionManifest, preexisting, run_context::RunContext},
    },
    fs::blocking::blocking,
    library::{Item, stamps_at},
};

/// How long a finished download waits to be shared: enough except for huge collections, whose files
/// are registered in the background.
const ADOPTION_TIMEOUT: Duration = Duration::from_millis(250);

/// Interval between updates of the copied bytes.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);

/// Gives the content its final name and shares it. `announcement` ends once the library has the
/// content.
///
/// # Errors
/// As [`finalize::finalize`], unless waiting helps.
pub(crate) async fn finish(
    context: &RunContext,
    download: &Arc<ActiveDownload>,
    collection: Option<CollectionManifest>,
    announcement: Option<PartialAnnouncement>,
) -> Result<AttemptOutcome, Problem> {
    let RunContext { reporter, spec, .. } = context;
    if !reporter.start_finishing() {
        return Ok(AttemptOutcome::Stopped);
    }
    let stamps = loop {
        let part = Arc::clone(&download.part_file);
        // The SHA-256 of provisional content was compared already.
        let claim = spec.sha256.filter(|_| download.pieces.is_none());
        let stop = context.stop.clone();
        let work = blocking(move || finalize::finalize(&part, claim, &stop));
        match while_copying(context, download, work).await? {
            Ok(stamps) => break stamps,
            // After a failed flush the written data is lost, so the run needs a new part file.
            Err(problem) if problem.reason.is_exhaustion() && !download.part_file.sync_failed() => {
                if !context.wait_to_retry(problem).await {
                    return Ok(AttemptOutcome::Stopped);
                }
            }
            Err(problem) => return Err(problem),
        }
    };
    reporter.set_copied_bytes(download.part_file.copied());
    reporter.set_not_kept(download.part_file.not_kept());
    let adoption = Adoption {
        context: Arc::clone(&context.peer),
        download: Arc::clone(download),
        sha256: spec.sha256,
        stamps,
        collection,
        is_shared: context.shares(),
        stop: context.stop.clone(),
        status: context.channels.status.clone(),
        label: Label::sanitize(&download.name),
    };
    // The download serves the content and stays announced as partial until the library has it.
    let active = context.channels.active.clone();
    let adopted = context.peer.tracker.spawn(async move {
        let adopted = adoption.run().await;
        match adopted.filter(|_| adoption.download.pieces.is_some()) {
            // Peers that still download under the provisional id go on from here.
            Some(id) => {
                let record = adoption.download.record;
                adoption.context.aliases.add(record, id, announcement);
                adoption.expire_alias_later();
            }
            None => drop(announcement),
        }
        active.send_replace(None);
    });
    // The adoption continues if it takes longer.
    let _ = tokio::time::timeout(ADOPTION_TIMEOUT, adopted).await;
    Ok(AttemptOutcome::Complete)
}

/// Reports how many bytes of duplicate content are copied, until the work is done.
async fn while_copying<T>(
    context: &RunContext,
    download: &Arc<ActiveDownload>,
    work: impl Future<Output = T>,
) -> T {
    tokio::pin!(work);
    let mut report = tokio::time::interval(REPORT_INTERVAL);
    loop {
        // The work is pinned outside the loop, so polling the other arm does not drop it.
        tokio::select! {
            result = &mut work => break result,
            _ = report.tick() => context.reporter.set_copied_bytes(download.part_file.copied()),
        }
    }
}

/// Adopts a finished download into the library.
struct Adoption {
    context: Arc<DownloadContext>,
    download: Arc<ActiveDownload>,
    sha256: Option<Sha256>,
    stamps: FinalStamps,
    collection: Option<CollectionManifest>,
    /// Whether the content is shared once it is complete.
    is_shared: bool,
    stop: CancellationToken,
    status: watch::Sender<DownloadStatus>,
    /// The name that others use; the target path stays private.
    label: Label,
}

impl Adoption {
    /// The download is done even if this fails. Returns the id under which a file is shared.
    async fn run(&self) -> Option<FileId> {
        let path = self.download.part_file.target().path.clone();
        let adopted = match &self.collection {
            _ if !self.is_shared => {
                let kept = self.context.library.keep_unshared(path.clone()).await;
                kept.map(|()| None)
            }
            None => {
                let item = self.adopt_file(path.clone()).await;
                item.map(|item| Some(item.record.id))
            }
            Some(collection) => {
                let adopted = self.adopt_folder(collection, path.clone()).await;
                adopted.map(|()| None)
            }
        };
        if let Err(problem) = &adopted {
            tracing::warn!(
                path = %path.display(), %problem,
                "downloaded and verified, but cannot be shared"
            );
            self.status
                .send_modify(|status| status.sharing_error = Some(problem.clone()));
        }
        adopted.ok().flatten()
    }

    /// Ends the announcement of the provisional id when its time is over.
    fn expire_alias_later(&self) {
        let (context, stop) = (Arc::clone(&self.context), self.stop.clone());
        self.context.tracker.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(ALIAS_TTL) => context.aliases.remove_expired(),
            }
        });
    }

    async fn adopt_file(&self, path: PathBuf) -> Result<Item, Problem> {
        let stamp = self.stamps.clone()?.first().copied().unwrap_or_default();
        let tree = match self.download.verifier.tree(0) {
            Some(tree) => tree,
            None => self.hash_small_file().await?,
        };
        self.context
            .library
            .adopt_file(path, tree, stamp, self.sha256, Some(self.label.clone()))
            .await
    }

    /// The tree of a one-piece file from an earlier run.
    async fn hash_small_file(&self) -> Result<FileTree, Problem> {
        let part = Arc::clone(&self.download.part_file);
        let hashed = blocking(move || {
            let file = part.file(0)?;
            hash::hash_file(&file, part.plan().total(), 1, &hash::ignore_progress)
        });
        let path = &self.download.part_file.target().path;
        hashed
            .await?
            .map_err(|error| target::target_problem(path, &error))
    }

    async fn adopt_folder(
        &self,
        collection: &CollectionManifest,
        path: PathBuf,
    ) -> Result<(), Problem> {
        let is_whole = match self.download.part_file.storage() {
            PartStorage::Tree(tree) => tree.is_whole_collection(),
            PartStorage::File(_) => true,
        };
        let stamps = match is_whole {
            true => self.stamps.clone()?,
            false => {
                let (root, manifest) = (path.clone(), Arc::clone(&collection.manifest));
                let stamps = blocking(move || {
                    let is_whole = preexisting::is_whole_collection(&root, &manifest);
                    is_whole.then(|| stamps_at(&root, &manifest))
                });
                match stamps.await? {
                    Some(stamps) => stamps?,
                    // A collection with some of its files cannot be shared under its id, and under
                    // another id its name would mislead.
                    None => return self.context.library.keep_unshared(path).await,
                }
            }
        };
        let (verifier, plan, root) = (
            Arc::clone(&self.download.verifier),
            Arc::clone(self.download.part_file.plan()),
            path.clone(),
        );
        let manifest = Arc::clone(&collection.manifest);
        let entries = Arc::clone(&manifest);
        let stop = self.stop.clone();
        let hashes = blocking(move || {
            let hashes = preexisting::collect_hashes(&verifier, &plan, &entries, &root, &stop);
            hashes.map_err(|error| target::target_problem(&root, &error))
        });
        let hashes = hashes.await??;
        self.context
            .library
            .adopt_collection(path, manifest, stamps, hashes, Some(self.label.clone()))
            .await
            .map(drop)
    }
}
