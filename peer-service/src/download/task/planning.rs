//! What a run has to know before its part is opened: what is fetched, where to, and what its units are checked against.
//!
//! That something is a folder is believed once its bytes are a manifest. That it is a plain file is believed until somebody counts its units
//! otherwise, or its own bytes turn out to be one: then it is looked at, once.

use std::{
    os::unix::fs::FileExt as _,
    sync::{Arc, atomic::Ordering},
};

use potluck_core::{
    Problem, Reason,
    collection::{
        manifest::{MAGIC, MAX_MANIFEST_SIZE, Manifest},
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

/// What is fetched, and where to.
#[derive(Debug)]
pub(crate) struct PlannedDownload {
    pub(crate) record: FileRecord,
    pub(crate) name: String,
    pub(crate) collection: Option<CollectionManifest>,
    pub(crate) target: DownloadTarget,
    pub(crate) plan: Arc<Plan>,
}

impl DownloadRun {
    /// What is to be known of it; `None` where the file is at the target already.
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
        // What is there already needs nobody's help to be recognised.
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
                // Its owner named the path, and nobody said what others call it.
                (None, Some(_)) => Some(metadata::fallback_name(id)),
                (None, None) => None,
            };
            if preexisting::is_file_complete(&self.context, id, &target.path, label, reporter).await? {
                return Ok(None);
            }
        }
        let known = metadata::identify(&self.context, id, pool, waiting).await?;
        let mut record = known.record;
        // A name that was used before stays: others may call it otherwise, and what was fetched lies under that one.
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

    /// What its units are checked against.
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

    /// Whether what is taken for a plain file could be a folder's manifest, and nobody looked yet.
    pub(crate) fn may_be_collection(&self, plan: &Plan) -> bool {
        plan.manifest().is_none()
            && plan.total() <= MAX_MANIFEST_SIZE
            && !self.kind_doubted.load(Ordering::Relaxed)
    }

    /// Whether what was fetched as a plain file is a folder's manifest after all.
    pub(crate) async fn is_manifest(&self, download: &Arc<ActiveDownload>) -> Result<bool, Problem> {
        let part = Arc::clone(&download.part_file);
        if !self.may_be_collection(part.plan()) {
            return Ok(false);
        }
        blocking(move || {
            // What cannot be read is told of when it is given its name.
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

/// Why a collection is not fetched that would write many times its distinct content.
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
