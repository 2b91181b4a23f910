//! Downloads the file of one argument.

use std::{path::PathBuf, time::Duration};

use potluck_core::{
    Reason,
    units::{duration_argument, parse_duration, rate_argument},
};

use crate::{
    arguments::file_query::FileQuery,
    commands::get::{
        args::{DEFAULT_WAIT, GetArgs},
        resolve::FileCandidate,
    },
    context::{CommandContext, PeerHandle},
    control::{DownloadRequest, model::Transfer},
    download::{TransferDisplay, WaitLimit, follow_on},
    error::{CommandError, ExitStatus},
    local_files,
};

/// Tries the candidates in order until one download succeeds, or is detached.
///
/// # Errors
/// As [`follow_on`].
pub(crate) async fn download(
    display: &mut impl TransferDisplay,
    context: &CommandContext,
    peer: &PeerHandle,
    args: &GetArgs,
    query: &FileQuery,
    candidates: Vec<FileCandidate>,
) -> Result<Transfer, CommandError> {
    let target = target(peer, args)?;
    let resume = resume_command(context, args);
    let last = candidates.len().saturating_sub(1);
    let mut first = None;
    for (i, candidate) in candidates.into_iter().enumerate() {
        let globs = |globs: &Vec<String>| match candidate.target {
            Some(_) => Vec::new(),
            None => globs.clone(),
        };
        let (include, exclude) = (globs(&args.include), globs(&args.exclude));
        let request = DownloadRequest {
            file: candidate.id,
            name: candidate.name,
            target: candidate.target.or_else(|| target.clone()),
            sha256: candidate.sha256,
            providers: candidate.providers,
            origin: candidate.origin,
            detach: args.detach,
            allow_expansion: args.allow_expansion,
            include,
            exclude,
            seed: args.seed,
            limit: args.limit,
            priority: args.priority,
        };
        let wait_limit = WaitLimit {
            wait: if candidate.has_providers {
                args.wait
            } else {
                Duration::ZERO
            },
            error: candidate.error,
        };
        let followed = follow_on(display, context, peer, &request, wait_limit, Some(&resume)).await;
        match followed {
            Ok(transfer) => return Ok(transfer),
            Err(error) => match reason_to_try_next(&error).filter(|_| i < last) {
                Some(why) => {
                    context
                        .out
                        .warn(format_args!("{} {why}: trying the next file", request.file));
                    first.get_or_insert(error);
                }
                // The target has partial content of the first candidate, so report the first error,
                // which says how to resume.
                None if error.is(Reason::TargetExists) => return Err(first.unwrap_or(error)),
                None => return Err(error),
            },
        }
    }
    // `resolve` returns at least one candidate, so the loop has returned already.
    Err(CommandError::new(
        Reason::NotFound,
        format!("no running peer has {query}"),
    ))
}

/// Why the next candidate may succeed after this error; `None` if it cannot.
pub(crate) const fn reason_to_try_next(error: &CommandError) -> Option<&'static str> {
    match error.exit() {
        Some(ExitStatus::Verification) => Some("does not have the requested SHA-256"),
        Some(ExitStatus::NotFound | ExitStatus::Unreachable) => Some("has no running peer"),
        _ => None,
    }
}

/// The target: `--output`, or else the current folder for an in-process peer, or else `None` to let
/// the peer choose.
fn target(peer: &PeerHandle, args: &GetArgs) -> Result<Option<PathBuf>, CommandError> {
    let Some(output) = &args.output else {
        return match peer.is_in_process() {
            true => std::env::current_dir().map(Some).map_err(|error| {
                CommandError::io("find the current folder", std::path::Path::new("."), &error)
            }),
            false => Ok(None),
        };
    };
    let target = PathBuf::from(local_files::absolute(output)?);
    // A trailing slash, as in `-o new/`, means a folder.
    if output.as_os_str().as_encoded_bytes().ends_with(b"/") {
        std::fs::create_dir_all(&target)
            .map_err(|error| CommandError::io("create the folder", &target, &error))?;
    }
    Ok(Some(target))
}

/// The command that resumes the download, with every flag that affects it.
fn resume_command(context: &CommandContext, args: &GetArgs) -> String {
    let queries = args.queries.iter().map(FileQuery::argument);
    let output = args.output.iter().map(|path| path.to_string_lossy().into_owned());
    let wait = Some(args.wait).filter(|&wait| parse_duration(DEFAULT_WAIT) != Ok(wait));
    let flags = [
        ("-o", output.collect()),
        ("--include", args.include.clone()),
        ("--exclude", args.exclude.clone()),
        ("--seed", flag_value(args.seed)),
        ("--from", args.from.iter().map(ToString::to_string).collect()),
        ("--limit", flag_value(args.limit.map(rate_argument))),
        ("--priority", flag_value(args.priority)),
        ("--wait", flag_value(wait.map(duration_argument))),
        ("--listen", flag_value(args.listen)),
    ];
    let flags = flags.into_iter().flat_map(|(flag, values): (_, Vec<String>)| {
        values.into_iter().flat_map(move |value| [flag.to_owned(), value])
    });
    let words = ["potluck", "get"].map(ToOwned::to_owned).into_iter();
    let expansion = args.allow_expansion.then(|| "--allow-expansion".to_owned());
    let plaintext = args.plaintext.then(|| "--plaintext".to_owned());
    let words = words
        .chain(queries)
        .chain(flags)
        .chain(expansion)
        .chain(plaintext);
    context.shell_command(words)
}

fn flag_value(value: Option<impl ToString>) -> Vec<String> {
    value.iter().map(ToString::to_string).collect()
}
