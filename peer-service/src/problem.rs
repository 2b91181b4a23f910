//! Converts startup errors into problems with messages for the user.

use std::{io, net::SocketAddr};

use potluck_core::{Problem, Reason};

use crate::{home::HomeError, library::LibraryError, store::StoreError};

impl From<HomeError> for Problem {
    fn from(error: HomeError) -> Self {
        let reason = match &error {
            HomeError::Io { source, .. } if Reason::of_exhaustion(source).is_some() => {
                Reason::of_exhaustion(source).unwrap_or(Reason::Internal)
            }
            HomeError::Locked { .. } => Reason::HomeLocked,
            HomeError::Permission { .. } | HomeError::WritableByOthers { .. } => {
                Reason::PermissionDenied
            }
            HomeError::NotAFolder { .. } | HomeError::Token { .. } => Reason::InvalidArgument,
            HomeError::Io { .. } => Reason::Internal,
        };
        Self::new(reason, error.to_string())
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let reason = error.exhaustion().unwrap_or(Reason::StoreUnavailable);
        Self::new(reason, error.to_string())
    }
}

impl From<LibraryError> for Problem {
    fn from(error: LibraryError) -> Self {
        Self::new(Reason::StoreUnavailable, error.to_string())
    }
}

/// The reason why a socket cannot listen on `address`, and the remedy. `flag` is the option that
/// chooses another address.
pub(crate) fn cannot_listen(address: SocketAddr, flag: &str, error: &io::Error) -> Problem {
    match error.kind() {
        io::ErrorKind::AddrInUse => Problem::new(
            Reason::AddressInUse,
            format!(
                "{address} is in use by another program, perhaps another peer: stop it, or choose \
                 another port with {flag}"
            ),
        ),
        io::ErrorKind::PermissionDenied => Problem::new(
            Reason::PermissionDenied,
            format!("this user may not listen on {address}: choose a port above 1023 with {flag}"),
        ),
        io::ErrorKind::AddrNotAvailable => Problem::new(
            Reason::InvalidAddress,
            format!("{address} is not an address of this machine: choose one with {flag}"),
        ),
        _ => Problem::new(
            Reason::InvalidAddress,
            format!("cannot listen on {address}: {error}"),
        ),
    }
}
