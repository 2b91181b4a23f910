//! Determines the content of a run, its target, and the verification of its units, before the part
//! file is opened.
//!
//! Content counts as a collection only if its bytes decode as a manifest. Content counts as a plain
//! file until a peer reports a different number of units or the downloaded bytes are a manifest;
//! then the bytes are examined once.

use std::{os::unix::fs::FileExt as _, path::Path, sync::Arc};

use potluck_core::{
    Problem, Reason,
    bitfield::Bitfield,
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
        engine::verifier::UnitVerifier,
        peers::bootstrap::BootstrapPool,
        selection::{self, Chosen},
        status::DownloadState,
        storage::{
            part_file::PartFile,
            target::{self, DownloadTarget},
        },
        task::{
            metadata::{self, CollectionManifest, FileMetadata},
            piece_layers,
            preexisting::{self, FolderState},
            run_context::RunContext,
        },
    },
    fs::blocking::blocking,
};

/// The content that a run downloads, and its target.
#[derive(Debug)]
pub(crate) struct PlannedDownload {
    pub(crate) record: FileRecord,
    pub(crate) name: String,
    pub(crate) collection: Option<CollectionManifest>,
    /// The entries of the collection that the run downloads: all, or some.
    pub(crate) entries: Option<Arc<Manifest>>,
    pub(crate) target: DownloadTarget,
    pub(crate) plan: Arc<Plan>,
}

/// Collects what the run needs to know; `None` if the content is already at the target. If
/// `kind_doubted`, examines the bytes of a supposed plain file.
///
/// # Errors
/// If the target cannot be used, or something else is there.
pub(crate) async fn plan(
    context: &RunContext,
    pool: &BootstrapPool,
    kind_doubted: bool,
) -> Result<Option<PlannedDownload>, Problem> {
    let RunContext {
        peer, spec, reporter, ..
    } = context;
    let waiting = |problem: Problem| context.show_waiting(problem);
    if let Some(path) = &spec.target {
        target::check_target(path)?;
    }
    if spec.filter.is_empty() && is_early_target_complete(context).await? {
        return Ok(None);
    }
    let known = match spec.provisional_origin() {
        Some(origin) => FileMetadata {
            record: FileRecord::provisional(origin.size, origin.sha256),
            name: None,
        },
        None => metadata::identify(peer, spec.id, pool, waiting).await?,
    };
    let mut record = known.record;
    // An earlier name stays, because the part file has that name.
    let earlier =
        Some(context.channels.status.borrow().name.clone()).filter(|name| !name.is_empty());
    let name = match spec.name.as_ref().or(earlier.as_ref()).or(known.name.as_ref()) {
        Some(name) => Label::sanitize(name),
        None => metadata::fallback_name(spec.id),
    };
    reporter.set_identity(name.as_str(), record.size);
    let is_provisional = record.is_provisional();
    let must_examine = !is_provisional && (kind_doubted || !spec.filter.is_empty());
    let collection = match metadata::claims_collection(&record) || must_examine {
        true => metadata::fetch_collection(peer, &record, pool, waiting).await?,
        false => None,
    };
    record.kind = match &collection {
        Some(_) => FileKind::Collection,
        None if record.is_provisional() => FileKind::Provisional,
        None => FileKind::File,
    };
    let manifest = collection
        .as_ref()
        .map(|collection| Arc::clone(&collection.manifest));
    if manifest.is_none() && !spec.filter.is_empty() {
        return Err(not_a_folder(name.as_str()));
    }
    let target = resolve_target(context, &name, manifest.clone()).await?;
    reporter.set_path(&target.path);
    let label = Some(name.clone());
    let (plan, entries) = match &manifest {
        Some(manifest) => match plan_collection(context, &target.path, manifest, label).await? {
            Some((plan, entries)) => (plan, Some(entries)),
            None => return Ok(None),
        },
        None => {
            let plan = Plan::of_file(spec.id, record.size)
                .ok_or_else(|| Problem::new(Reason::OutOfRange, "no file is that large"))?;
            reporter.set_plan(record.kind, &plan, 0);
            if preexisting::is_file_complete(
                peer,
                spec,
                &target.path,
                label,
                context.shares(),
                reporter,
            )
            .await?
            {
                return Ok(None);
            }
            (plan, None)
        }
    };
    let plan = Arc::new(plan);
    if plan.expands() && !spec.allow_expansion {
        return Err(expansion_refused(&plan));
    }
    Ok(Some(PlannedDownload {
        record,
        name: name.as_str().to_owned(),
        collection,
        entries,
        target,
        plan,
    }))
}

/// The plan of a collection, and the entries to download; `None` if the chosen ones are at the
/// target.
async fn plan_collection(
    context: &RunContext,
    path: &Path,
    manifest: &Arc<Manifest>,
    label: Option<Label>,
) -> Result<Option<(Plan, Arc<Manifest>)>, Problem> {
    let RunContext {
        peer, spec, reporter, ..
    } = context;
    let chosen = match spec.filter.is_empty() {
        true => Chosen::all(manifest),
        false => {
            let (filter, all) = (spec.filter.clone(), Arc::clone(manifest));
            let chosen = blocking(move || filter.choose(&all)).await??;
            reporter.set_chosen_files(chosen.files, manifest.file_count());
            chosen
        }
    };
    reporter.set_plan(FileKind::Collection, &Plan::of_collection(manifest), 0);
    let found = preexisting::examine_folder(
        peer,
        path,
        manifest,
        &chosen,
        label,
        context.shares(),
        reporter,
    )
    .await?;
    let existing = match found {
        FolderState::Complete => return Ok(None),
        FolderState::Incomplete(existing) => existing,
        FolderState::Absent => Bitfield::new(chosen.entries.len()),
    };
    let existing_bytes = existing
        .ones()
        .map(|entry| preexisting::size_of(manifest, entry))
        .sum();
    let mut missing = chosen.entries;
    for entry in existing.ones() {
        missing.set(entry, false);
    }
    let all = Arc::clone(manifest);
    let (plan, entries) = blocking(move || plan_entries(&all, &missing)).await??;
    reporter.set_plan(FileKind::Collection, &plan, existing_bytes);
    Ok(Some((plan, entries)))
}

/// The plan that downloads only these entries, and their manifest.
fn plan_entries(
    manifest: &Arc<Manifest>,
    entries: &Bitfield,
) -> Result<(Plan, Arc<Manifest>), Problem> {
    let plan = Plan::of_collection(manifest);
    if entries.is_full() {
        return Ok((plan, Arc::clone(manifest)));
    }
    let entries = selection::manifest_of(manifest, entries)?;
    // Fits: a manifest has at most 2^20 entries.
    let mut left_out = Bitfield::new(plan.file_count() as u32);
    for (file, planned) in (0..).zip(plan.files()) {
        left_out.set(file, entries.with_id(&planned.id).is_empty());
    }
    let plan = plan.without(left_out, entries.content_size());
    Ok((plan, Arc::new(entries)))
}

/// The error for globs with a plain file.
fn not_a_folder(name: &str) -> Problem {
    Problem::new(
        Reason::InvalidArgument,
        format!("{name} is a file, not a folder: get it without --include and --exclude"),
    )
    .field("include")
}

/// Whether the content is at a target that follows from the request alone. No peer is needed for
/// that.
async fn is_early_target_complete(context: &RunContext) -> Result<bool, Problem> {
    let RunContext {
        peer, spec, reporter, ..
    } = context;
    let (target, name, files) = (spec.target.clone(), spec.name.clone(), peer.files_folder.clone());
    let find = move || preexisting::early_target(target.as_deref(), name.as_deref(), &files);
    let Some(target) = blocking(find).await? else {
        return Ok(false);
    };
    reporter.set_path(&target.path);
    let label = match (&spec.name, &spec.target) {
        (Some(name), _) => Some(Label::sanitize(name)),
        // The user named the path, and no public name is known yet.
        (None, Some(_)) => Some(metadata::fallback_name(spec.id)),
        (None, None) => None,
    };
    preexisting::is_file_complete(peer, spec, &target.path, label, context.shares(), reporter).await
}

async fn resolve_target(
    context: &RunContext,
    name: &Label,
    manifest: Option<Arc<Manifest>>,
) -> Result<DownloadTarget, Problem> {
    let (id, requested) = (context.spec.id, context.spec.target.clone());
    let (files, name) = (context.peer.files_folder.clone(), name.clone());
    blocking(move || {
        preexisting::resolve_target(
            id,
            requested.as_deref(),
            name.as_str(),
            &files,
            manifest.as_deref(),
        )
    })
    .await?
}

/// Builds the verifier and downloads the piece layers that it needs.
///
/// # Errors
/// As [`piece_layers::fetch`].
pub(crate) async fn build_verifier(
    context: &RunContext,
    planned: &PlannedDownload,
    pool: &BootstrapPool,
) -> Result<Arc<UnitVerifier>, Problem> {
    let waiting = |problem: Problem| context.show_waiting(problem);
    let verifier = Arc::new(UnitVerifier::new(Arc::clone(&planned.plan)));
    if planned.record.is_provisional() {
        return Ok(verifier);
    }
    piece_layers::fetch(&context.peer, planned.record.id, &verifier, pool, &waiting).await?;
    context.reporter.set_state(DownloadState::Preparing, None);
    Ok(verifier)
}

/// Whether the supposed plain file of this plan may be a manifest.
pub(crate) fn may_be_manifest(plan: &Plan) -> bool {
    plan.manifest().is_none() && plan.total() <= MAX_MANIFEST_SIZE
}

/// Whether the downloaded bytes of a supposed plain file are a manifest.
///
/// # Errors
/// Only if this process is ending.
pub(crate) async fn is_manifest(part_file: &Arc<PartFile>) -> Result<bool, Problem> {
    let part = Arc::clone(part_file);
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

/// The error for a collection that would write many times its distinct content.
fn expansion_refused(plan: &Plan) -> Problem {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    Problem::new(
        Reason::ExpansionRefused,
        format!(
            "the folder has {} MiB of distinct content and would write {} MiB, because many of its \
             files are copies of each other: to download it nevertheless, give --allow-expansion",
            mib(plan.total()),
            mib(plan.written())
        ),
    )
    .field("allow_expansion")
}
