//! The context of every step of a run.

use std::{sync::Arc, time::Duration};

use potluck_core::{Problem, model::Address};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::download::{
    context::DownloadContext,
    engine::active::ActiveDownload,
    seeding::SeedLimit,
    status::{
        DownloadLimits, DownloadSpec, DownloadState, DownloadStatus, reporter::StatusReporter,
    },
    storage::target::DISK_RETRY,
};

/// The channels between a run and its manager.
#[derive(Debug)]
pub(crate) struct RunChannels {
    /// The current limits; may change during the run.
    pub(crate) limits: watch::Receiver<DownloadLimits>,
    /// Addresses of peers that the user named; may grow during the run.
    pub(crate) named_peers: watch::Receiver<Vec<Address>>,
    /// The status that the run reports.
    pub(crate) status: watch::Sender<DownloadStatus>,
    /// Publishes the running download, so that uploads can read from it.
    pub(crate) active: watch::Sender<Option<Arc<ActiveDownload>>>,
}

/// The context of every step of a run.
#[derive(Debug)]
pub(crate) struct RunContext {
    /// The services of the peer.
    pub(crate) peer: Arc<DownloadContext>,
    /// The request.
    pub(crate) spec: DownloadSpec,
    pub(crate) channels: RunChannels,
    /// Writes the status.
    pub(crate) reporter: StatusReporter,
    /// Stops the run.
    pub(crate) stop: CancellationToken,
}

impl RunContext {
    /// The context of a new run; resets the status.
    pub(crate) fn new(
        peer: Arc<DownloadContext>,
        spec: DownloadSpec,
        channels: RunChannels,
        stop: CancellationToken,
    ) -> Self {
        Self {
            reporter: StatusReporter::new(channels.status.clone(), stop.clone()),
            peer,
            spec,
            channels,
            stop,
        }
    }

    /// Whether the content is announced and shared.
    pub(crate) fn shares(&self) -> bool {
        self.spec.seed != Some(SeedLimit::Never)
    }

    /// Shows the reason why the run cannot continue now.
    pub(crate) fn show_waiting(&self, problem: Problem) {
        self.reporter.set_state(DownloadState::Waiting, Some(problem));
    }

    /// Shows a problem of this machine and waits before the next attempt; false if stopped.
    pub(crate) async fn wait_to_retry(&self, problem: Problem) -> bool {
        self.show_waiting(problem);
        self.pause(DISK_RETRY).await
    }

    /// Waits; false if stopped.
    async fn pause(&self, time: Duration) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(time) => true,
        }
    }
}
