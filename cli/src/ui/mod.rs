//! The page in a browser for the owner of a peer, served on loopback by `potluck ui`.
//!
//! | module | responsibility |
//! |---|---|
//! | [`server`] | accepts connections on loopback |
//! | [`session`] | the one-time token, and the cookie that replaces it |
//! | [`guard`] | refuses requests of other sites, and sets the headers of every answer |
//! | [`routes`] | the paths |
//! | [`api`] | what the page asks for and changes |
//! | [`events`] | the stream of the peer's state |
//! | [`assets`] | the files of the page |
//!
//! The page shows what the control service of the peer and the index report, as the same JSON that
//! the commands print. It holds no state of its own.
//!
//! Invariants:
//!
//! - Only loopback is served, and only a request with the session's cookie gets anything of the peer.
//! - A browser runs nothing but the files of the page: no inline scripts, nothing from elsewhere.
//!
//! Non-goals: control from another machine, which `ssh -L` gives; files of this machine, which the
//! page can neither share nor read.

mod api;
mod assets;
mod events;
mod guard;
mod routes;
mod server;
mod session;

use potluck_core::{Problem, index_client::IndexClient};
use tokio_util::sync::CancellationToken;

pub(crate) use self::server::PageServer;
use crate::control::ControlClient;

/// What the page shows: a peer and the index that it uses.
#[derive(Debug, Clone)]
pub(crate) struct PageSources {
    /// The peer.
    pub(crate) peer: ControlClient,
    /// The index; `None` for a peer without one.
    pub(crate) index: Option<IndexClient>,
    /// Where the peer stores downloads if it runs in this process; `None`: it chooses.
    pub(crate) target: Option<std::path::PathBuf>,
    /// Cancelled when the page is no longer served.
    pub(crate) stop: CancellationToken,
}

/// A failed call of the page.
type ApiResult<T> = Result<T, ApiError>;

/// The answer to a failed call: what happened, as JSON.
#[derive(Debug)]
struct ApiError(Problem);

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}
