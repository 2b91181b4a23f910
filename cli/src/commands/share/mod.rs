//! `potluck share`: shares files and folders in place. Without a running peer, serves them until
//! the command is stopped.

mod binding;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::pin,
    time::{Duration, Instant},
};

use clap::{Args, builder::FalseyValueParser};
use console::style;
use futures_util::StreamExt as _;
use potluck_core::{FileId, Reason, grpc::transport::parse_listen, units::parse_duration};
use potluck_origins::OriginReference;
use potluck_peer::library::ShareOptions;
use serde_json::json;

use self::binding::Binding;
use crate::{
    arguments::folder_options::FolderOptions,
    context::{CommandContext, PeerHandle},
    control::model::{FolderOmissions, Item, Registration, ShareEvent, Status},
    error::{CommandError, ExitStatus},
    local_files,
    output::{
        draw,
        ids::IdFormat,
        progress::{POLL_INTERVAL, ProgressLines},
        text,
    },
    views::{
        library_items,
        omissions::{self, MAX_NAMED},
    },
};

/// Default wait for the index. Several hundred thousand files take less on a local network.
const DEFAULT_WAIT: &str = "30s";

const EXAMPLES: &str = "\
Examples:
  potluck share model.bin              share a file where it is, without a copy
  potluck share ~/photos notes.txt     share a folder as one item, and a file
  potluck share --exclude target/ src  leave out what matches a pattern
  potluck share --links follow venv    also what links lead to, outside of it
  potluck share --listen 0.0.0.0:12349 model.bin
                                       also for others in a private network
  potluck share ./repo --as hf://ORG/REPO
                                       as the content of a repository, which is
                                       here already: compares it, then `get
                                       hf://ORG/REPO` elsewhere finds it

A running peer (`potluck peer`) takes over the files, and the command returns.
Without one, the command serves them itself until Ctrl-C. Others download them
with `potluck get ID` or `potluck get NAME`.";

/// Share files and folders in place
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ShareArgs {
    /// Files and folders
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,

    #[command(flatten)]
    options: FolderOptions,

    /// Share the file or folder as this content of an origin, after comparing the hashes: hf://ORG/REPO
    /// or hf://ORG/REPO/PATH, with @REVISION after REPO if it is not `main`, or
    /// https://HOST/PATH#sha256=HEX
    #[arg(long = "as", value_name = "ORIGIN", conflicts_with_all = ["links", "exclude", "strict"])]
    origin: Option<OriginReference>,

    /// With --as: share content that needs credentials. Everyone with access to this network can then
    /// download it
    #[arg(long, requires = "origin")]
    share_gated: bool,

    /// Address to serve from, if no peer is running [default: 127.0.0.1:12349, or a free port]
    #[arg(long, value_name = "ADDRESS", value_parser = parse_listen)]
    listen: Option<SocketAddr>,

    /// Let --listen serve other machines without encryption: anyone who reaches this machine can
    /// download what it shares
    #[arg(
        long,
        env = "POTLUCK_PEER_PLAINTEXT",
        hide_env_values = true,
        value_parser = FalseyValueParser::new()
    )]
    plaintext: bool,

    /// How long to wait until the index has registered the files
    #[arg(long, value_name = "TIME", default_value = DEFAULT_WAIT, value_parser = parse_duration)]
    wait: Duration,
}

/// Results over all paths.
#[derive(Debug, Default)]
struct ShareTally {
    shared: u64,
    /// Id of the first shared item.
    first_id: Option<FileId>,
    /// Shared items whose JSON output waits for the registration result, with what is left out.
    items: Vec<(Item, FolderOmissions)>,
    failed: u64,
    /// Failures that were not printed.
    unprinted: u64,
    /// Exit code of the first failure.
    first: Option<ExitStatus>,
}

/// Shares the paths. Serves them from this process if no peer is running.
pub(crate) async fn run(context: &CommandContext, args: ShareArgs) -> Result<(), CommandError> {
    let binding = match (&args.origin, &args.paths[..]) {
        (None, _) => None,
        (Some(origin), [path]) => {
            Some(binding::compare(context, path, origin, args.share_gated).await?)
        }
        (Some(_), _) => return Err(CommandError::usage("--as takes one path")),
    };
    let paths = match &binding {
        Some(binding) => binding.paths.clone(),
        None => args
            .paths
            .iter()
            .map(|path| local_files::absolute(path))
            .collect::<Result<Vec<_>, _>>()?,
    };
    if let Some(binding) = binding.as_ref().filter(|binding| binding.paths.is_empty()) {
        return report_differing(context, binding);
    }
    let peer = match context.stoppable(context.running_peer()).await? {
        Some(peer) => peer,
        None => {
            context
                .stoppable(context.start_peer(args.listen, args.plaintext))
                .await?
        }
    };
    let bound = binding.as_ref();
    let done = share_and_serve(context, &peer, paths, args.options.into(), args.wait, bound).await;
    peer.close().await;
    done.and_then(|()| bound.map_or(Ok(()), |bound| report_differing(context, bound)))
}

/// Reports the files that are not what the origin states.
///
/// # Errors
/// If there are any.
fn report_differing(context: &CommandContext, binding: &Binding) -> Result<(), CommandError> {
    for path in binding.differing.iter().take(MAX_NAMED) {
        let path = text::path(&path.to_string_lossy());
        let message = format!(
            "{path} is not shared: it differs from {}",
            text::escape(&binding.origin)
        );
        let error = CommandError::new(Reason::VerificationFailed, message);
        context.out.print_error(&error);
    }
    let unprinted = binding.differing.len().saturating_sub(MAX_NAMED);
    if unprinted > 0 {
        let more = text::count(unprinted as u64, "more file");
        context.out.warn(format_args!("{more} differ"));
    }
    match binding.differing.is_empty() {
        true => Ok(()),
        false => Err(CommandError::AlreadyReported(ExitStatus::Verification)),
    }
}

/// Waits until the peer knows the SHA-256s by which others find the content of an origin.
async fn await_sums(
    context: &CommandContext,
    peer: &PeerHandle,
    binding: &Binding,
    wait: Duration,
) -> Result<(), CommandError> {
    let origin = text::escape(&binding.origin);
    match binding.await_sums(peer, wait).await? {
        true => context.out.note(format_args!("shared as {origin}")),
        false => context.out.warn(format_args!(
            "the peer still computes SHA-256s; until then, others do not find the files as {origin}"
        )),
    }
    Ok(())
}

async fn share_and_serve(
    context: &CommandContext,
    peer: &PeerHandle,
    paths: Vec<String>,
    options: ShareOptions,
    wait: Duration,
    binding: Option<&Binding>,
) -> Result<(), CommandError> {
    let is_single = paths.len() == 1;
    let tally = context.stoppable(share(context, peer, paths, options)).await?;
    if tally.shared > 0 {
        if let Some(binding) = binding {
            context
                .stoppable(await_sums(context, peer, binding, wait))
                .await?;
        }
        let waiting = async { Ok(peer.control.await_registration(wait).await?) };
        let registration = context.stoppable(waiting).await;
        let is_registered = registration.as_ref().is_ok_and(|it| it.registered);
        for (item, omitted) in &tally.items {
            let mut object = library_items::object(item);
            omissions::add_to_object(&mut object, omitted, &context.out);
            object["registered"] = json!(is_registered);
            if let Some(binding) = binding {
                object["as"] = json!(binding.origin);
            }
            context.out.print_object(&object)?;
        }
        match registration {
            Ok(registration) => {
                report_registration(context, peer.status.index.as_deref(), &registration, &tally);
                if peer.ends_with_command() {
                    serve(context, peer, registration.registered).await?;
                }
            }
            // Ctrl-C is the normal way to end a share that serves.
            Err(_) if peer.ends_with_command() && context.stop.is_cancelled() => {}
            Err(error) => return Err(error),
        }
    }
    match tally.failed {
        0 => Ok(()),
        // For a single path, the exit code is that of its failure.
        _ if is_single && tally.shared == 0 => Err(CommandError::AlreadyReported(
            tally.first.unwrap_or(ExitStatus::Failed),
        )),
        _ => Err(CommandError::AlreadyReported(ExitStatus::Failed)),
    }
}

/// Shares all paths, and prints each result as it arrives.
async fn share(
    context: &CommandContext,
    peer: &PeerHandle,
    paths: Vec<String>,
    options: ShareOptions,
) -> Result<ShareTally, CommandError> {
    let began = Instant::now();
    let mut tally = ShareTally::default();
    let mut progress = ProgressLines::new(context.out.bars());
    let max_omissions = omissions::max_listed(&context.out);
    let mut events = pin!(peer.control.share(paths, options, max_omissions).await?);
    // Paths that may still be named, and the omissions of the next shared folder.
    let (mut left, mut omitted) = (MAX_NAMED, FolderOmissions::default());
    while let Some(event) = events.next().await {
        match event? {
            ShareEvent::Progress { path, done, total } => {
                let name = Path::new(&path).file_name().unwrap_or_default().to_string_lossy();
                progress.show(|width| {
                    vec![draw::hashing_line(&name, done, total, began.elapsed(), width)]
                });
            }
            ShareEvent::Omitted(more) => omitted.append(more),
            ShareEvent::Shared(item) => {
                tally.shared += 1;
                tally.first_id.get_or_insert(item.record.id);
                let omitted = std::mem::take(&mut omitted);
                match context.out.is_json() {
                    true => tally.items.push((item, omitted)),
                    false => {
                        context.out.print_lines(item_lines(&item, context.out.width()))?;
                        omissions::report(&context.out, &omitted, &mut left);
                    }
                }
            }
            ShareEvent::Failed { path, problem } => {
                tally.failed += 1;
                let message = match problem.message.contains(&path) {
                    true => problem.message.clone(),
                    false => format!("{}: {}", text::path(&path), problem.message),
                };
                let error = CommandError::new(problem.reason, message);
                match left.checked_sub(1) {
                    _ if context.out.is_verbose() => context.out.print_error(&error),
                    Some(rest) => {
                        left = rest;
                        context.out.print_error(&error);
                    }
                    None => tally.unprinted += 1,
                }
                tally.first = tally.first.or_else(|| error.exit());
            }
        }
    }
    if tally.unprinted > 0 {
        context.out.warn(format_args!(
            "{} not shown; -v shows all",
            text::count(tally.unprinted, "more error")
        ));
    }
    Ok(tally)
}

/// A shared item as text, for a terminal of `width` columns.
fn item_lines(item: &Item, width: Option<usize>) -> Vec<String> {
    let name = text::escape(&item.name);
    let facts = format!(
        "{}, {}",
        text::size(item.content_size),
        library_items::kind_text(item)
    );
    let name_width = width.map_or(usize::MAX, |width| {
        width.saturating_sub("shared   ".len() + facts.len())
    });
    vec![
        format!(
            "{} {}  {}",
            style("shared").green(),
            style(text::shorten_middle(&name, name_width)).bold(),
            style(facts).dim(),
        ),
        format!("  {}", item.record.id),
    ]
}

/// Reports whether the index has registered the files, so that other peers find them.
fn report_registration(
    context: &CommandContext,
    index: Option<&str>,
    registration: &Registration,
    tally: &ShareTally,
) {
    // By id: a name may be shared by several files, and a reader of a private network binds none.
    let argument = match (tally.shared, tally.first_id) {
        (1, Some(id)) => IdFormat::shortest([&id]).text(&id),
        _ => "ID".to_owned(),
    };
    match (index, &registration.problem) {
        _ if registration.registered => context.out.note(
            style(format_args!(
                "registered with the index; others download it with: potluck get {argument}"
            ))
            .dim()
            .for_stderr(),
        ),
        (None, _) => context
            .out
            .warn("the peer has no index: others cannot find the files by name or id"),
        (Some(_), Some(problem)) => context.out.warn(format_args!(
            "not registered, so others cannot find the files yet: {}; the peer keeps trying",
            text::escape(&problem.message)
        )),
        (Some(url), None) => context.out.warn(format_args!(
            "not registered, so others cannot find the files yet: the index at {} has not \
             answered; the peer keeps trying",
            text::escape(url)
        )),
    }
}

/// Serves from this process until it is stopped. Shows the upload rate, and reports when the
/// registration is lost or restored.
async fn serve(
    context: &CommandContext,
    peer: &PeerHandle,
    mut registered: bool,
) -> Result<(), CommandError> {
    let index = peer.status.index.as_deref();
    let listening = peer
        .status
        .listening
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    context.out.note(format_args!(
        "serving from {listening} until Ctrl-C; `potluck peer` would serve in the background"
    ));
    if listening.starts_with("127.") && index.is_some_and(|url| !is_loopback(url)) {
        context
            .out
            .warn("other machines cannot download from here: add --listen 0.0.0.0:12349");
    }
    let mut progress = ProgressLines::new(context.out.bars());
    let mut sent = (Instant::now(), peer.status.uploaded);
    loop {
        tokio::select! {
            // Cancel-safe: both arms only wait.
            () = context.stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        let status = peer.control.status().await?;
        // A full index may hold the lease without having all files.
        let is_registered = status.registered && status.index_error.is_none();
        if is_registered != registered {
            registered = is_registered;
            report_registration_change(context, &status, is_registered)?;
        }
        if context.out.shows_progress() {
            let (then, before) = std::mem::replace(&mut sent, (Instant::now(), status.uploaded));
            let rate = text::mean_rate(status.uploaded.saturating_sub(before), then.elapsed());
            progress.show(|width| {
                vec![draw::truncate(
                    &format!("sent {}  {rate}", text::size(status.uploaded)),
                    width,
                )]
            });
        }
    }
}

/// Reports that the registration was lost or restored.
fn report_registration_change(
    context: &CommandContext,
    status: &Status,
    is_registered: bool,
) -> Result<(), CommandError> {
    let problem = status.index_error.as_ref().filter(|_| !is_registered);
    if context.out.is_json() {
        return context.out.print_object(&json!({
            "event": "registration",
            "registered": is_registered,
            "error": problem.map(|problem| problem.reason.word()),
            "message": problem.map(|problem| problem.message.as_str()),
        }));
    }
    let why = problem.map_or("the index does not answer", |problem| problem.message.as_str());
    match is_registered {
        true => context.out.note("registered with the index again"),
        false => context.out.warn(format_args!(
            "no longer registered, so others cannot find the files: {}; the peer keeps trying",
            text::escape(why)
        )),
    }
    Ok(())
}

fn is_loopback(url: &str) -> bool {
    let without_scheme = url.split_once("://").map_or(url, |(_, rest)| rest);
    ["127.", "localhost", "[::1]"]
        .iter()
        .any(|host| without_scheme.starts_with(host))
}
