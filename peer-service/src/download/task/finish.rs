//! Finishes a run whose units are all there: gives the content its final name and shares it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use potluck_core::{
    Problem, Sha256,
    collection::path::Label,
    identity::{hash, merkle::FileTree},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    announce::set::PartialAnnouncement,
    download::{
        context::DownloadContext,
        engine::{active::ActiveDownload, driver::DISK_RETRY},
        status::{DownloadState, DownloadStatus, reporter::StatusReporter},
        storage::{
            finalize::{self, FinalStamps},
            target,
        },
        task::{DownloadRun, PreparedDownload, metadata::CollectionManifest, preexisting},
    },
    fs::blocking::blocking,
    library::Item,
};

/// How long a finished download waits to be shared: enough except for huge collections, whose files
/// are registered in the background.
const ADOPTION_TIMEOUT: Duration = Duration::from_millis(250);

/// Interval between updates of the copied bytes.
const SHOWN_EVERY: Duration = Duration::from_millis(200);

impl DownloadRun {
    /// Gives the content its final name and shares it. False if stopped.
    pub(crate) async fn finalize(
        &self,
        download: &Arc<ActiveDownload>,
        prepared: PreparedDownload,
        offered: PartialAnnouncement,
        reporter: &StatusReporter,
    ) -> Result<bool, Problem> {
        if !reporter.finishing() {
            return Ok(false);
        }
        let stamps = loop {
            let (part, claim, stop) = (
                Arc::clone(&download.part_file),
                self.spec.sha256,
                self.stop.clone(),
            );
            let work = blocking(move || finalize::finalize(&part, claim, &stop));
            match self.while_copying(download, reporter, work).await? {
                Ok(stamps) => break stamps,
                // After a failed flush the written data is lost, so the run needs a new part file.
                Err(problem) if problem.reason.is_exhaustion() && !download.part_file.sync_failed() => {
                    reporter.set_state(DownloadState::Waiting, Some(problem));
                    tokio::select! {
                        () = self.stop.cancelled() => return Ok(false),
                        () = tokio::time::sleep(DISK_RETRY) => {}
                    }
                }
                Err(problem) => return Err(problem),
            }
        };
        reporter.copied(download.part_file.copied());
        reporter.not_kept(download.part_file.not_kept());
        let adoption = Adoption {
            context: Arc::clone(&self.context),
            download: Arc::clone(download),
            sha256: self.spec.sha256,
            stamps,
            collection: prepared.planned.collection,
            stop: self.stop.clone(),
            view: self.status.clone(),
            label: Label::sanitize(&download.name),
        };
        // The download serves the content and stays announced as partial until the library has it.
        let source = self.active.clone();
        let adopted = self.context.tracker.spawn(async move {
            adoption.run().await;
            drop(offered);
            source.send_replace(None);
        });
        // The adoption continues if it takes longer.
        let _ = tokio::time::timeout(ADOPTION_TIMEOUT, adopted).await;
        Ok(true)
    }
}

impl DownloadRun {
    /// Reports how many bytes of duplicate content are copied, until the work is done.
    async fn while_copying<T>(
        &self,
        download: &Arc<ActiveDownload>,
        reporter: &StatusReporter,
        work: impl Future<Output = T>,
    ) -> T {
        tokio::pin!(work);
        let mut tick = tokio::time::interval(SHOWN_EVERY);
        loop {
            // The work is pinned outside the loop, so polling the other arm does not drop it.
            tokio::select! {
                done = &mut work => break done,
                _ = tick.tick() => reporter.copied(download.part_file.copied()),
            }
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
    stop: CancellationToken,
    view: watch::Sender<DownloadStatus>,
    /// The name that others use; the target path stays private.
    label: Label,
}

impl Adoption {
    /// The download is done even if this fails.
    async fn run(&self) {
        let path = self.download.part_file.target().path.clone();
        let adopted = match &self.collection {
            None => self.file(path.clone()).await,
            Some(collection) => self.folder(collection, path.clone()).await,
        };
        if let Err(problem) = adopted {
            tracing::warn!(path = %path.display(), %problem, "fetched and verified, and could not be shared");
            self.view
                .send_modify(|status| status.sharing_error = Some(problem));
        }
    }

    async fn file(&self, path: PathBuf) -> Result<Item, Problem> {
        let stamp = self.stamps.clone()?.first().copied().unwrap_or_default();
        let tree = match self.download.verifier.tree(0) {
            Some(tree) => tree,
            None => self.tree_of_small().await?,
        };
        self.context
            .library
            .adopt_file(path, tree, stamp, self.sha256, Some(self.label.clone()))
            .await
    }

    /// The tree of a one-piece file from an earlier run.
    async fn tree_of_small(&self) -> Result<FileTree, Problem> {
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

    async fn folder(&self, collection: &CollectionManifest, path: PathBuf) -> Result<Item, Problem> {
        let (checks, plan, root) = (
            Arc::clone(&self.download.verifier),
            Arc::clone(self.download.part_file.plan()),
            path.clone(),
        );
        let manifest = Arc::clone(&collection.manifest);
        let entries = Arc::clone(&manifest);
        let stop = self.stop.clone();
        let stamps = self.stamps.clone()?;
        let hashes = blocking(move || {
            let hashes = preexisting::collect_hashes(&checks, &plan, &entries, &root, &stop);
            hashes.map_err(|error| target::target_problem(&root, &error))
        });
        let hashes = hashes.await??;
        self.context
            .library
            .adopt_collection(path, manifest, stamps, hashes, Some(self.label.clone()))
            .await
    }
}
