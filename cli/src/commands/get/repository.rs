//! Downloads a repository of a hub, or some of its files, into a folder.
//!
//! Files in Git LFS come from all peers and the hub. Small files state only the SHA-1 of their Git
//! blob, which strangers could forge, so they come from the hub alone.
//!
//! Invariants: nothing is overwritten; no path leads out of the folder, not even through a link.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Instant,
};

use futures_util::{StreamExt as _, stream};
use potluck_core::{Problem, Reason, collection::path::RelPath, durable};
use potluck_origins::{
    OriginClient, OriginSettings,
    client::MAX_DOCUMENT,
    hub::{HubClient, HubCommit, HubFile, HubHash},
    reference::HubReference,
};
use potluck_peer::download::selection::PathFilter;

use crate::{
    arguments::file_query::FileQuery,
    commands::get::{args::GetArgs, one, resolve},
    context::{CommandContext, PeerHandle},
    download::{ReportDetail, TransferBoard, report, seed},
    error::CommandError,
    local_files,
    origin::{self, OriginContent},
    output::text,
};

/// Downloads at once, as for several arguments.
const MAX_DOWNLOADS: usize = 16;

/// A repository, and where its files go.
struct Repository<'a> {
    client: OriginClient,
    hub: HubClient,
    commit: &'a HubCommit,
    folder: PathBuf,
}

/// Downloads the chosen files of a repository.
///
/// # Errors
/// The hub's failure; the first failure of a file, after the others were downloaded.
pub(crate) async fn run(
    context: &CommandContext,
    running: Option<PeerHandle>,
    args: &GetArgs,
    reference: &HubReference,
) -> Result<(), CommandError> {
    let client = OriginClient::new(OriginSettings::default()).map_err(Problem::from)?;
    let opened = origin::open_hub(&client, reference);
    let (hub, mut commit) = context.stoppable(opened).await?;
    choose(&mut commit, args)?;
    let folder = folder(args, reference)?;
    durable::create_folders(&folder, 0o777)
        .map_err(|error| CommandError::io("create the folder", &folder, &error))?;
    context.out.note(format_args!(
        "{reference} is at commit {}: {} in {}",
        &commit.commit[..12],
        text::count(commit.files.len() as u64, "file"),
        text::path(&folder.to_string_lossy()),
    ));
    let peer = match running {
        Some(peer) => peer,
        None => {
            context
                .stoppable(context.start_peer(args.listen, args.plaintext))
                .await?
        }
    };
    let repository = Repository {
        client,
        hub,
        commit: &commit,
        folder,
    };
    let done = repository.download(context, &peer, args).await;
    peer.close().await;
    done
}

/// Keeps the files that `--include` and `--exclude` choose.
fn choose(commit: &mut HubCommit, args: &GetArgs) -> Result<(), CommandError> {
    let filter = PathFilter::new(args.include.clone(), args.exclude.clone())?;
    let paths: Vec<&str> = commit.files.iter().map(|file| &*file.path).collect();
    let mut chosen = filter.choose_paths(&paths)?.into_iter();
    commit.files.retain(|_| chosen.next().unwrap_or(false));
    match commit.files.is_empty() {
        true => Err(CommandError::new(
            Reason::NotFound,
            "no file of the repository is chosen",
        )),
        false => Ok(()),
    }
}

/// `--output`, or a folder with the name of the repository.
fn folder(args: &GetArgs, reference: &HubReference) -> Result<PathBuf, CommandError> {
    let name = reference.repository.rsplit('/').next().unwrap_or_default();
    let folder = match &args.output {
        Some(output) => output.clone(),
        None => PathBuf::from(name),
    };
    Ok(PathBuf::from(local_files::absolute(&folder)?))
}

impl Repository<'_> {
    async fn download(
        &self,
        context: &CommandContext,
        peer: &PeerHandle,
        args: &GetArgs,
    ) -> Result<(), CommandError> {
        let start = Instant::now();
        let (large, small): (Vec<&HubFile>, Vec<&HubFile>) = self
            .commit
            .files
            .iter()
            .partition(|file| matches!(file.hash, HubHash::Sha256(_)) && file.size > 0);
        let small = stream::iter(small).map(|file| self.fetch_small(file));
        let small = small.buffer_unordered(MAX_DOWNLOADS).collect::<Vec<_>>();
        let small = context.stoppable(async { Ok(small.await) }).await?;
        let board = TransferBoard::new(context.out.bars(), large.len());
        let large = large.into_iter().enumerate().map(async |(row, file)| {
            let mut display = board.row(row);
            let (query, candidates) = self.candidates(context, peer, args, file).await?;
            let done = one::download(&mut display, context, peer, args, &query, candidates).await?;
            report(context, &done, args.detach, ReportDetail::Brief)?;
            Ok::<_, CommandError>(done)
        });
        let large: Vec<_> = stream::iter(large)
            .buffer_unordered(MAX_DOWNLOADS)
            .collect()
            .await;
        drop(board);
        let mut bytes = 0;
        let mut failed = None;
        let mut files = 0_u64;
        for written in small {
            match written {
                Ok(size) => (bytes, files) = (bytes + size, files + 1),
                Err(error) => _ = failed.get_or_insert(error),
            }
        }
        for transfer in large {
            match transfer {
                Ok(transfer) => {
                    (bytes, files) = (bytes + transfer.done, files + 1);
                    seed(context, peer, &transfer).await;
                }
                Err(error) => _ = failed.get_or_insert(error),
            }
        }
        context.out.note(format_args!(
            "{files} of {} done, {} in {}",
            text::count(self.commit.files.len() as u64, "file"),
            text::size(bytes),
            text::duration(start.elapsed()),
        ));
        failed.map_or(Ok(()), Err)
    }

    /// What to try for a file in Git LFS.
    async fn candidates(
        &self,
        context: &CommandContext,
        peer: &PeerHandle,
        args: &GetArgs,
        file: &HubFile,
    ) -> Result<(FileQuery, Vec<resolve::FileCandidate>), CommandError> {
        let target = self.target(file)?;
        let source = self.hub.file(self.commit, file).map_err(Problem::from)?;
        let HubHash::Sha256(sha256) = file.hash else {
            return Err(CommandError::new(
                Reason::Internal,
                "a small file is not for peers",
            ));
        };
        let content = OriginContent {
            file: source.into(),
            sha256,
            name: file.path.rsplit('/').next().map(ToOwned::to_owned),
        };
        let mut candidates = resolve::with_origin(context, Some(peer), args, content).await;
        for candidate in &mut candidates {
            candidate.target = Some(target.clone());
        }
        Ok((FileQuery::Sha256(sha256), candidates))
    }

    /// Downloads a small file from the hub, unless it is there already. Returns its size.
    async fn fetch_small(&self, file: &HubFile) -> Result<u64, CommandError> {
        let target = self.target(file)?;
        match fs::read(&target) {
            Ok(bytes) if file.hash.matches(&bytes) => return Ok(file.size),
            Ok(_) => return Err(exists(&target)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(CommandError::io("read", &target, &error)),
        }
        if file.size > MAX_DOCUMENT as u64 {
            let message = format!("{} is too large for a file without a SHA-256", file.path);
            return Err(CommandError::new(Reason::OriginInvalid, message));
        }
        let bytes = self.read(file).await?;
        if !file.hash.matches(&bytes) {
            let message = format!("the hub sends other bytes for {} than it states", file.path);
            return Err(CommandError::new(Reason::VerificationFailed, message));
        }
        durable::create(&target, &bytes, 0o666).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => exists(&target),
            _ => CommandError::io("write", &target, &error),
        })?;
        Ok(file.size)
    }

    async fn read(&self, file: &HubFile) -> Result<Vec<u8>, Problem> {
        if file.size == 0 {
            return Ok(Vec::new());
        }
        let source = self.hub.file(self.commit, file)?;
        let mut body = self.client.open(&source, 0..file.size).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = body.next().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// The path of a file, whose folders exist and are not links.
    fn target(&self, file: &HubFile) -> Result<PathBuf, CommandError> {
        let path = RelPath::parse(&file.path).map_err(|error| {
            CommandError::new(Reason::UnsafePath, format!("{}: {error}", file.path))
        })?;
        let mut folder = self.folder.clone();
        for component in path.parent().into_iter().flat_map(|parent| parent.split('/')) {
            folder.push(component);
            match fs::symlink_metadata(&folder) {
                Ok(metadata) if metadata.is_dir() => {}
                Ok(_) => return Err(exists(&folder)),
                Err(_) => durable::create_folders(&folder, 0o777)
                    .map_err(|error| CommandError::io("create the folder", &folder, &error))?,
            }
        }
        Ok(folder.join(path.file_name()))
    }
}

fn exists(path: &Path) -> CommandError {
    let message = format!("{} is there already and is something else", path.display());
    CommandError::new(Reason::TargetExists, message).hint("move it away, or give another -o FOLDER")
}
