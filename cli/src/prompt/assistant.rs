//! Completion and hints: command names at the start of a line, paths after it, and usage or history
//! in grey.

use std::borrow::Cow;

use rustyline::{
    Context, Helper, Result,
    completion::{Completer, FilenameCompleter, Pair},
    highlight::Highlighter,
    hint::{Hinter, HistoryHinter},
    validate::Validator,
};

use crate::prompt::line;

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

/// Completes and hints a line.
pub(crate) struct Assistant {
    verbs: Vec<String>,
    files: FilenameCompleter,
    history: HistoryHinter,
}

impl Assistant {
    pub(crate) fn new() -> Self {
        Self {
            verbs: line::verbs().collect(),
            files: FilenameCompleter::new(),
            history: HistoryHinter::new(),
        }
    }
}

impl Completer for Assistant {
    type Candidate = Pair;

    fn complete(&self, text: &str, at: usize, context: &Context<'_>) -> Result<(usize, Vec<Pair>)> {
        let before = &text[..at];
        let start = before.len() - before.trim_start().len();
        let word = &before[start..];
        if word.contains(char::is_whitespace) {
            return self.files.complete(text, at, context);
        }
        Ok((start, verbs_with_prefix(&self.verbs, word)))
    }
}

fn verbs_with_prefix(verbs: &[String], word: &str) -> Vec<Pair> {
    let fits = verbs.iter().filter(|verb| verb.starts_with(word));
    fits.map(|verb| Pair {
        display: verb.clone(),
        replacement: format!("{verb} "),
    })
    .collect()
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
    fn verbs_are_completed_and_have_usage_hints() {
        let verbs: Vec<_> = line::verbs().collect();
        let found: Vec<_> = verbs_with_prefix(&verbs, "se")
            .into_iter()
            .map(|pair| pair.replacement)
            .collect();
        assert_eq!(found, ["search "]);
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
