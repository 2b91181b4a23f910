//! `potluck get`: downloads a file or folder from all its providers.

mod follow;
mod progress;
mod report;
mod resolve;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use clap::Args;
use potluck_core::{Reason, model::Address};

pub(crate) use self::{
    follow::{WaitLimit, follow},
    report::report,
};
use crate::{
    commands::file_query::FileQuery,
    context::{CommandContext, PeerHandle},
    control::DownloadRequest,
    error::{CommandError, ExitStatus},
};
use resolve::Candidate;

/// Default wait in seconds while no peer has the missing pieces: long enough for a peer to restart.
const DEFAULT_WAIT: u64 = 60;

const EXAMPLES: &str = "\
Examples:
  potluck get model.bin                   by name, if only one file has it
  potluck get 3f9a…(64 digits)            by id
  potluck get sha256:e3b0… -o /tmp/x.bin  by its SHA-256, checked at the end
  potluck get photos -o ~/                a folder, restored below ~/

Run it again after Ctrl-C or a crash: it goes on where it stopped. A file that
is there already is checked and left alone; another file is never overwritten.
With a peer running the file goes to the peer's files folder, else to the
current folder.";

/// Download a file or folder from all its providers, every piece verified
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct GetArgs {
    /// An id, an exact name, or sha256:HEX
    #[arg(value_name = "ID|NAME|sha256:HEX")]
    pub(crate) want: FileQuery,

    /// Where to save it: a new path, or a folder
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,

    /// Peers to ask in addition to those that the index lists
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', value_parser = parse_address)]
    from: Vec<Address>,

    /// Maximum bytes per second, e.g. 10MiB
    #[arg(long, value_name = "RATE")]
    limit: Option<ByteSize>,

    /// Relative weight among the peer's downloads: 30 gets three times the rate of 10 [default: 10]
    #[arg(long, value_name = "1-100", value_parser = crate::commands::transfers::priority())]
    priority: Option<u32>,

    /// Seconds to wait while no peer has the missing pieces, or while the disk is full
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_WAIT)]
    wait: u64,

    /// Let the running peer download it, and return at once; `potluck transfers` shows it
    #[arg(short, long)]
    detach: bool,

    /// Allow a collection that writes over 1 GiB and over ten times its distinct content
    #[arg(long)]
    allow_expansion: bool,

    /// Address to serve from while downloading, if no peer is running [default: 127.0.0.1:12349, or
    /// a free port of this machine]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
}

/// Resolves the query, downloads the file, and reports the result.
pub(crate) async fn run(context: &CommandContext, args: GetArgs) -> Result<(), CommandError> {
    let running = context.stoppable(context.running_peer()).await?;
    if args.detach && running.is_none() {
        return Err(
            CommandError::usage("--detach needs a running peer to leave it to")
                .hint("start one with `potluck peer`"),
        );
    }
    let candidates = context
        .stoppable(resolve::candidates(context, running.as_deref(), &args))
        .await?;
    let peer = match running {
        Some(peer) => peer,
        None => context.stoppable(context.own_peer(args.listen)).await?,
    };
    let done = download_first(context, &peer, &args, candidates).await;
    peer.close().await;
    done
}

/// Tries the candidates in order until one download succeeds.
async fn download_first(
    context: &CommandContext,
    peer: &PeerHandle,
    args: &GetArgs,
    candidates: Vec<Candidate>,
) -> Result<(), CommandError> {
    let target = target(peer, args)?;
    let resume = resume_command(context, args);
    let last = candidates.len().saturating_sub(1);
    let mut first = None;
    for (i, candidate) in candidates.into_iter().enumerate() {
        let request = DownloadRequest {
            file: candidate.id,
            name: candidate.name,
            target: target.clone(),
            sha256: candidate.sha256,
            providers: candidate.providers,
            detach: args.detach,
            allow_expansion: args.allow_expansion,
            limit: args.limit.map_or(0, |limit| limit.as_u64()),
            priority: args.priority,
        };
        let wait_limit = WaitLimit {
            wait: if candidate.has_providers {
                Duration::from_secs(args.wait)
            } else {
                Duration::ZERO
            },
            error: candidate.error,
        };
        match follow(context, peer, &request, wait_limit, Some(&resume)).await {
            Ok(transfer) => return report(context, &transfer, args.detach),
            Err(error) => match why_another(&error).filter(|_| i < last) {
                Some(why) => {
                    context
                        .out
                        .warn(format_args!("{} {why}, trying another", request.file));
                    first.get_or_insert(error);
                }
                // The target holds partial content of the first candidate, whose error says how to
                // resume.
                None if error.is(Reason::TargetExists) => return Err(first.unwrap_or(error)),
                None => return Err(error),
            },
        }
    }
    // `resolve` returns at least one candidate, so the loop has returned already.
    Err(CommandError::new(
        Reason::NotFound,
        format!("nobody has {}", args.want),
    ))
}

/// Why the next candidate may succeed after this error; `None` if it cannot.
const fn why_another(error: &CommandError) -> Option<&'static str> {
    match error.exit() {
        Some(ExitStatus::Verification) => Some("is not what was asked for"),
        Some(ExitStatus::NotFound | ExitStatus::Unreachable) => Some("is served by nobody now"),
        _ => None,
    }
}

/// The target: `--output`, or else the current folder for an in-process peer, or else `None` to let
/// the peer choose.
fn target(peer: &PeerHandle, args: &GetArgs) -> Result<Option<PathBuf>, CommandError> {
    let Some(output) = &args.output else {
        return match peer.is_own() {
            true => std::env::current_dir().map(Some).map_err(|error| {
                CommandError::io("find the current folder", std::path::Path::new("."), &error)
            }),
            false => Ok(None),
        };
    };
    let target = PathBuf::from(crate::commands::local_hash::absolute(output)?);
    // A trailing slash, as in `-o new/`, means a folder.
    if output.as_os_str().as_encoded_bytes().ends_with(b"/") {
        std::fs::create_dir_all(&target)
            .map_err(|error| CommandError::io("make the folder", &target, &error))?;
    }
    Ok(Some(target))
}

/// The command that resumes the download, with every flag that affects it.
fn resume_command(context: &CommandContext, args: &GetArgs) -> String {
    let query = match &args.want {
        FileQuery::Id(id) => id.to_string(),
        FileQuery::Sha256(sum) => format!("sha256:{sum}"),
        FileQuery::Name(name) => name.clone(),
    };
    let output = args.output.iter().map(|path| path.to_string_lossy().into_owned());
    let wait = Some(args.wait).filter(|&wait| wait != DEFAULT_WAIT);
    let flags = [
        ("-o", output.collect()),
        ("--from", args.from.iter().map(ToString::to_string).collect()),
        ("--limit", args.limit.map(rate).into_iter().collect()),
        ("--priority", numbers(args.priority)),
        ("--wait", numbers(wait)),
        ("--listen", numbers(args.listen)),
    ];
    let flags = flags.into_iter().flat_map(|(flag, values): (_, Vec<String>)| {
        values.into_iter().flat_map(move |value| [flag.to_owned(), value])
    });
    let words = ["potluck", "get", &query].map(ToOwned::to_owned).into_iter();
    let expansion = args.allow_expansion.then(|| "--allow-expansion".to_owned());
    context.command(words.chain(flags).chain(expansion))
}

fn numbers(value: Option<impl ToString>) -> Vec<String> {
    value.iter().map(ToString::to_string).collect()
}

/// A rate in the syntax of `--limit`, without rounding.
fn rate(rate: ByteSize) -> String {
    let bytes = rate.as_u64();
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let is_whole = |unit: u64| bytes > 0 && bytes.is_multiple_of(unit);
    let whole = units.iter().find(|(unit, _)| is_whole(*unit));
    match whole {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => bytes.to_string(),
    }
}

fn parse_address(text: &str) -> Result<Address, String> {
    match text.parse() {
        Ok(potluck_core::grpc::transport::Endpoint::Http(uri)) => {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let port = uri
                .port_u16()
                .filter(|&port| port != 0)
                .ok_or("a port is 1 to 65535")?;
            Ok(Address { host, port })
        }
        _ => Err("give HOST:PORT, as in 192.0.2.7:12349".to_owned()),
    }
}
