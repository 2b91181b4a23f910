//! The output of a command: results go to stdout, everything else to stderr, and progress only to a
//! terminal.
//!
//! Invariants:
//! - A closed pipe counts as success ([`CommandError::BrokenPipe`]).
//! - With `--json`, stdout has one object per line, and stderr has one object per error.
//! - A line that is printed while progress is drawn does not corrupt it.

pub(crate) mod draw;
pub(crate) mod ids;
pub(crate) mod progress;
pub(crate) mod table;
pub(crate) mod terminal;
pub(crate) mod text;

use std::{
    fmt::Display,
    io::{self, Write},
};

use console::{Term, style};
use indicatif::{MultiProgress, ProgressDrawTarget};
use potluck_core::FileId;
use serde::Serialize;

use crate::{error::CommandError, output::ids::IdFormat};

/// Redraws per second: smooth, and cheap for a slow terminal.
const REDRAWS: u8 = 15;

/// The amount and format of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct OutputFlags {
    /// Print results and errors as JSON.
    pub(crate) json: bool,
    /// Print only results and errors.
    pub(crate) quiet: bool,
    /// Print ids with all digits.
    pub(crate) full_ids: bool,
    /// Print whole lists.
    pub(crate) verbose: bool,
}

/// The output of one run. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    flags: OutputFlags,
    bars: MultiProgress,
}

impl Output {
    /// Output for these flags.
    pub(crate) fn new(flags: OutputFlags) -> Self {
        let draws = Term::stderr().is_term() && !flags.json && !flags.quiet;
        let bars = MultiProgress::with_draw_target(match draws {
            true => ProgressDrawTarget::stderr_with_hz(REDRAWS),
            false => ProgressDrawTarget::hidden(),
        });
        Self { flags, bars }
    }

    /// The output for a prompt line with these flags, in addition to the flags of the session.
    pub(crate) fn with_flags(&self, flags: OutputFlags) -> Self {
        let both = OutputFlags {
            json: self.flags.json || flags.json,
            quiet: self.flags.quiet || flags.quiet,
            full_ids: self.flags.full_ids || flags.full_ids,
            verbose: self.flags.verbose || flags.verbose,
        };
        match both == self.flags {
            true => self.clone(),
            false => Self::new(both),
        }
    }

    /// Whether results are printed as JSON.
    pub(crate) const fn is_json(&self) -> bool {
        self.flags.json
    }

    /// Whether only results and errors are printed.
    pub(crate) const fn is_quiet(&self) -> bool {
        self.flags.quiet
    }

    /// Whether whole lists are printed.
    pub(crate) const fn is_verbose(&self) -> bool {
        self.flags.verbose
    }

    /// How to print these ids in one table.
    pub(crate) fn id_format<'a>(&self, ids: impl IntoIterator<Item = &'a FileId>) -> IdFormat {
        match self.flags.full_ids {
            true => IdFormat::FULL,
            false => IdFormat::shortest(ids),
        }
    }

    /// Where progress is drawn. Hidden if stderr is not a terminal, or with `--json` or `-q`.
    pub(crate) const fn bars(&self) -> &MultiProgress {
        &self.bars
    }

    /// Whether progress is visible.
    pub(crate) fn shows_progress(&self) -> bool {
        !self.bars.is_hidden()
    }

    /// Width of the terminal on stdout, in columns; `None` if stdout is not a terminal.
    pub(crate) fn width(&self) -> Option<usize> {
        let stdout = Term::stdout();
        stdout.is_term().then(|| usize::from(stdout.size().1))
    }

    /// Prints one line of the result.
    pub(crate) fn print_line(&self, line: impl Display) -> Result<(), CommandError> {
        self.bars.suspend(|| {
            let mut stdout = io::stdout().lock();
            check_written(writeln!(stdout, "{line}").and_then(|()| stdout.flush()))
        })
    }

    /// Prints several lines of the result.
    pub(crate) fn print_lines(
        &self,
        lines: impl IntoIterator<Item = String>,
    ) -> Result<(), CommandError> {
        self.bars.suspend(|| {
            let mut stdout = io::stdout().lock();
            let all = lines.into_iter().try_for_each(|line| writeln!(stdout, "{line}"));
            check_written(all.and_then(|()| stdout.flush()))
        })
    }

    /// Prints a result object on one line. The object is serialized directly to stdout, so that a
    /// large one is never held in memory as text.
    pub(crate) fn print_object(&self, object: &impl Serialize) -> Result<(), CommandError> {
        self.bars.suspend(|| {
            let mut stdout = io::BufWriter::new(io::stdout().lock());
            let mut serializer =
                serde_json::Serializer::with_formatter(&mut stdout, EscapingFormatter);
            let written = object.serialize(&mut serializer).map_err(io::Error::from);
            check_written(
                written
                    .and_then(|()| stdout.write_all(b"\n"))
                    .and_then(|()| stdout.flush()),
            )
        })
    }

    /// Prints a note to stderr; suppressed by `--json` and `-q`.
    pub(crate) fn note(&self, line: impl Display) {
        if !self.flags.json && !self.flags.quiet {
            self.to_stderr(&wrapped(&line.to_string(), ""));
        }
    }

    /// Prints a warning to stderr; suppressed by `--json`.
    pub(crate) fn warn(&self, line: impl Display) {
        if !self.flags.json {
            let head = style("warning:").yellow().bold().for_stderr();
            self.to_stderr(&wrapped(&format!("{head} {line}"), ""));
        }
    }

    /// Prints why the command failed.
    pub(crate) fn print_error(&self, error: &CommandError) {
        let CommandError::Failed {
            word,
            target,
            message,
            hints,
            exit,
        } = error
        else {
            return;
        };
        if self.flags.json {
            let mut object = serde_json::json!({ "error": word, "message": message });
            if let Some(target) = target {
                object["target"] = target.as_str().into();
            }
            self.to_stderr(&json_line(&object));
            return;
        }
        let head = match exit {
            crate::error::ExitStatus::Interrupted => style("stopped:").yellow(),
            _ => style("error:").red(),
        };
        let target = target
            .as_ref()
            .map(|target| format!("{}: ", text::escape(target)));
        let line = format!(
            "{} {}{}",
            head.bold().for_stderr(),
            target.unwrap_or_default(),
            text::escape(message)
        );
        self.to_stderr(&wrapped(&line, ""));
        for hint in hints {
            let line = format!("  {} {}", style("→").dim().for_stderr(), text::escape(hint));
            self.to_stderr(&wrapped(&line, "    "));
        }
    }

    fn to_stderr(&self, text: &str) {
        // Ignore a failed write: stderr may be closed.
        self.bars
            .suspend(|| drop(writeln!(io::stderr().lock(), "{text}")));
    }
}

/// The text, wrapped at spaces if stderr is a terminal; lines after the first begin with `indent`.
fn wrapped(text: &str, indent: &str) -> String {
    match Term::stderr().size_checked() {
        Some((_, columns)) => text::wrap(text, usize::from(columns), indent),
        None => text.to_owned(),
    }
}

/// Writes log lines to stderr without corrupting the progress.
#[derive(Debug, Clone)]
pub(crate) struct LogWriter(pub(crate) MultiProgress);

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().lock().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

fn check_written(written: io::Result<()>) -> Result<(), CommandError> {
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => CommandError::BrokenPipe,
        _ => CommandError::new(
            potluck_core::Reason::Internal,
            format!("cannot write to standard output: {error}"),
        ),
    })
}

/// Serializes an object to one line of JSON that is safe on a terminal: characters for which
/// [`text::is_hostile`] is true are escaped.
pub(crate) fn json_line(object: &impl Serialize) -> String {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, EscapingFormatter);
    object
        .serialize(&mut serializer)
        .expect("results are maps with text keys");
    String::from_utf8(bytes).expect("JSON is UTF-8")
}

/// Compact JSON that also escapes the hostile characters that JSON itself does not escape.
struct EscapingFormatter;

impl serde_json::ser::Formatter for EscapingFormatter {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|&(_, c)| text::is_hostile(c)) {
            writer.write_all(&rest.as_bytes()[..at])?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = &rest[at + c.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_its_meaning_and_is_safe_on_a_terminal() {
        let name = "a\u{9b}31m\x1b[2J\u{202e}\u{e0041}ü\u{7f}";
        let line = json_line(&serde_json::json!({ "name": name }));
        assert!(!line.chars().any(text::is_hostile), "{line}");
        let back: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(back["name"], name);
    }
}
