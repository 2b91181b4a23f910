//! Completion as in a shell, and hints: usage or history in grey.

use std::{
    borrow::Cow,
    ffi::OsString,
    sync::{Arc, Mutex, PoisonError},
};

use rustyline::{
    Context, Helper, Result,
    completion::{Completer, FilenameCompleter, Pair},
    highlight::Highlighter,
    hint::{Hinter, HistoryHinter},
    validate::Validator,
};

use crate::{
    completion::{self, Answer, CandidateFinder},
    prompt::line,
};

/// Arguments of each command, shown as a hint until the user types one.
const ARGUMENTS: [(&str, &str); 13] = [
    ("share", "PATH…"),
    ("search", "WORDS"),
    ("query", "ID|NAME|sha256:HEX"),
    ("get", "ID|NAME|sha256:HEX… [-o PATH]"),
    ("unshare", "ID|PATH"),
    ("transfers", "[pause|resume|cancel|adjust NUMBER]"),
    ("why", "ID|NUMBER"),
    ("limits", "[--upload RATE] [--download RATE] [--slots N]"),
    ("id", "PATH…"),
    ("verify", "ID PATH"),
    ("check", "PATH…|--all [--rate RATE]"),
    ("help", "[COMMAND]"),
    ("status", ""),
];

/// Finds candidates while a session runs; `None` before and after it.
pub(crate) type SessionFinder = Arc<Mutex<Option<CandidateFinder>>>;

/// Completes and hints a line.
pub(crate) struct Assistant {
    finder: SessionFinder,
    files: FilenameCompleter,
    history: HistoryHinter,
}

impl Assistant {
    pub(crate) fn new(finder: SessionFinder) -> Self {
        Self {
            finder,
            files: FilenameCompleter::new(),
            history: HistoryHinter::new(),
        }
    }
}

impl Completer for Assistant {
    type Candidate = Pair;

    fn complete(&self, text: &str, at: usize, context: &Context<'_>) -> Result<(usize, Vec<Pair>)> {
        let word = completion::last_word(&text[..at]);
        match answer(word.before, word.value, &self.finder) {
            Answer::LocalFiles => self.files.complete(text, at, context),
            Answer::Words(candidates) => {
                let pair = |candidate: completion::Candidate| Pair {
                    replacement: format!("{} ", completion::backslash_escaped(&candidate.value)),
                    display: candidate.value,
                };
                Ok((word.start, candidates.into_iter().map(pair).collect()))
            }
        }
    }
}

/// The completions of `word`, after the words before it.
fn answer(mut before: Vec<String>, word: String, finder: &SessionFinder) -> Answer {
    // As in the shell: `potluck get`. And `help get`, which takes the name of a command.
    if before
        .first()
        .is_some_and(|first| first == "potluck" || first == "help")
    {
        before.remove(0);
    }
    let is_first = before.is_empty();
    before.push(word);
    let words: Vec<OsString> = before.iter().map(Into::into).collect();
    // The lock is held meanwhile, so that a session that ends waits for its peer to be released.
    let finder = finder.lock().unwrap_or_else(PoisonError::into_inner);
    let line_finder = finder.as_ref().map(|finder| finder.for_line(&words));
    let find = move |source, prefix: &str| {
        let find = |finder: &CandidateFinder| finder.find(source, prefix);
        line_finder.as_ref().map(find).unwrap_or_default()
    };
    let mut answer = completion::complete(line::command(), words, Arc::new(find));
    if let Answer::Words(candidates) = &mut answer
        && is_first
        && !before[0].is_empty()
        && "help".starts_with(&before[0])
    {
        candidates.push(completion::Candidate {
            value: "help".to_owned(),
            description: String::new(),
        });
    }
    answer
}

impl Hinter for Assistant {
    type Hint = String;

    fn hint(&self, text: &str, at: usize, context: &Context<'_>) -> Option<String> {
        if at < text.len() || text.is_empty() {
            return None;
        }
        usage_hint(text).or_else(|| self.history.hint(text, at, context))
    }
}

/// The usage hint if the line consists of a command name only.
fn usage_hint(text: &str) -> Option<String> {
    let (_, usage) = ARGUMENTS.iter().find(|(verb, _)| *verb == text.trim())?;
    let gap = if text.ends_with(' ') { "" } else { " " };
    (!usage.is_empty()).then(|| format!("{gap}{usage}"))
}

impl Highlighter for Assistant {
    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        console::style(hint).dim().to_string().into()
    }
}

impl Validator for Assistant {}

impl Helper for Assistant {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_completed_and_have_usage_hints() {
        let values = |line: &str| {
            let word = completion::last_word(line);
            match answer(word.before, word.value, &SessionFinder::default()) {
                Answer::Words(found) => found.into_iter().map(|found| found.value).collect(),
                Answer::LocalFiles => vec!["FILES".to_owned()],
            }
        };
        assert_eq!(values("se"), ["search"]);
        assert_eq!(values("potluck se"), ["search"]);
        assert_eq!(values("help se"), ["search"]);
        assert_eq!(values("hel"), ["help"]);
        assert_eq!(values("share "), ["FILES"]);
        assert_eq!(values("get x --det"), ["--detach"]);
        assert_eq!(
            usage_hint("get").as_deref(),
            Some(" ID|NAME|sha256:HEX… [-o PATH]")
        );
        assert_eq!(
            usage_hint("get "),
            Some("ID|NAME|sha256:HEX… [-o PATH]".to_owned())
        );
        assert_eq!(usage_hint("get x"), None);
    }

    #[test]
    fn usage_hints_are_for_existing_verbs() {
        let verbs: Vec<_> = line::verbs().collect();
        assert!(
            ARGUMENTS
                .iter()
                .all(|(verb, _)| verbs.iter().any(|known| known == verb))
        );
    }
}
