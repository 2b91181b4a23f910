//! `potluck cache`: shows and manages what a peer fetched on behalf of others.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use potluck_core::{Reason, model::FileKind, units::parse_size};
use serde_json::json;

use crate::{
    context::{CommandContext, PeerHandle},
    control::cache::CacheEntry,
    error::CommandError,
    output::{
        Output,
        table::{Align, Table},
        text,
    },
};

/// Shortest prefix of a name, an id or a SHA-256.
const MIN_PREFIX: usize = 8;

/// Digits of a name that a table shows.
const SHORT_NAME: usize = 12;

const EXAMPLES: &str = "\
Examples:
  potluck cache ls              what is in the cache, last used first
  potluck cache gc              remove what is above the limit, or old
  potluck cache gc --to 50GiB   remove until at most 50 GiB remain
  potluck cache pin 3f9a61c2    never remove this
  potluck cache unpin 3f9a61c2

The cache holds what a peer or a gateway fetched on behalf of others. Its limits
are --cache-size and --cache-ttl of the peer or the gateway. For a gateway, give
--peer unix:HOME/control.sock with the gateway's home.";

/// Show and manage what a peer or a gateway fetched on behalf of others
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CacheArgs {
    #[command(subcommand)]
    command: CacheCommand,
}

#[derive(Debug, Subcommand)]
enum CacheCommand {
    /// List the cache, last used first
    Ls,
    /// Remove what is above the limit or was not used for too long
    Gc {
        /// Also remove until at most this much remains, such as 50GiB; 0 for all that may go
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        to: Option<u64>,
    },
    /// Never remove these
    Pin(Names),
    /// Allow these to be removed again
    Unpin(Names),
}

#[derive(Debug, Args)]
struct Names {
    /// Names, ids or SHA-256s, or their first 8 digits or more; or where they come from
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

/// Runs a command on the cache of the running peer.
pub(crate) async fn run(context: &CommandContext, args: CacheArgs) -> Result<(), CommandError> {
    let peer = context.require_running_peer().await?;
    match args.command {
        CacheCommand::Ls => list(&context.out, &peer).await,
        CacheCommand::Gc { to } => collect(&context.out, &peer, to).await,
        CacheCommand::Pin(names) => pin(&context.out, &peer, &names.names, true).await,
        CacheCommand::Unpin(names) => pin(&context.out, &peer, &names.names, false).await,
    }
}

async fn list(out: &Output, peer: &PeerHandle) -> Result<(), CommandError> {
    let mut cache = peer.control.cache().await?;
    cache
        .entries
        .sort_by(|a, b| (b.last_used, &a.name).cmp(&(a.last_used, &b.name)));
    if out.is_json() {
        for entry in &cache.entries {
            out.print_object(&object(entry))?;
        }
        return Ok(());
    }
    if cache.entries.is_empty() {
        out.note("the cache is empty: a gateway fills it (see `potluck gateway --help`)");
        return Ok(());
    }
    out.print_lines(table(out, &cache.entries))?;
    let limit = match cache.max_bytes {
        0 => "no limit".to_owned(),
        max => format!("limit {}", text::size(max)),
    };
    let count = text::count(cache.entries.len() as u64, "object");
    out.print_line(format_args!("{count}, {}; {limit}", text::size(cache.bytes)))?;
    Ok(())
}

fn table(out: &Output, entries: &[CacheEntry]) -> Vec<String> {
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("SIZE", Align::Right),
        ("USED", Align::Left),
        ("STATE", Align::Left),
        ("FROM", Align::Elastic),
    ]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    for entry in entries {
        let age = now.saturating_sub(Duration::from_secs(entry.last_used));
        table.row([
            entry.name.chars().take(SHORT_NAME).collect(),
            text::size(entry.bytes),
            text::age(age),
            state(entry),
            text::escape(&entry.label).into_owned(),
        ]);
    }
    table.lines(out.width())
}

/// What is special about an entry.
fn state(entry: &CacheEntry) -> String {
    let words = [
        ("arriving", !entry.is_complete),
        ("pinned", entry.is_pinned),
        ("in use", entry.is_in_use && entry.is_complete),
    ];
    let words = words.into_iter().filter(|(_, holds)| *holds);
    words.map(|(word, _)| word).collect::<Vec<_>>().join(", ")
}

async fn collect(out: &Output, peer: &PeerHandle, to: Option<u64>) -> Result<(), CommandError> {
    let collected = peer.control.collect_cache(to).await?;
    if out.is_json() {
        let removed: Vec<_> = collected.removed.iter().map(object).collect();
        out.print_object(&json!({
            "removed": removed,
            "removed_count": collected.removed_count,
            "removed_bytes": collected.removed_bytes,
            "bytes": collected.bytes,
        }))?;
        return Ok(());
    }
    for entry in &collected.removed {
        out.print_line(format_args!(
            "removed {} ({})",
            text::escape(&entry.label),
            text::size(entry.bytes)
        ))?;
    }
    out.print_line(format_args!(
        "{} freed, {} left",
        text::size(collected.removed_bytes),
        text::size(collected.bytes)
    ))?;
    Ok(())
}

async fn pin(
    out: &Output,
    peer: &PeerHandle,
    wanted: &[String],
    is_pinned: bool,
) -> Result<(), CommandError> {
    let entries = peer.control.cache().await?.entries;
    let names = wanted.iter().map(|wanted| find(&entries, wanted));
    let names = names.collect::<Result<Vec<_>, _>>()?;
    for entry in peer.control.pin_cache(names, is_pinned).await? {
        match out.is_json() {
            true => out.print_object(&object(&entry))?,
            false => out.print_line(format_args!(
                "{} {}",
                if is_pinned { "pinned" } else { "unpinned" },
                text::escape(&entry.label)
            ))?,
        }
    }
    Ok(())
}

/// The name of the entry that an argument stands for.
fn find(entries: &[CacheEntry], wanted: &str) -> Result<String, CommandError> {
    let digits = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    let is_match = |entry: &&CacheEntry| {
        let starts = |text: &str| digits.len() >= MIN_PREFIX && text.starts_with(digits);
        entry.name == wanted
            || entry.label == wanted
            || starts(&entry.name)
            || entry.id.is_some_and(|id| starts(&id.to_string()))
            || entry.sha256.is_some_and(|sum| starts(&sum.to_string()))
    };
    match &entries.iter().filter(is_match).collect::<Vec<_>>()[..] {
        [only] => Ok(only.name.clone()),
        [] => Err(CommandError::new(
            Reason::NotFound,
            format!("{} is not in the cache", text::escape(wanted)),
        )
        .hint("`potluck cache ls` lists what is")),
        several => {
            let names: Vec<_> = several.iter().map(|entry| entry.name.as_str()).collect();
            let message = format!(
                "{} may be any of these: {}",
                text::escape(wanted),
                names.join(", ")
            );
            Err(CommandError::new(Reason::AmbiguousName, message).hint("give more digits"))
        }
    }
}

/// An entry as JSON.
fn object(entry: &CacheEntry) -> serde_json::Value {
    json!({
        "name": entry.name,
        "from": entry.label,
        "size": entry.bytes,
        "kind": match entry.kind {
            FileKind::Collection => "collection",
            FileKind::File | FileKind::Provisional => "file",
        },
        "id": entry.id,
        "sha256": entry.sha256,
        "complete": entry.is_complete,
        "pinned": entry.is_pinned,
        "in_use": entry.is_in_use,
        "added": entry.added,
        "last_used": entry.last_used,
        "path": entry.path,
    })
}
