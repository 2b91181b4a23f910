//! Why credentials cannot be used, and what to do.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{Problem, Reason, network::revocations::RevocationsError};

/// How long after its end a certificate may still be renewed: a machine that was off for a month
/// comes back by itself.
pub const RENEWABLE_AFTER_EXPIRY: Duration = Duration::from_secs(30 * 24 * 3600);

/// A duration for people, in its largest unit.
fn time(duration: &Duration) -> String {
    let seconds = duration.as_secs();
    let units = [(24 * 3600, "day"), (3600, "hour"), (60, "minute"), (1, "second")];
    let found = units.into_iter().find(|(unit, _)| seconds >= *unit);
    let (unit, name) = found.unwrap_or((1, "second"));
    match seconds / unit {
        1 => format!("1 {name}"),
        count => format!("{count} {name}s"),
    }
}

/// The reason why credentials cannot be used. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The folder holds no credentials.
    #[error(
        "{} holds no credentials: join a network with `potluck network join CODE`",
        folder.display()
    )]
    Missing {
        /// The folder.
        folder: PathBuf,
    },
    /// This user has no configuration folder.
    #[error("this user has no configuration folder: give --credentials DIR")]
    NoFolder,
    /// The machine is a member of a network already.
    #[error(
        "this machine is a member of the network `{name}` already ({}): leave it with `potluck \
         network leave`, or give another folder with --credentials", folder.display()
    )]
    Exists {
        /// The folder.
        folder: PathBuf,
        /// The network's name.
        name: String,
    },
    /// A file is damaged.
    #[error(
        "{} is damaged: {source}; remove {} and join again with a new code",
        path.display(), path.parent().unwrap_or(path).display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file of a PKI of one's own cannot be used.
    #[error("cannot use {} for TLS: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A certificate is for another key.
    #[error(
        "{} is for another key: remove it, so that the next start asks for a new one",
        path.display()
    )]
    OtherKey {
        /// The certificate.
        path: PathBuf,
    },
    /// A certificate is of another network.
    #[error(
        "{} was not issued by this network: remove it, or use the credentials of the network that \
         issued it with --credentials", path.display()
    )]
    OtherNetwork {
        /// The certificate.
        path: PathBuf,
    },
    /// There is no certificate yet.
    #[error("{} does not exist yet: the index issues it when it can be reached", path.display())]
    NoCertificate {
        /// The certificate.
        path: PathBuf,
    },
    /// A certificate has expired.
    #[error(
        "the certificate {} expired {} ago: {}", path.display(), time(since), match *since {
            since if since < RENEWABLE_AFTER_EXPIRY =>
                "it is renewed by itself as soon as the index can be reached",
            _ => "join again with a new code from an admin (`potluck network invite`)",
        }
    )]
    Expired {
        /// The certificate.
        path: PathBuf,
        /// How long ago.
        since: Duration,
    },
    /// A certificate is not valid yet.
    #[error(
        "the certificate {} is valid only in {}: set this machine's clock", path.display(),
        time(starts_in)
    )]
    NotYetValid {
        /// The certificate.
        path: PathBuf,
        /// How long until it is valid.
        starts_in: Duration,
    },
    /// A list of revocations was refused.
    #[error(transparent)]
    Revocations(#[from] RevocationsError),
    /// The system failed.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl CredentialsError {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            ErrorKind::InvalidData | ErrorKind::FileTooLarge => Self::Damaged { path, source },
            _ => Self::Io { path, source },
        }
    }
}

impl From<CredentialsError> for Problem {
    fn from(error: CredentialsError) -> Self {
        let reason = match &error {
            CredentialsError::Expired { .. }
            | CredentialsError::NotYetValid { .. }
            | CredentialsError::NoCertificate { .. } => Reason::Unauthenticated,
            CredentialsError::Io { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
                Reason::PermissionDenied
            }
            CredentialsError::Io { .. } => Reason::Internal,
            _ => Reason::InvalidArgument,
        };
        Self::new(reason, error.to_string())
    }
}
