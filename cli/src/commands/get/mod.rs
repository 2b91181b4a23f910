//! `potluck get`: downloads files and folders from all their providers.
//!
//! | module | responsibility |
//! |---|---|
//! | [`args`] | the arguments |
//! | [`repository`] | downloads a repository of a hub |
//! | [`resolve`] | finds the files that an argument stands for |
//! | [`stream`] | reads a file of an origin in order, without peers |
//! | [`unhashed`] | downloads a URL of which nothing states the SHA-256 |
//! | [`one`] | downloads the file of one argument |
//! | [`to_stdout`] | writes the file of one argument to standard output |
//! | [`several`] | downloads the files of several arguments side by side |

mod args;
mod one;
mod repository;
mod resolve;
mod several;
mod stream;
mod to_stdout;
mod unhashed;

use potluck_origins::OriginReference;

use crate::{
    arguments::file_query::FileQuery,
    context::{CommandContext, PeerHandle},
    download::{ReportDetail, SingleDisplay, report, seed},
    error::CommandError,
};

pub(crate) use self::args::GetArgs;

/// Resolves the arguments, downloads the files, and reports the results.
pub(crate) async fn run(context: &CommandContext, args: GetArgs) -> Result<(), CommandError> {
    let queries = distinct(&args.queries);
    let running = context.stoppable(context.running_peer()).await?;
    if args.detach && running.is_none() {
        return Err(CommandError::usage("--detach needs a running peer")
            .hint("start one with `potluck peer`"));
    }
    let to_stdout = to_stdout::is_requested(context, &args, &queries)?;
    match &queries[..] {
        [FileQuery::Origin(OriginReference::Hub(hub))] if hub.path.is_none() && !to_stdout => {
            repository::run(context, running, &args, hub).await
        }
        [FileQuery::Origin(OriginReference::File(url))] if url.sha256.is_none() => {
            unhashed::run(context, running, &args, url, to_stdout).await
        }
        [query] if to_stdout => run_to_stdout(context, running, &args, query).await,
        [query] => run_one(context, running, &args, query).await,
        _ => several::run(context, running, &args, &queries).await,
    }
}

async fn run_one(
    context: &CommandContext,
    running: Option<PeerHandle>,
    args: &GetArgs,
    query: &FileQuery,
) -> Result<(), CommandError> {
    let candidates = context
        .stoppable(resolve::candidates(context, running.as_deref(), args, query))
        .await?;
    let peer = match running {
        Some(peer) => peer,
        None => {
            context
                .stoppable(context.start_peer(args.listen, args.plaintext))
                .await?
        }
    };
    let mut display = SingleDisplay::new(context.out.bars());
    let done = one::download(&mut display, context, &peer, args, query, candidates).await;
    let reported = match &done {
        Ok(transfer) => report(context, transfer, args.detach, ReportDetail::Peers),
        Err(_) => Ok(()),
    };
    if let Ok(transfer) = &done {
        seed(context, &peer, transfer).await;
    }
    peer.close().await;
    done.and(reported)
}

async fn run_to_stdout(
    context: &CommandContext,
    running: Option<PeerHandle>,
    args: &GetArgs,
    query: &FileQuery,
) -> Result<(), CommandError> {
    let candidates = context
        .stoppable(resolve::candidates(context, running.as_deref(), args, query))
        .await?;
    let peer = match running {
        Some(peer) => peer,
        None => {
            context
                .stoppable(context.start_peer(args.listen, args.plaintext))
                .await?
        }
    };
    let done = to_stdout::run(context, &peer, args, candidates).await;
    peer.close().await;
    done
}

/// The queries without repetitions.
fn distinct(queries: &[FileQuery]) -> Vec<FileQuery> {
    let mut distinct = Vec::with_capacity(queries.len());
    for query in queries {
        if !distinct.contains(query) {
            distinct.push(query.clone());
        }
    }
    distinct
}
