//! Downloads a URL of which nothing states the SHA-256.
//!
//! Which bytes are right is then only what the server sends to this machine: other peers are neither
//! asked nor told about the URL. The finished file is shared by its id like any other. A download goes
//! on only if URL, strong validator and size are the same.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read as _, Write as _},
    path::{Path, PathBuf},
    pin::pin,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use potluck_core::{Reason, collection::path::Label, durable, model::FileKind};
use potluck_origins::{OriginClient, OriginFile, OriginSettings, reference::FileUrl};
use potluck_peer::library::ShareOptions;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{
    arguments::seed::Seed,
    commands::get::{args::GetArgs, stream::OriginStream},
    context::{CommandContext, PeerHandle},
    control::model::{Item, ShareEvent},
    error::CommandError,
    local_files, origin,
    output::{draw, progress::ProgressLines, text},
};

/// Interval of progress.
const PROGRESS: Duration = Duration::from_millis(200);

/// Bytes that are read at a time.
const BUFFER: usize = 256 * 1024;

/// The parts of a download on the disk.
struct Paths {
    target: PathBuf,
    part: PathBuf,
    state: PathBuf,
}

/// What the bytes of a part belong to.
fn identity(url: &FileUrl, file: &OriginFile) -> String {
    json!({"url": url.url.as_str(), "validator": file.validator, "size": file.size}).to_string()
}

/// Downloads the file from its origin alone.
///
/// # Errors
/// The origin's failure, or that of the disk; [`Reason::TargetExists`] if something is at the target.
pub(super) async fn run(
    context: &CommandContext,
    running: Option<PeerHandle>,
    args: &GetArgs,
    url: &FileUrl,
    to_stdout: bool,
) -> Result<(), CommandError> {
    let client =
        OriginClient::new(OriginSettings::default()).map_err(potluck_core::Problem::from)?;
    let file = context.stoppable(origin::look_up_unhashed(&client, url)).await?;
    context.out.note(format_args!(
        "nothing states the SHA-256 of {url}: it comes from {} alone, and is what that sends",
        text::escape(&file.host())
    ));
    if to_stdout {
        return context.stoppable(write_out(context, client, &file)).await;
    }
    let paths = paths(running.as_ref(), args, url)?;
    let start = Instant::now();
    let (sha256, resumed) = download(context, client, url, &file, &paths).await?;
    let seconds = start.elapsed().as_secs_f64();
    let may_be_shared =
        args.seed != Some(Seed::No) && (args.share_gated || file.authorization.is_none());
    let item = match &running {
        Some(peer) if may_be_shared => share(context, peer, &paths.target).await,
        _ => None,
    };
    let id = match &item {
        Some(item) => item.record.id,
        None => {
            let options = ShareOptions::default();
            local_files::hash(context, &paths.target, &options)
                .await?
                .record
                .id
        }
    };
    let size = file.size;
    if context.out.is_json() {
        context.out.print_object(&json!({
            "event": "done",
            "id": id,
            "kind": FileKind::File,
            "name": paths.target.file_name().map(|name| name.to_string_lossy()),
            "path": paths.target,
            "size": size,
            "sha256": sha256,
            // Nothing but the server says that these are the right bytes.
            "is_vouched_for": false,
            "seconds": (seconds * 1000.0).round() / 1000.0,
            "resumed_bytes": resumed,
            "sources": [{
                "peer": null,
                "origin": url.to_string(),
                "address": file.host(),
                "bytes": size - resumed,
                "state": "idle",
                "reason": null,
            }],
        }))?;
        return Ok(());
    }
    context.out.print_line(format_args!(
        "saved  {}",
        text::path(&paths.target.to_string_lossy())
    ))?;
    context
        .out
        .note(format_args!("  {}, sha256 {sha256}", text::size(size)));
    Ok(())
}

/// Where the file goes.
fn paths(
    running: Option<&PeerHandle>,
    args: &GetArgs,
    url: &FileUrl,
) -> Result<Paths, CommandError> {
    let name = url.file_name().unwrap_or_else(|| "download".to_owned());
    let name = Label::sanitize(&name);
    let name = match name.as_str().strip_prefix(['.', '-']) {
        Some(rest) => format!("_{rest}"),
        None => name.as_str().to_owned(),
    };
    let folder = running.map(|peer| PathBuf::from(&peer.status.files_folder));
    let target = match (&args.output, folder) {
        (Some(output), _) => {
            let target = PathBuf::from(local_files::absolute(output)?);
            match target.is_dir() || output.as_os_str().as_encoded_bytes().ends_with(b"/") {
                true => target.join(name),
                false => target,
            }
        }
        (None, Some(folder)) => folder.join(name),
        (None, None) => PathBuf::from(local_files::absolute(Path::new(&name))?),
    };
    if target.symlink_metadata().is_ok() {
        return Err(exists(&target));
    }
    let with_end = |end: &str| {
        let mut path = target.clone().into_os_string();
        path.push(end);
        PathBuf::from(path)
    };
    Ok(Paths {
        part: with_end(".url.part"),
        state: with_end(".url.part.state"),
        target,
    })
}

fn exists(target: &Path) -> CommandError {
    let message = format!(
        "{} is there already, and nothing states a SHA-256 to compare it with",
        text::path(&target.to_string_lossy())
    );
    CommandError::new(Reason::TargetExists, message)
        .hint("move it away, give another -o PATH, or give #sha256=HEX")
}

/// Downloads into the part, and gives it its name. Returns the SHA-256 and the bytes that were there.
async fn download(
    context: &CommandContext,
    client: OriginClient,
    url: &FileUrl,
    file: &OriginFile,
    paths: &Paths,
) -> Result<(potluck_core::Sha256, u64), CommandError> {
    let failed = |error: io::Error| CommandError::io("write", &paths.part, &error);
    if let Some(folder) = paths.target.parent() {
        durable::create_folders(folder, 0o777).map_err(failed)?;
    }
    let identity = identity(url, file);
    let is_same = file.validator.is_some()
        && fs::read_to_string(&paths.state).is_ok_and(|state| state == identity);
    let mut part = open_part(&paths.part, is_same).map_err(failed)?;
    durable::write(&paths.state, identity.as_bytes(), 0o600).map_err(failed)?;
    let resumed = part.metadata().map_err(failed)?.len().min(file.size);
    let mut sum = Sha256::new();
    hash_part(&mut part, &mut sum).map_err(failed)?;
    let mut stream = OriginStream::new(client, file, resumed);
    let (began, mut shown, mut done) = (Instant::now(), Instant::now(), resumed);
    let mut lines = ProgressLines::new(context.out.bars());
    loop {
        let next = tokio::select! {
            next = stream.next() => next?,
            // What was received and not written is fetched again.
            () = context.stop.cancelled() => {
                part.sync_all().map_err(failed)?;
                return Err(CommandError::interrupted("interrupted").hint(format!(
                    "{} are kept: the same command goes on",
                    text::size(done)
                )));
            }
        };
        let Some(bytes) = next else { break };
        part.write_all(&bytes).map_err(failed)?;
        sum.update(&bytes);
        done += bytes.len() as u64;
        if shown.elapsed() >= PROGRESS {
            shown = Instant::now();
            let rate = (done - resumed) as f64 / began.elapsed().as_secs_f64().max(0.001);
            if context.out.is_json() {
                context.out.print_object(&json!({
                    "event": "progress",
                    "bytes": done,
                    "total": file.size,
                    "unverified_bytes": 0,
                    "bytes_per_second": rate as u64,
                    "peers": 0,
                }))?;
            }
            lines.show(|width| {
                vec![draw::work_line(
                    "from the origin",
                    "",
                    done,
                    file.size,
                    began.elapsed(),
                    width,
                )]
            });
        }
    }
    part.sync_all().map_err(failed)?;
    // Never replaces a file.
    fs::hard_link(&paths.part, &paths.target).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => exists(&paths.target),
        _ => CommandError::io("write", &paths.target, &error),
    })?;
    for path in [&paths.part, &paths.state] {
        fs::remove_file(path).map_err(failed)?;
    }
    if let Some(folder) = paths.target.parent() {
        durable::sync_folder(folder).map_err(failed)?;
    }
    Ok((potluck_core::Sha256(sum.finalize().into()), resumed))
}

/// Opens the part for reading and appending; empties it unless it belongs to the same content.
fn open_part(path: &Path, is_same: bool) -> io::Result<File> {
    // A link would lead elsewhere.
    if path.symlink_metadata().is_ok_and(|metadata| !metadata.is_file()) {
        return Err(ErrorKind::InvalidInput.into());
    }
    let part = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .open(path)?;
    if !is_same {
        part.set_len(0)?;
    }
    Ok(part)
}

/// Hashes what is there already.
fn hash_part(part: &mut File, sum: &mut Sha256) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match part.read(&mut buffer)? {
            0 => return Ok(()),
            len => sum.update(&buffer[..len]),
        }
    }
}

/// Shares the finished file by its id.
async fn share(context: &CommandContext, peer: &PeerHandle, target: &Path) -> Option<Item> {
    let path = target.to_string_lossy().into_owned();
    let shared = peer.control.share(vec![path], ShareOptions::default(), 0).await;
    let mut events = pin!(shared.ok()?);
    while let Some(event) = events.next().await {
        match event {
            Ok(ShareEvent::Shared(item)) => return Some(item),
            Ok(ShareEvent::Failed { problem, .. }) | Err(problem) => {
                let why = text::escape(&problem.message);
                context
                    .out
                    .warn(format_args!("downloaded, but it is not shared: {why}"));
                return None;
            }
            Ok(_) => {}
        }
    }
    None
}

/// Writes the bytes to standard output as they come.
async fn write_out(
    context: &CommandContext,
    client: OriginClient,
    file: &OriginFile,
) -> Result<(), CommandError> {
    let mut stream = OriginStream::new(client, file, 0);
    let mut out = io::stdout();
    while let Some(bytes) = stream.next().await? {
        out.write_all(&bytes).map_err(write_error)?;
    }
    out.flush().map_err(write_error)?;
    context
        .out
        .note(format_args!("{}, not verified", text::size(file.size)));
    Ok(())
}

pub(super) fn write_error(error: io::Error) -> CommandError {
    match error.kind() {
        ErrorKind::BrokenPipe => CommandError::BrokenPipe,
        _ => CommandError::new(
            Reason::of_exhaustion(&error).unwrap_or(Reason::Internal),
            format!("cannot write to standard output: {error}"),
        ),
    }
}
