//! Compares files that are here already with what an origin states, so that they can be shared as
//! that content without downloading them.
//!
//! Invariant: a file is shared as content of an origin only if all its bytes were compared.

use std::{
    fs::{self, File},
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use potluck_core::{Problem, Reason, Sha256, files::open_regular, identity::hash};
use potluck_origins::{
    OriginClient, OriginReference, OriginSettings,
    hub::{HubCommit, HubFile, HubHash},
};

use crate::{
    context::{CommandContext, PeerHandle},
    error::CommandError,
    local_files, lookup, origin,
    output::{draw, progress::ProgressLines, text},
};

/// Redraw interval of the progress.
const REDRAW: Duration = Duration::from_millis(100);

/// Interval at which the peer is asked whether it knows the SHA-256s.
const POLL: Duration = Duration::from_millis(250);

/// Largest file that states only the SHA-1 of its Git blob, in bytes. Such files are small; larger
/// ones are in Git LFS.
const MAX_BLOB: u64 = 64 << 20;

/// Local files that are the content of an origin.
#[derive(Debug)]
pub(super) struct Binding {
    /// What they are shared as, with the commit.
    pub(super) origin: String,
    /// Absolute paths of the files to share.
    pub(super) paths: Vec<String>,
    /// Their SHA-256s.
    sums: Vec<Sha256>,
    /// Files that are here and differ.
    pub(super) differing: Vec<PathBuf>,
}

/// A local file, and what it has to be.
struct Expected {
    path: PathBuf,
    size: u64,
    hash: HubHash,
}

/// What comparing a file gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Same,
    Differs,
    Missing,
}

/// Compares a file, or the files of a folder, with what the origin states.
///
/// # Errors
/// - A usage error if the reference names a file and the path is a folder, or the other way round.
/// - [`Reason::NotFound`] if no file of the origin is here.
/// - [`Reason::OriginDenied`] if the content needs credentials and `share_gated` is not set.
/// - The origin's failure, or that of the disk.
pub(super) async fn compare(
    context: &CommandContext,
    path: &Path,
    reference: &OriginReference,
    share_gated: bool,
) -> Result<Binding, CommandError> {
    let (origin, expected) = match reference {
        OriginReference::File(url) => {
            let sha256 = url.sha256.ok_or_else(|| {
                CommandError::usage(format!("nothing states the SHA-256 of {url}"))
                    .hint("give it: https://HOST/PATH#sha256=HEX")
            })?;
            let size = local_files::size(path)?;
            let expected = Expected {
                path: path.to_owned(),
                size,
                hash: HubHash::Sha256(sha256),
            };
            (url.to_string(), vec![expected])
        }
        OriginReference::Hub(hub) => {
            let client = OriginClient::new(OriginSettings::default()).map_err(Problem::from)?;
            let (hub_client, commit) = origin::open_hub(&client, hub).await?;
            let first = commit.files.first();
            let source = first.and_then(|file| hub_client.file(&commit, file).ok());
            if !share_gated && source.is_some_and(|file| file.authorization.is_some()) {
                return Err(CommandError::new(
                    Reason::OriginDenied,
                    format!("{hub} needs credentials, so it is not shared"),
                )
                .hint("--share-gated shares it: everyone in your network can then download it"));
            }
            let prefix = hub.kind.prefix();
            let mut name = format!("hf://{prefix}{}@{}", hub.repository, commit.commit);
            if let Some(path) = &hub.path {
                name = format!("{name}/{path}");
            }
            (name, expected_files(path, hub.path.is_some(), commit)?)
        }
    };
    let total = expected.len();
    let (expected, compared) = compare_all(context, expected).await?;
    let mut binding = Binding {
        origin,
        paths: Vec::new(),
        sums: Vec::new(),
        differing: Vec::new(),
    };
    let (mut small, mut missing) = (0, 0);
    for (expected, comparison) in expected.into_iter().zip(compared) {
        match (comparison, expected.hash) {
            (Comparison::Same, HubHash::Sha256(sum)) => {
                binding
                    .paths
                    .push(local_files::absolute(&real_path(&expected.path))?);
                binding.sums.push(sum);
            }
            (Comparison::Same, HubHash::GitBlob(_)) => small += 1,
            (Comparison::Differs, _) => binding.differing.push(expected.path),
            (Comparison::Missing, _) => missing += 1,
        }
    }
    let files = |count: usize| text::count(count as u64, "file");
    if missing == total {
        let message = format!(
            "no file of {} is in {}",
            text::escape(&binding.origin),
            text::path(&path.to_string_lossy())
        );
        return Err(CommandError::new(Reason::NotFound, message));
    }
    if missing > 0 {
        context.out.note(format_args!(
            "{} of {} are not here",
            files(missing),
            files(total)
        ));
    }
    if small > 0 {
        let what = "are the same, and not shared: the hub states only their SHA-1";
        context.out.note(format_args!("{} {what}", files(small)));
    }
    Ok(binding)
}

/// Where the files of a commit would be.
fn expected_files(
    path: &Path,
    is_one: bool,
    commit: HubCommit,
) -> Result<Vec<Expected>, CommandError> {
    let metadata = fs::metadata(path).map_err(|error| CommandError::io("read", path, &error))?;
    if metadata.is_dir() == is_one {
        let shown = text::path(&path.to_string_lossy());
        let hint = "a folder is shared as hf://ORG/REPO, and a file as hf://ORG/REPO/PATH";
        let what = if is_one { "a folder" } else { "a file" };
        return Err(CommandError::usage(format!("{shown} is {what}")).hint(hint));
    }
    let at = |file: &HubFile| match is_one {
        true => path.to_owned(),
        false => path.join(&file.path),
    };
    let files = commit.files.iter().map(|file| Expected {
        path: at(file),
        size: file.size,
        hash: file.hash,
    });
    Ok(files.collect())
}

/// The path without a link as its last component, as in the cache of `huggingface_hub`.
fn real_path(path: &Path) -> PathBuf {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_symlink() => {
            path.canonicalize().unwrap_or_else(|_| path.to_owned())
        }
        _ => path.to_owned(),
    }
}

/// Compares all files, and shows the progress.
async fn compare_all(
    context: &CommandContext,
    expected: Vec<Expected>,
) -> Result<(Vec<Expected>, Vec<Comparison>), CommandError> {
    let total = expected.iter().map(|file| file.size).sum();
    let done = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let (counter, stopped) = (Arc::clone(&done), Arc::clone(&stop));
    let mut work = tokio::task::spawn_blocking(move || {
        let on_progress = |bytes: u64| {
            counter.fetch_add(bytes, Ordering::Relaxed);
            match stopped.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let compared = expected.iter().map(|file| {
            compare_one(file, &on_progress)
                .map_err(|error| CommandError::io("read", &file.path, &error))
        });
        let compared = compared.collect::<Result<Vec<_>, _>>()?;
        Ok((expected, compared))
    });
    let (began, mut lines) = (Instant::now(), ProgressLines::new(context.out.bars()));
    let mut redraw = tokio::time::interval(REDRAW);
    loop {
        tokio::select! {
            result = &mut work => {
                return result.map_err(|error| {
                    CommandError::new(Reason::Internal, error.to_string())
                })?;
            }
            // The work ends soon, with an error.
            () = context.stop.cancelled() => {
                stop.store(true, Ordering::Relaxed);
                return Err(CommandError::interrupted("interrupted"));
            }
            _ = redraw.tick() => {
                let done = done.load(Ordering::Relaxed);
                lines.show(|width| {
                    vec![draw::work_line("comparing", "", done, total, began.elapsed(), width)]
                });
            }
        }
    }
}

fn compare_one(
    expected: &Expected,
    on_progress: &(dyn Fn(u64) -> ControlFlow<()> + Sync),
) -> io::Result<Comparison> {
    let file = match open_regular(&expected.path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Comparison::Missing),
        Err(error) => return Err(error),
    };
    if file.metadata()?.len() != expected.size {
        return Ok(Comparison::Differs);
    }
    let is_same = match expected.hash {
        HubHash::Sha256(sum) => hash::sha256_file(&file, on_progress)? == sum,
        HubHash::GitBlob(_) if expected.size > MAX_BLOB => false,
        HubHash::GitBlob(_) => expected.hash.matches(&read_all(&file, expected.size)?),
    };
    Ok(if is_same {
        Comparison::Same
    } else {
        Comparison::Differs
    })
}

fn read_all(file: &File, size: u64) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    file.take(size).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Binding {
    /// Waits until the peer knows the SHA-256s itself; only then others find the files by them.
    /// False after `wait`.
    ///
    /// # Errors
    /// The peer's failure.
    pub(super) async fn await_sums(
        &self,
        peer: &PeerHandle,
        wait: Duration,
    ) -> Result<bool, CommandError> {
        let end = Instant::now() + wait;
        loop {
            let is_bound = |item: &crate::control::model::Item| {
                item.record.sha256.is_some_and(|sum| self.sums.contains(&sum))
            };
            let known = lookup::find_items(&peer.control, is_bound).await?;
            let is_known = |sum: &Sha256| known.iter().any(|item| item.record.sha256 == Some(*sum));
            if self.sums.iter().all(is_known) {
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
