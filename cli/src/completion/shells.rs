//! The scripts for shells, and the answers that they read.
//!
//! A script runs `potluck complete SHELL` with the words of the line. The first line of the answer
//! is `files` if the shell should complete the names of local files, or `words`; then one candidate
//! follows per line, for zsh and fish with a tab and a description. bash gets quoted text, which it
//! inserts as it is; zsh and fish quote candidates themselves.

use std::ffi::OsString;

use clap::ValueEnum;

use crate::completion::{
    engine::Answer,
    words::{bash_replacement, last_word},
};

/// A shell that asks this program for candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompletedShell {
    Bash,
    Zsh,
    Fish,
}

/// The script for a shell.
pub(crate) const fn script(shell: CompletedShell) -> &'static str {
    match shell {
        CompletedShell::Bash => include_str!("scripts/potluck.bash"),
        CompletedShell::Zsh => include_str!("scripts/potluck.zsh"),
        CompletedShell::Fish => include_str!("scripts/potluck.fish"),
    }
}

/// Answers a script. `arguments` are what it passes: bash the line up to the cursor and the part of
/// it that will be replaced, zsh and fish the words up to the cursor. `complete` completes the last
/// of several unquoted words. Returns the lines to print.
pub(crate) fn answer(
    shell: CompletedShell,
    arguments: &[String],
    complete: impl FnOnce(Vec<OsString>) -> Answer,
) -> Vec<String> {
    let words: Vec<String> = match (shell, arguments) {
        (CompletedShell::Bash, [line, _]) => {
            let word = last_word(line);
            let mut words = word.before;
            // `NAME=value potluck …`
            words.drain(..words.iter().take_while(|word| word.contains('=')).count());
            words.push(word.value);
            words
        }
        (CompletedShell::Bash, _) => return Vec::new(),
        (CompletedShell::Zsh | CompletedShell::Fish, words) => {
            let Some((word, before)) = words.split_last() else {
                return Vec::new();
            };
            let mut words = before.to_vec();
            words.push(match shell {
                CompletedShell::Fish => last_word(word).value,
                _ => word.clone(),
            });
            words
        }
    };
    let candidates = match complete(words.into_iter().map(Into::into).collect()) {
        Answer::LocalFiles => return vec!["files".to_owned()],
        Answer::Words(candidates) => candidates,
    };
    let lines = candidates
        .into_iter()
        .filter_map(|candidate| match (shell, arguments) {
            (CompletedShell::Bash, [line, replaced]) => {
                bash_replacement(line, replaced, &candidate.value)
            }
            _ => Some(format!("{}\t{}", candidate.value, candidate.description)),
        });
    std::iter::once("words".to_owned()).chain(lines).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::completion::Candidate;

    fn run(shell: CompletedShell, arguments: &[&str]) -> (Vec<OsString>, Vec<String>) {
        let arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
        let mut seen = Vec::new();
        let lines = answer(shell, &arguments, |words| {
            seen = words;
            Answer::Words(vec![Candidate {
                value: "my file".into(),
                description: "1 B".into(),
            }])
        });
        (seen, lines)
    }

    #[test]
    fn bash_passes_its_line_and_gets_quoted_words() {
        let (words, lines) = run(CompletedShell::Bash, &["A=b potluck get 'my f", "my f"]);
        assert_eq!(words, ["potluck", "get", "my f"]);
        assert_eq!(lines, ["words", "my file"]);
        let (_, lines) = run(CompletedShell::Bash, &["potluck get m", "m"]);
        assert_eq!(lines, ["words", r"my\ file"]);
        assert!(run(CompletedShell::Bash, &["x"]).1.is_empty());
    }

    #[test]
    fn other_shells_get_descriptions() {
        let (words, lines) = run(CompletedShell::Fish, &["potluck", "get", r"my\ f"]);
        assert_eq!(words, ["potluck", "get", "my f"]);
        assert_eq!(lines, ["words", "my file\t1 B"]);
        assert!(run(CompletedShell::Zsh, &[]).1.is_empty());
    }
}
