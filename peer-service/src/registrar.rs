//! Keeps the index told of what this peer has.

use std::time::Duration;

use potluck_core::{
    Problem, Token,
    index_client::{Address, IndexClient},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::holdings::Holdings;

/// How things stand with the index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistrarStatus {
    /// Whether the index holds this peer's lease.
    pub registered: bool,
    /// The address it gives to others.
    pub advertised: Option<Address>,
    /// Why not, or what it refused.
    pub error: Option<Problem>,
    /// How many files it holds for this peer, as of its last answer.
    pub file_count: u64,
}

/// A running registrar. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registrar {}

impl Registrar {
    /// Starts registering what is in `holdings` until `shutdown`, then takes everything back. `ttl`: the index's own unless given.
    pub fn start(
        _client: IndexClient,
        _token: Token,
        _address: Address,
        _ttl: Option<Duration>,
        _holdings: Holdings,
        _shutdown: CancellationToken,
        _tracker: &TaskTracker,
    ) -> Self {
        Self {}
    }

    /// How things stand.
    pub fn status(&self) -> RegistrarStatus {
        RegistrarStatus::default()
    }

    /// Waits until the index has acknowledged everything that is in the holdings now.
    ///
    /// # Errors
    /// The last problem with the index, or `TIMED_OUT`.
    pub async fn synced(&self, _timeout: Duration) -> Result<(), Problem> {
        Ok(())
    }
}
