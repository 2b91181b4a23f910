//! `potluck share`: share files and folders in place; without a daemon, for as long as the command runs.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::pin,
    time::{Duration, Instant},
};

use clap::Args;
use console::style;
use futures_util::StreamExt as _;

use super::{local, ls};
use crate::{
    board::{Board, LOOK_INTERVAL},
    context::{Borrowed, Context},
    control::model::{Item, ShareEvent, Status},
    draw,
    fail::{Exit, Fail},
    text,
};

/// How long to wait for the index to know of what is shared before saying that it does not yet.
const ANNOUNCE_PATIENCE: Duration = Duration::from_secs(5);

/// How often the peer is asked whether the index knows.
const ANNOUNCE_INTERVAL: Duration = Duration::from_millis(50);

const EXAMPLES: &str = "\
Examples:
  potluck share model.bin            share a file; nothing is copied
  potluck share ~/photos notes.txt   a folder as one collection, and a file
  potluck share --listen 0.0.0.0:12349 model.bin     for other machines too

With a peer running (`potluck peer`) that one shares, and this returns; else
this command serves until Ctrl-C. Others fetch with: potluck get ID, or NAME.";

/// Share files and folders in place
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ShareArgs {
    /// Files and folders
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,

    /// Where to serve from if no peer is running [default: 127.0.0.1:12349, or a free port of this machine]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
}

/// What became of the paths.
#[derive(Debug, Default)]
struct Tally {
    shared: u64,
    failed: u64,
    /// How the first that failed did.
    first: Option<Exit>,
}

/// Shares, and serves if nobody else does.
pub(crate) async fn run(context: &Context, args: ShareArgs) -> Result<(), Fail> {
    let paths = args
        .paths
        .iter()
        .map(|path| local::absolute(path))
        .collect::<Result<Vec<_>, _>>()?;
    let peer = match context.stoppable(context.running_peer()).await? {
        Some(peer) => peer,
        None => context.stoppable(context.own_peer(args.listen)).await?,
    };
    let done = share_and_serve(context, &peer, paths).await;
    peer.close().await;
    done
}

async fn share_and_serve(context: &Context, peer: &Borrowed, paths: Vec<String>) -> Result<(), Fail> {
    let alone = paths.len() == 1;
    let tally = context.stoppable(share(context, peer, paths)).await?;
    if tally.shared > 0 {
        let known = context.stoppable(announced(peer)).await;
        if peer.ends_with_command() {
            serve(context, peer, known.ok()).await?;
        } else {
            advise(context, known?);
        }
    }
    match tally.failed {
        0 => Ok(()),
        // Of a path alone the code tells what is wrong with it.
        _ if alone && tally.shared == 0 => Err(Fail::AlreadyTold(tally.first.unwrap_or(Exit::Failed))),
        _ => Err(Fail::AlreadyTold(Exit::Failed)),
    }
}

/// Shares all paths, printing each result as it comes.
async fn share(context: &Context, peer: &Borrowed, paths: Vec<String>) -> Result<Tally, Fail> {
    let began = Instant::now();
    let mut tally = Tally::default();
    let mut board = Board::new(context.out.bars());
    let mut events = pin!(peer.control.share(paths).await?);
    while let Some(event) = events.next().await {
        match event? {
            ShareEvent::Progress { path, done, total } => {
                let name = Path::new(&path).file_name().unwrap_or_default().to_string_lossy();
                board.show(|width| vec![draw::hashing(&name, done, total, began.elapsed(), width)]);
            }
            ShareEvent::Shared(item) => {
                tally.shared += 1;
                match context.out.is_json() {
                    true => context.out.object(&ls::object(&item))?,
                    false => context.out.lines(told(&item))?,
                }
            }
            ShareEvent::Failed { path, problem } => {
                tally.failed += 1;
                let message = match problem.message.contains(&path) {
                    true => problem.message.clone(),
                    false => format!("{}: {}", text::path(&path), problem.message),
                };
                let fail = Fail::new(problem.reason, message);
                context.out.fail(&fail);
                tally.first = tally.first.or_else(|| fail.exit());
            }
        }
    }
    Ok(tally)
}

/// A shared item for people.
fn told(item: &Item) -> Vec<String> {
    vec![
        format!(
            "{} {}  {}",
            style("shared").green(),
            style(text::shown(&item.name)).bold(),
            style(format!("{}, {}", text::size(item.content_size), ls::what(item))).dim(),
        ),
        format!("  {}", item.record.id),
    ]
}

/// Waits until the index holds the peer's lease, or says why it does not; the peer's state then. A lease that it held a moment ago it
/// still has: a peer with much to register answers late.
async fn announced(peer: &Borrowed) -> Result<Status, Fail> {
    if peer.status.registered && peer.asked.elapsed() < ANNOUNCE_PATIENCE {
        return Ok(peer.status.clone());
    }
    let deadline = Instant::now() + ANNOUNCE_PATIENCE;
    loop {
        let status = peer.control.status().await?;
        if status.registered
            || status.index.is_none()
            || status.index_error.is_some()
            || Instant::now() >= deadline
        {
            return Ok(status);
        }
        tokio::time::sleep(ANNOUNCE_INTERVAL).await;
    }
}

/// What to try next, or what stands in the way.
fn advise(context: &Context, status: Status) {
    match (&status.index, status.registered) {
        (Some(_), true) => context.out.note(
            style("others fetch it with: potluck get ID|NAME")
                .dim()
                .for_stderr(),
        ),
        _ => warn_unannounced(context, &status),
    }
}

fn warn_unannounced(context: &Context, status: &Status) {
    match (&status.index, &status.index_error) {
        (None, _) => context
            .out
            .warn("the peer runs without an index: nobody finds this by name or id"),
        (Some(_), Some(error)) => context.out.warn(format_args!(
            "nobody finds this yet: {}; the peer keeps trying",
            text::shown(&error.message)
        )),
        (Some(url), None) => {
            context.out.warn(format_args!(
                "nobody finds this yet: the index at {url} has not answered; the peer keeps trying"
            ));
        }
    }
}

/// Serves from this process until told to stop, showing what goes out.
async fn serve(context: &Context, peer: &Borrowed, known: Option<Status>) -> Result<(), Fail> {
    let status = known.as_ref().unwrap_or(&peer.status);
    if !status.registered {
        warn_unannounced(context, status);
    }
    let listening = status
        .listening
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    context.out.note(format_args!(
        "serving from {listening} until Ctrl-C; `potluck peer` keeps serving all that it shares"
    ));
    if listening.starts_with("127.") && status.index.as_deref().is_some_and(|url| !is_loopback(url)) {
        context.out.warn("the index is on another machine, but only this one can fetch from here: give --listen 0.0.0.0:12349");
    }
    let mut board = Board::new(context.out.bars());
    let mut sent = (Instant::now(), status.uploaded);
    loop {
        tokio::select! {
            // Both only wait.
            () = context.stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
        if context.out.draws() {
            let status = peer.control.status().await?;
            let (then, before) = std::mem::replace(&mut sent, (Instant::now(), status.uploaded));
            let rate = text::mean_rate(status.uploaded.saturating_sub(before), then.elapsed());
            board.show(|width| {
                vec![draw::fit(
                    &format!("sent {}  {rate}", text::size(status.uploaded)),
                    width,
                )]
            });
        }
    }
}

fn is_loopback(url: &str) -> bool {
    ["127.", "localhost", "[::1]"]
        .iter()
        .any(|host| url.strip_prefix("http://").unwrap_or(url).starts_with(host))
}
