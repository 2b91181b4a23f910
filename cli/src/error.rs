//! How a command fails: the exit code, the stable error word, and the message.
//!
//! Invariants: [`ExitStatus`] maps every [`Reason`] to an exit code, and a code never changes its
//! meaning. Printing is up to [`crate::output`].

use std::process::ExitCode;

use potluck_core::{Problem, Reason};

/// Exit codes, as documented for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    /// A failure that no other code describes.
    Failed = 1,
    /// The command line is invalid or ambiguous.
    Usage = 2,
    /// No such file, name, path or transfer, or no provider.
    NotFound = 3,
    /// The content does not match the id.
    Verification = 4,
    /// The index or the peer does not answer.
    Unreachable = 5,
    /// Stopped by Ctrl-C, SIGTERM or SIGHUP.
    Interrupted = 130,
}

impl From<ExitStatus> for ExitCode {
    fn from(exit: ExitStatus) -> Self {
        Self::from(exit as u8)
    }
}

impl ExitStatus {
    /// The exit code for a reason.
    pub(crate) const fn of(reason: Reason) -> Self {
        match reason {
            Reason::InvalidArgument
            | Reason::InvalidId
            | Reason::InvalidName
            | Reason::InvalidToken
            | Reason::InvalidAddress
            | Reason::InvalidQuery
            | Reason::InvalidPageToken
            | Reason::InvalidSigningRequest
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

/// The reason why a command did not succeed.
#[derive(Debug)]
pub(crate) enum CommandError {
    /// A failure to report.
    Failed {
        /// The exit code.
        exit: ExitStatus,
        /// Stable error word for `--json`.
        word: &'static str,
        /// The argument that failed, if the command has several.
        target: Option<String>,
        /// What happened; lower case, no full stop.
        message: String,
        /// What to do next, one line each. Not printed with `--json`.
        hints: Vec<String>,
    },
    /// Everything was printed already; only the exit code remains.
    AlreadyReported(ExitStatus),
    /// The reader closed the pipe, which counts as success.
    BrokenPipe,
}

impl CommandError {
    /// An invalid command line.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Failed {
            exit: ExitStatus::Usage,
            word: "usage",
            target: None,
            message: message.into(),
            hints: Vec::new(),
        }
    }

    /// Stopped by a signal. The message reports what was kept and how to resume.
    pub(crate) fn interrupted(message: impl Into<String>) -> Self {
        Self::Failed {
            exit: ExitStatus::Interrupted,
            word: "interrupted",
            target: None,
            message: message.into(),
            hints: Vec::new(),
        }
    }

    /// A failure with this reason.
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Problem::new(reason, message).into()
    }

    /// Whether the failure has this reason.
    pub(crate) fn is(&self, reason: Reason) -> bool {
        matches!(self, Self::Failed { word, .. } if *word == reason.word())
    }

    /// Adds a hint.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Self::Failed { hints, .. } = &mut self {
            hints.push(hint.into());
        }
        self
    }

    /// Names the argument that failed, for a command with several.
    #[must_use]
    pub(crate) fn of_target(mut self, name: impl Into<String>) -> Self {
        if let Self::Failed { target, .. } = &mut self {
            *target = Some(name.into());
        }
        self
    }

    /// Removes the hints that are in `seen`, and adds the others to it.
    #[must_use]
    pub(crate) fn without_seen_hints(mut self, seen: &mut Vec<String>) -> Self {
        if let Self::Failed { hints, .. } = &mut self {
            hints.retain(|hint| !seen.contains(hint));
            seen.extend_from_slice(hints);
        }
        self
    }

    /// An operating system error at a path; `doing` completes "cannot …".
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
            target: None,
            message: format!("cannot {doing} {}: {}", path.display(), cause(error)),
            hints: Vec::new(),
        }
    }

    /// The exit code; `None` means success.
    pub(crate) const fn exit(&self) -> Option<ExitStatus> {
        match self {
            Self::Failed { exit, .. } | Self::AlreadyReported(exit) => Some(*exit),
            Self::BrokenPipe => None,
        }
    }
}

/// The operating system's message, without the error number.
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
                vec![
                    "start one with `potluck index`, or choose one with --index HOST:PORT"
                        .to_owned(),
                ]
            }
            _ => Vec::new(),
        };
        Self::Failed {
            exit: ExitStatus::of(problem.reason),
            word: problem.reason.word(),
            target: None,
            message: problem.message,
            hints,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_as_documented() {
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
