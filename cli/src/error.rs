//! How a command ends when it does not succeed: the exit code, the stable word, and what is said.
//!
//! Invariant: one table maps every [`Reason`] to an exit code, and the codes never change meaning. Printing is for
//! [`crate::output`].

use std::process::ExitCode;

use potluck_core::{Problem, Reason};

/// How the program ends, as documented for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    /// Failed in a way that no other code describes.
    Failed = 1,
    /// The command line means nothing, or not one thing.
    Usage = 2,
    /// No such file, name, path or transfer, or nobody has it.
    NotFound = 3,
    /// Bytes are not what the id says.
    Verification = 4,
    /// The index or the peer does not answer.
    Unreachable = 5,
    /// Ctrl-C, or SIGTERM.
    Interrupted = 130,
}

impl From<ExitStatus> for ExitCode {
    fn from(exit: ExitStatus) -> Self {
        Self::from(exit as u8)
    }
}

impl ExitStatus {
    /// The code that a reason ends in.
    const fn of(reason: Reason) -> Self {
        match reason {
            Reason::InvalidArgument
            | Reason::InvalidId
            | Reason::InvalidName
            | Reason::InvalidToken
            | Reason::InvalidAddress
            | Reason::InvalidQuery
            | Reason::InvalidPageToken
            | Reason::AmbiguousName => Self::Usage,
            Reason::NotFound | Reason::NoProviders | Reason::PieceNotAvailable => Self::NotFound,
            Reason::VerificationFailed | Reason::IdMismatch => Self::Verification,
            Reason::Unreachable | Reason::NotPotluck | Reason::TimedOut | Reason::ShuttingDown => {
                Self::Unreachable
            }
            _ => Self::Failed,
        }
    }
}

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum CommandError {
    /// Something to tell.
    Failed {
        /// How the program ends.
        exit: ExitStatus,
        /// Stable word for `--json`.
        word: &'static str,
        /// What happened; lower case, no full stop.
        message: String,
        /// What to do next, a line each; for people only.
        hints: Vec<String>,
    },
    /// Everything is told already; only the code remains.
    AlreadyReported(ExitStatus),
    /// Whoever read the output has seen enough, which is success.
    BrokenPipe,
}

impl CommandError {
    /// A command line that means nothing.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Failed {
            exit: ExitStatus::Usage,
            word: "usage",
            message: message.into(),
            hints: Vec::new(),
        }
    }

    /// Stopped from the keyboard; the message says what was left and how to go on.
    pub(crate) fn interrupted(message: impl Into<String>) -> Self {
        Self::Failed {
            exit: ExitStatus::Interrupted,
            word: "interrupted",
            message: message.into(),
            hints: Vec::new(),
        }
    }

    /// A failure with this reason.
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Problem::new(reason, message).into()
    }

    /// Whether it is for this reason.
    pub(crate) fn is(&self, reason: Reason) -> bool {
        matches!(self, Self::Failed { word, .. } if *word == reason.word())
    }

    /// The same with one more hint.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Self::Failed { hints, .. } = &mut self {
            hints.push(hint.into());
        }
        self
    }

    /// A failure of the operating system at a path.
    pub(crate) fn io(doing: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        let reason = match error.kind() {
            std::io::ErrorKind::NotFound => Reason::NotFound,
            std::io::ErrorKind::PermissionDenied => Reason::PermissionDenied,
            _ => Reason::of_exhaustion(error).unwrap_or(Reason::Internal),
        };
        let word = if reason == Reason::Internal {
            "io"
        } else {
            reason.word()
        };
        Self::Failed {
            exit: ExitStatus::of(reason),
            word,
            message: format!("cannot {doing} {}: {}", path.display(), cause(error)),
            hints: Vec::new(),
        }
    }

    /// How the program ends; `None` is success.
    pub(crate) const fn exit(&self) -> Option<ExitStatus> {
        match self {
            Self::Failed { exit, .. } | Self::AlreadyReported(exit) => Some(*exit),
            Self::BrokenPipe => None,
        }
    }
}

/// What the operating system said, without the number that people have no use for.
fn cause(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => text.to_owned(),
    }
}

impl From<Problem> for CommandError {
    fn from(problem: Problem) -> Self {
        let hints = match problem.reason {
            Reason::Unreachable if problem.message.starts_with("the index at") => {
                vec!["start one with `potluck index`, or name one with --index URL".to_owned()]
            }
            _ => Vec::new(),
        };
        Self::Failed {
            exit: ExitStatus::of(problem.reason),
            word: problem.reason.word(),
            message: problem.message,
            hints,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_codes_stay() {
        let code = |reason| ExitStatus::of(reason) as u8;
        assert_eq!(code(Reason::DiskFull), 1);
        assert_eq!(code(Reason::InvalidId), 2);
        assert_eq!(code(Reason::AmbiguousName), 2);
        assert_eq!(code(Reason::NotFound), 3);
        assert_eq!(code(Reason::NoProviders), 3);
        assert_eq!(code(Reason::VerificationFailed), 4);
        assert_eq!(code(Reason::Unreachable), 5);
        assert_eq!(code(Reason::NotPotluck), 5);
        assert_eq!(
            CommandError::interrupted("").exit(),
            Some(ExitStatus::Interrupted)
        );
        assert_eq!(CommandError::BrokenPipe.exit(), None);
    }
}
