//! Decides what a run downloads, where to, and how it verifies the units, before the part file
//! opens.
//!
//! Content counts as a collection only if its bytes decode as a manifest. Content counts as a plain
//! file until a peer reports a different number of units or the downloaded bytes are a manifest;
//! then the bytes are examined once.

use std::{
    os::unix::fs::FileExt as _,
    sync::{Arc, atomic::Ordering},
};

use potluck_core::{
    Problem, Reason,
    collection::{
        limits::MAX_MANIFEST_SIZE,
        manifest::{MAGIC, Manifest},
        path::Label,
        plan::Plan,
    },
    model::{FileKind, FileRecord},
};

use crate::{
    download::{
        engine::{active::ActiveDownload, verifier::UnitVerifier},
        status::{DownloadState, reporter::StatusReporter},
        storage::target::{self, DownloadTarget},
        task::{
            DownloadRun,
            bootstrap::BootstrapPool,
            metadata::{self, CollectionManifest},
            preexisting,
        },
    },
    fs::blocking::blocking,
};

/// What a run downloads, and where to.
#[derive(Debug)]
pub(crate) struct PlannedDownload {
    pub(crate) record: FileRecord,
    pub(crate) name: String,
    pub(crate) collection: Option<CollectionManifest>,
    pub(crate) target: DownloadTarget,
    pub(crate) plan: Arc<Plan>,
}

impl DownloadRun {
    /// Collects what the run needs to know; `None` if the content is already at the target.
    pub(crate) async fn plan(
        &self,
        reporter: &StatusReporter,
        pool: &BootstrapPool,
    ) -> Result<Option<PlannedDownload>, Problem> {
        let waiting = |problem: Problem| reporter.set_state(DownloadState::Waiting, Some(problem));
        let id = self.spec.id;
        if let Some(path) = &self.spec.target {
            target::check_target(path)?;
        }
        // An existing file at the target can be recognised without asking a peer.
        let (asked, named, files) = (
            self.spec.target.clone(),
            self.spec.name.clone(),
            self.context.files_folder.clone(),
        );
        let early = move || preexisting::early_target(asked.as_deref(), named.as_deref(), &files);
        if let Some(target) = blocking(early).await? {
            reporter.set_path(&target.path);
            let label = match (&self.spec.name, &self.spec.target) {
                (Some(name), _) => Some(Label::sanitize(name)),
                // The user named the path, and no public name is known yet.
                (None, Some(_)) => Some(metadata::fallback_name(id)),
                (None, None) => None,
            };
            if preexisting::is_file_complete(&self.context, id, &target.path, label, reporter).await? {
                return Ok(None);
            }
        }
        let known = metadata::identify(&self.context, id, pool, waiting).await?;
        let mut record = known.record;
        // An earlier name stays, because the part file has that name.
        let before = Some(self.status.borrow().name.clone()).filter(|name| !name.is_empty());
        let name = match self
            .spec
            .name
            .as_ref()
            .or(before.as_ref())
            .or(known.name.as_ref())
        {
            Some(name) => Label::sanitize(name),
            None => metadata::fallback_name(id),
        };
        reporter.set_identity(name.as_str(), record.size);
        let collection =
            match metadata::claims_collection(&record) || self.kind_doubted.load(Ordering::Relaxed) {
                true => metadata::fetch_collection(&self.context, &record, pool, waiting).await?,
                false => None,
            };
        record.kind = if collection.is_some() {
            FileKind::Collection
        } else {
            FileKind::File
        };
        let manifest = collection
            .as_ref()
            .map(|collection| Arc::clone(&collection.manifest));
        let (asked, files, label) = (
            self.spec.target.clone(),
            self.context.files_folder.clone(),
            name.clone(),
        );
        let of_collection = manifest.clone();
        let target = blocking(move || {
            preexisting::resolve_target(
                id,
                asked.as_deref(),
                label.as_str(),
                &files,
                of_collection.as_deref(),
            )
        })
        .await??;
        reporter.set_path(&target.path);
        let plan = match &manifest {
            Some(manifest) => Plan::of_collection(manifest),
            None => Plan::of_file(id, record.size)
                .ok_or_else(|| Problem::new(Reason::OutOfRange, "no file is that large"))?,
        };
        let plan = Arc::new(plan);
        reporter.set_plan(record.kind, &plan);
        let there = match &manifest {
            Some(manifest) => {
                preexisting::is_folder_complete(
                    &self.context,
                    &target.path,
                    manifest,
                    Some(name.clone()),
                    reporter,
                )
                .await?
            }
            None => {
                preexisting::is_file_complete(&self.context, id, &target.path, Some(name.clone()), reporter)
                    .await?
            }
        };
        if there {
            return Ok(None);
        }
        if plan.expands() && !self.spec.allow_expansion {
            return Err(expansion_refused(&plan));
        }
        Ok(Some(PlannedDownload {
            record,
            name: name.as_str().to_owned(),
            collection,
            target,
            plan,
        }))
    }

    /// Builds the verifier and downloads the piece layers that it needs.
    pub(crate) async fn build_verifier(
        &self,
        planned: &PlannedDownload,
        reporter: &StatusReporter,
        pool: &BootstrapPool,
    ) -> Result<Arc<UnitVerifier>, Problem> {
        let waiting = |problem: Problem| reporter.set_state(DownloadState::Waiting, Some(problem));
        let checks = Arc::new(UnitVerifier::new(Arc::clone(&planned.plan)));
        metadata::fetch_layers(&self.context, &checks, &planned.plan, pool, &waiting).await?;
        reporter.set_state(DownloadState::Preparing, None);
        Ok(checks)
    }

    /// Whether a supposed plain file may be a manifest and was not examined yet.
    pub(crate) fn may_be_collection(&self, plan: &Plan) -> bool {
        plan.manifest().is_none()
            && plan.total() <= MAX_MANIFEST_SIZE
            && !self.kind_doubted.load(Ordering::Relaxed)
    }

    /// Whether the downloaded bytes of a supposed plain file are a manifest.
    pub(crate) async fn is_manifest(&self, download: &Arc<ActiveDownload>) -> Result<bool, Problem> {
        let part = Arc::clone(&download.part_file);
        if !self.may_be_collection(part.plan()) {
            return Ok(false);
        }
        blocking(move || {
            // Finalizing reports a read error.
            let Ok(file) = part.file(0) else { return false };
            let mut bytes = vec![0; MAGIC.len()];
            if file.read_exact_at(&mut bytes, 0).is_err() || bytes != MAGIC {
                return false;
            }
            bytes.resize(part.plan().total() as usize, 0);
            file.read_exact_at(&mut bytes, 0).is_ok() && Manifest::decode(bytes).is_ok()
        })
        .await
    }
}

/// The error for a collection that would write many times its distinct content.
fn expansion_refused(plan: &Plan) -> Problem {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    Problem::new(
        Reason::ExpansionRefused,
        format!(
            "the folder has {} MiB of distinct content and would write {} MiB, as many of its files are copies of each other: \
             fetch it with --allow-expansion if that is wanted",
            mib(plan.total()),
            mib(plan.written())
        ),
    )
    .field("allow_expansion")
}
