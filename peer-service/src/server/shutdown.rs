//! Stops a peer in order; the module above lists the steps.

use std::{path::PathBuf, time::Duration};

use potluck_core::{grpc::transport::Health, monitoring::Readiness};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::home::Home;

/// How long open calls may take to finish at shutdown. Short, because downloaders resume from other
/// peers.
const CALL_GRACE: Duration = Duration::from_secs(3);

/// How long the remaining tasks may take after [`CALL_GRACE`]; this includes unregistering from the
/// index.
const TASK_GRACE: Duration = Duration::from_secs(10);

/// The signals of a shutdown, in the order in which they are given. Servers keep running a little
/// longer than the tasks that do work, so that they can report the shutdown.
#[derive(Debug, Clone)]
pub(super) struct ShutdownSignals {
    /// The peer must stop.
    pub(super) requested: CancellationToken,
    /// The tasks that do work must stop.
    pub(super) stop_work: CancellationToken,
    /// Servers must not accept further connections.
    pub(super) stop_accepting: CancellationToken,
    /// Open connections must be closed.
    pub(super) close_connections: CancellationToken,
}

impl ShutdownSignals {
    pub(super) fn new(requested: CancellationToken) -> Self {
        Self {
            requested,
            stop_work: CancellationToken::new(),
            stop_accepting: CancellationToken::new(),
            close_connections: CancellationToken::new(),
        }
    }
}

/// Waits for the shutdown of a running peer, and carries it out.
pub(super) struct Supervisor {
    pub(super) signals: ShutdownSignals,
    /// The servers, and the tasks that only serve them.
    pub(super) servers: TaskTracker,
    /// All other tasks.
    pub(super) tasks: TaskTracker,
    pub(super) healths: Vec<Health>,
    pub(super) readiness: Readiness,
    /// The control socket, to be removed.
    pub(super) socket: Option<PathBuf>,
    /// Unlocked last.
    pub(super) home: Home,
}

impl Supervisor {
    /// Runs until the peer has stopped.
    pub(super) async fn run(self) {
        self.signals.requested.cancelled().await;
        tracing::info!("peer stopping");
        self.readiness.set(false);
        for health in &self.healths {
            health.set_not_serving().await;
        }
        self.signals.stop_work.cancel();
        self.signals.stop_accepting.cancel();
        self.servers.close();
        if tokio::time::timeout(CALL_GRACE, self.servers.wait())
            .await
            .is_err()
        {
            tracing::debug!("calls are still open: closes their connections");
        }
        self.signals.close_connections.cancel();
        self.tasks.close();
        if tokio::time::timeout(TASK_GRACE, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                "some tasks did not end in time; downloads will resume from the verified data"
            );
        }
        if let Some(socket) = self.socket {
            // The home is still locked, so this cannot be another peer's socket.
            let _ = std::fs::remove_file(socket);
        }
        drop(self.home);
        tracing::info!("peer stopped");
    }
}
