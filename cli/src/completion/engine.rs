//! Which arguments a word can be, by clap's completion engine.
//!
//! The engine knows commands and options. The values of an argument follow from the type that it is
//! parsed to, so that a new command needs no code here.

use std::{any::TypeId, ffi::OsString, sync::Arc};

use clap::{Arg, Command, ValueHint};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};

use crate::{
    arguments::{file_query::FileQuery, id::IdArgument, transfer_target::TransferTarget},
    completion::{Candidate, candidates::Source},
    output::text,
};

/// A candidate that stands for the names of local files, which shells complete better themselves.
/// No argument contains a zero byte.
const LOCAL_FILES: &str = "\0";

/// Finds the candidates of a source that begin with a text.
type Find = Arc<dyn Fn(Source, &str) -> Vec<Candidate> + Send + Sync>;

/// The completions of a word.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Names of local files.
    LocalFiles,
    /// These words.
    Words(Vec<Candidate>),
}

/// Completes the last of `words`, which are unquoted and include the program's name if `command`
/// expects it.
pub(crate) fn complete(command: Command, words: Vec<OsString>, find: Find) -> Answer {
    let Some(last) = words.len().checked_sub(1) else {
        return Answer::Words(Vec::new());
    };
    let word = words[last].to_string_lossy().into_owned();
    let mut command = with_values(command, &find);
    let found =
        clap_complete::engine::complete(&mut command, words, last, None).unwrap_or_default();
    let mut candidates: Vec<Candidate> = found.iter().filter_map(candidate).collect();
    if candidates
        .iter()
        .any(|candidate| candidate.value.contains(LOCAL_FILES))
        && !word.starts_with('-')
    {
        return Answer::LocalFiles;
    }
    let is_safe = |candidate: &Candidate| text::escape(&candidate.value) == candidate.value;
    candidates.retain(|candidate| is_safe(candidate) && candidate.value.starts_with(&word));
    // Without a dash, options would hide the other candidates.
    let is_option = |candidate: &Candidate| candidate.value.starts_with('-');
    if word.is_empty() && !candidates.iter().all(is_option) {
        candidates.retain(|candidate| !is_option(candidate));
    }
    Answer::Words(candidates)
}

fn candidate(found: &CompletionCandidate) -> Option<Candidate> {
    let description = found.get_help().map(ToString::to_string).unwrap_or_default();
    Some(Candidate {
        value: found.get_value().to_str()?.to_owned(),
        description: text::escape(description.lines().next().unwrap_or_default()).into_owned(),
    })
}

/// The command with completion of its arguments' values.
fn with_values(command: Command, find: &Find) -> Command {
    let name = command.get_name().to_owned();
    command
        .mut_args(|arg| match source(&name, &arg) {
            Some(source) => arg.add(completer(source, Arc::clone(find))),
            None if is_path(&arg) => {
                arg.add(ArgValueCompleter::new(|_: &std::ffi::OsStr| vec![local_files()]))
            }
            None => arg,
        })
        .mut_subcommands(|command| with_values(command, find))
}

/// Where the values of an argument come from.
fn source(command: &str, arg: &Arg) -> Option<Source> {
    let parsed_to = arg.get_value_parser().type_id();
    let is = |type_id: TypeId| parsed_to == type_id;
    if is(TypeId::of::<FileQuery>()) {
        return Some(Source::IndexedFiles);
    }
    if is(TypeId::of::<IdArgument>()) {
        return Some(Source::SharedIds);
    }
    if is(TypeId::of::<TransferTarget>()) {
        return Some(match command {
            "pause" => Source::RunningTransfers,
            "resume" => Source::StoppedTransfers,
            "cancel" | "adjust" => Source::UnfinishedTransfers,
            _ => Source::Transfers,
        });
    }
    match command {
        "unshare" if arg.is_positional() => Some(Source::SharedItems),
        "check" if arg.is_positional() => Some(Source::SharedPaths),
        _ => None,
    }
}

fn is_path(arg: &Arg) -> bool {
    matches!(
        arg.get_value_hint(),
        ValueHint::AnyPath | ValueHint::FilePath | ValueHint::DirPath | ValueHint::ExecutablePath
    )
}

fn completer(source: Source, find: Find) -> ArgValueCompleter {
    ArgValueCompleter::new(move |word: &std::ffi::OsStr| {
        let Some(word) = word.to_str() else {
            return Vec::new();
        };
        let found = find(source, word);
        if found.is_empty() && matches!(source, Source::SharedPaths | Source::SharedItems) {
            return vec![local_files()];
        }
        let engine = |candidate: Candidate| {
            CompletionCandidate::new(candidate.value).help(Some(candidate.description.into()))
        };
        found.into_iter().map(engine).collect()
    })
}

fn local_files() -> CompletionCandidate {
    CompletionCandidate::new(LOCAL_FILES)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::args::Cli;

    fn find(source: Source, _: &str) -> Vec<Candidate> {
        let values: &[&str] = match source {
            Source::IndexedFiles => &["model.bin", "my file", "evil\x1b[2J", "other"],
            Source::RunningTransfers => &["7"],
            Source::SharedPaths => &[],
            _ => &["shared"],
        };
        let candidate = |value: &&str| Candidate {
            value: (*value).to_owned(),
            description: "1 B".to_owned(),
        };
        values.iter().map(candidate).collect()
    }

    fn answer(line: &[&str]) -> Answer {
        let words = line.iter().map(Into::into).collect();
        complete(Cli::command(), words, Arc::new(find))
    }

    fn values(line: &[&str]) -> Vec<String> {
        match answer(line) {
            Answer::Words(found) => found.into_iter().map(|found| found.value).collect(),
            Answer::LocalFiles => panic!("local files"),
        }
    }

    #[test]
    fn arguments_complete_by_their_type() {
        for verb in ["get", "query"] {
            assert_eq!(
                values(&["potluck", verb, ""]),
                ["model.bin", "my file", "other"],
                "{verb}"
            );
        }
        assert_eq!(values(&["potluck", "get", "m"]), ["model.bin", "my file"]);
        assert_eq!(values(&["potluck", "--json", "get", "-o", "x", "o"]), ["other"]);
        assert_eq!(values(&["potluck", "why", ""]), ["shared"]);
        assert_eq!(values(&["potluck", "unshare", "sh"]), ["shared"]);
        assert_eq!(values(&["potluck", "verify", "sh"]), ["shared"]);
        assert_eq!(values(&["potluck", "transfers", "pause", ""]), ["7"]);
    }

    #[test]
    fn paths_are_left_to_the_shell() {
        for line in [
            &["potluck", "share", ""][..],
            &["potluck", "get", "x", "-o", ""],
            &["potluck", "verify", "3f9a3f9a", ""],
            &["potluck", "check", ""],
        ] {
            assert_eq!(answer(line), Answer::LocalFiles, "{line:?}");
        }
    }

    #[test]
    fn commands_and_options_complete() {
        assert_eq!(values(&["potluck", "sea"]), ["search"]);
        assert_eq!(
            values(&["potluck", "compl"]),
            ["completions"],
            "hidden commands stay hidden"
        );
        assert!(values(&["potluck", ""]).contains(&"get".to_owned()));
        assert_eq!(values(&["potluck", "get", "--out"]), ["--output"]);
        assert_eq!(values(&["potluck", "transfers", "pa"]), ["pause"]);
        assert_eq!(values(&["potluck", "share", "--wai"]), ["--wait"]);
    }
}
