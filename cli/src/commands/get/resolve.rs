//! Resolves an argument of `get` to candidate files.

use std::path::PathBuf;

use potluck_core::{
    FileId, IdPrefix, Problem, Reason, Sha256,
    index_client::IndexClient,
    model::{Address, IndexedFile},
};

use crate::{
    arguments::file_query::FileQuery,
    commands::get::args::GetArgs,
    context::CommandContext,
    control::RequestedOrigin,
    error::CommandError,
    lookup,
    origin::{self, OriginContent},
    output::text,
    peer::ConnectedPeer,
    views::{
        id_matches::{self, IdMatch},
        indexed_files::{self, QueryObject},
    },
};

/// Number of similar names suggested for an unknown name.
const SUGGESTIONS: u32 = 3;

/// Search pages read for suggestions; an empty page may be followed by others.
const SUGGESTION_PAGES: u32 = 5;

/// Maximum number of providers passed to a peer that uses a different index, or none.
const MAX_PASSED_PROVIDERS: usize = 100;

/// A file to try.
#[derive(Debug)]
pub(crate) struct FileCandidate {
    pub(crate) id: FileId,
    pub(crate) name: Option<String>,
    /// For a file of a repository, where to save it: `--output`, `--include` and `--exclude` are for
    /// the repository, and do not apply to the file again.
    pub(crate) target: Option<PathBuf>,
    pub(crate) sha256: Option<Sha256>,
    pub(crate) providers: Vec<Address>,
    /// Where bytes come from that no peer has.
    pub(crate) origin: Option<RequestedOrigin>,
    /// Whether any provider is known. Without one, only a local copy can satisfy the request.
    pub(crate) has_providers: bool,
    /// The error to report if no provider is known and the download fails.
    pub(crate) error: Option<CommandError>,
}

/// The files that match the query; at least one.
///
/// # Errors
/// [`Reason::NotFound`] if nothing matches; [`Reason::AmbiguousName`] if several files have the
/// name or the first digits of the id, after printing them; an index failure if the query is not an
/// id.
pub(crate) async fn candidates(
    context: &CommandContext,
    peer: Option<&ConnectedPeer>,
    args: &GetArgs,
    query: &FileQuery,
) -> Result<Vec<FileCandidate>, CommandError> {
    let looked_up = match context.index_for(peer) {
        Ok(index) => look_up(&index, query).await.map_err(Into::into),
        Err(error) => match query {
            // An id and explicit peers are enough without an index.
            FileQuery::Id(_) if !args.from.is_empty() => Ok(Vec::new()),
            // The origin is enough.
            FileQuery::Origin(_) => Ok(Vec::new()),
            // The running peer may know the id.
            FileQuery::IdPrefix { .. } => Err(error),
            _ => return Err(error),
        },
    };
    let index = context.index_for(peer).ok();
    match (query, looked_up) {
        (FileQuery::Id(id), looked_up) => Ok(vec![by_id(context, peer, args, *id, looked_up)]),
        (FileQuery::IdPrefix { prefix, text }, looked_up) => {
            let candidate = by_prefix(context, peer, args, (prefix, text), looked_up).await?;
            Ok(vec![candidate])
        }
        (_, Err(error)) => Err(error),
        (FileQuery::Origin(reference), _) => {
            let found = origin::look_up(reference).await?;
            Ok(with_origin(context, peer, args, found).await)
        }
        (query, Ok(files)) if files.is_empty() => {
            Err(not_found_with_suggestions(index.as_ref(), query).await)
        }
        (FileQuery::Name(name), Ok(files)) if files.len() > 1 => {
            Err(ambiguous(context, name, &files))
        }
        (FileQuery::Name(name), Ok(files)) => Ok(files
            .iter()
            .map(|found| from_indexed_file(context, peer, args, found, Some(name), None))
            .collect()),
        (FileQuery::Sha256(sum), Ok(files)) => Ok(files
            .iter()
            .map(|found| from_indexed_file(context, peer, args, found, None, Some(*sum)))
            .collect()),
    }
}

async fn look_up(index: &IndexClient, query: &FileQuery) -> Result<Vec<IndexedFile>, Problem> {
    lookup::find_files(index, query, MAX_PASSED_PROVIDERS as u32).await
}

fn by_id(
    context: &CommandContext,
    peer: Option<&ConnectedPeer>,
    args: &GetArgs,
    id: FileId,
    looked_up: Result<Vec<IndexedFile>, CommandError>,
) -> FileCandidate {
    match looked_up.map(|files| files.into_iter().next()) {
        Ok(Some(found)) => from_indexed_file(context, peer, args, &found, None, None),
        Ok(None) => without_providers(args, id, lookup::not_found(&FileQuery::Id(id))),
        Err(error) => without_providers(args, id, error),
    }
}

/// The file whose id begins with these digits, or that has them as its name, at the index or at the
/// running peer.
async fn by_prefix(
    context: &CommandContext,
    peer: Option<&ConnectedPeer>,
    args: &GetArgs,
    (prefix, text): (&IdPrefix, &str),
    looked_up: Result<Vec<IndexedFile>, CommandError>,
) -> Result<FileCandidate, CommandError> {
    let (files, error) = match looked_up {
        Ok(files) => {
            let (prefix, text) = (*prefix, text.to_owned());
            (files, lookup::not_found(&FileQuery::IdPrefix { prefix, text }))
        }
        Err(error) => (Vec::new(), error),
    };
    let mut matches: Vec<IdMatch> = files.iter().map(Into::into).collect();
    if let Some(peer) = peer {
        matches.extend(lookup::find_ids(&peer.control, prefix).await?);
    }
    id_matches::dedup(&mut matches);
    match &matches[..] {
        [] => Err(error),
        [only] => Ok(match files.first() {
            Some(found) => {
                let name = found.names.iter().find(|name| *name == text);
                from_indexed_file(context, peer, args, found, name.map(String::as_str), None)
            }
            None => without_providers(args, only.id, error),
        }),
        _ => Err(id_matches::ambiguous(&context.out, text, &matches)),
    }
}

/// A file that the index does not list. With explicit peers, the transfer's own error is more
/// precise than `error`.
fn without_providers(args: &GetArgs, id: FileId, error: CommandError) -> FileCandidate {
    FileCandidate {
        id,
        name: None,
        target: None,
        sha256: None,
        providers: args.from.clone(),
        origin: None,
        has_providers: !args.from.is_empty(),
        error: Some(error).filter(|_| args.from.is_empty()),
    }
}

/// The candidates for a file at an origin: those that peers have with its SHA-256, and last the
/// content whose root is not known yet.
pub(super) async fn with_origin(
    context: &CommandContext,
    peer: Option<&ConnectedPeer>,
    args: &GetArgs,
    found: OriginContent,
) -> Vec<FileCandidate> {
    let OriginContent { file, sha256, name } = found;
    let query = FileQuery::Sha256(sha256);
    // Without an index, the origin is enough.
    let known = match context.index_for(peer) {
        Ok(index) => look_up(&index, &query).await.unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    let origin = RequestedOrigin {
        file,
        share_gated: args.share_gated,
    };
    let known = known.iter().filter(|known| known.file.size == origin.file.size);
    let mut candidates: Vec<FileCandidate> = known
        .map(|known| FileCandidate {
            origin: Some(origin.clone()),
            ..from_indexed_file(context, peer, args, known, name.as_deref(), Some(sha256))
        })
        .collect();
    candidates.push(FileCandidate {
        id: FileId::provisional(origin.file.size, &sha256),
        name,
        target: None,
        sha256: Some(sha256),
        providers: args.from.clone(),
        origin: Some(origin),
        has_providers: true,
        error: None,
    });
    candidates
}

fn from_indexed_file(
    context: &CommandContext,
    peer: Option<&ConnectedPeer>,
    args: &GetArgs,
    found: &IndexedFile,
    name: Option<&str>,
    sha256: Option<Sha256>,
) -> FileCandidate {
    let mut providers = args.from.clone();
    if uses_other_index(context, peer) {
        providers.extend(
            found
                .providers
                .iter()
                .take(MAX_PASSED_PROVIDERS)
                .map(|provider| provider.address.clone()),
        );
    }
    FileCandidate {
        id: found.file.id,
        // The name that was asked for, or else the most used one.
        name: name
            .or_else(|| found.names.first().map(String::as_str))
            .map(ToOwned::to_owned),
        target: None,
        sha256,
        providers,
        origin: None,
        has_providers: true,
        error: None,
    }
}

/// Whether the peer uses a different index from the one that was queried.
fn uses_other_index(context: &CommandContext, peer: Option<&ConnectedPeer>) -> bool {
    let asked = context
        .index_for(peer)
        .ok()
        .map(|index| index.endpoint().to_string());
    peer.is_some_and(|peer| {
        let own = peer
            .status
            .index
            .as_deref()
            .map(|url| url.trim_end_matches('/').to_owned());
        own != asked
    })
}

/// Prints the files that share the name, and returns the error.
fn ambiguous(context: &CommandContext, name: &str, files: &[IndexedFile]) -> CommandError {
    let printed = match context.out.is_json() {
        true => context.out.print_object(&QueryObject { files }),
        false => context
            .out
            .print_lines(indexed_files::table_lines(&context.out, files)),
    };
    if let Err(error) = printed {
        return error;
    }
    let message = format!(
        "{} have the name `{name}`",
        text::count(files.len() as u64, "file")
    );
    CommandError::new(Reason::AmbiguousName, message)
        .hint("nothing was downloaded; choose one: potluck get ID")
}

/// The not-found error, with similar names as hints.
async fn not_found_with_suggestions(
    index: Option<&IndexClient>,
    query: &FileQuery,
) -> CommandError {
    let error = lookup::not_found(query);
    let (FileQuery::Name(name), Some(index)) = (query, index) else {
        return error;
    };
    // Suggestions are optional, so errors are ignored. The file extension is too common to search
    // for.
    let words = name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem);
    let mut similar = index.search(words, SUGGESTIONS, None).await.unwrap_or_default();
    for _ in 1..SUGGESTION_PAGES {
        if !similar.files.is_empty() || similar.next.is_none() {
            break;
        }
        let page = similar.next.take();
        similar = index.search(words, SUGGESTIONS, page).await.unwrap_or_default();
    }
    similar
        .files
        .iter()
        .filter_map(|found| found.names.first())
        .fold(error, |error, name| error.hint(format!("did you mean: {name}")))
}
