//! The home that commands and `potluck peer` share by default.

use std::path::PathBuf;

use potluck_core::Problem;
use potluck_peer::options::DEFAULT_LISTEN;

/// File name of the control socket in a home.
pub(crate) const CONTROL_SOCKET: &str = "control.sock";

/// Environment variable for the peer's home, shared with `potluck peer`.
const HOME_VARIABLE: &str = "POTLUCK_PEER_HOME";

/// The home that commands and `potluck peer` share by default.
///
/// # Errors
/// If the user has no data directory.
pub(crate) fn default_home() -> Result<PathBuf, Problem> {
    match std::env::var_os(HOME_VARIABLE).filter(|home| !home.is_empty()) {
        Some(home) => Ok(home.into()),
        None => potluck_peer::options::default_home(DEFAULT_LISTEN.port()),
    }
}
