//! The context of every step of a run.

use std::{path::Path, sync::Arc, time::Duration};

use potluck_core::{Problem, Reason, model::Address};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    download::{
        context::DownloadContext,
        engine::active::ActiveDownload,
        origin::{source::OriginSource, spec::OriginSpec},
        seeding::SeedLimit,
        status::{
            DownloadLimits, DownloadSpec, DownloadState, DownloadStatus, reporter::StatusReporter,
        },
        storage::target::DISK_RETRY,
    },
    fs::blocking::blocking,
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
        let may_be_shared = self.spec.origin.as_ref().is_none_or(OriginSpec::may_be_shared);
        self.spec.seed != Some(SeedLimit::Never) && may_be_shared
    }

    /// The origin to read from, if the request names one.
    ///
    /// # Errors
    /// If no HTTP client can be set up.
    pub(crate) fn origin_source(&self) -> Result<Option<Arc<OriginSource>>, Problem> {
        let Some(origin) = self.spec.origin.clone() else {
            return Ok(None);
        };
        let is_provisional = self.spec.provisional_origin().is_some();
        let client = self.peer.origins.client()?;
        Ok(Some(OriginSource::new(origin, client, is_provisional)))
    }

    /// Shows the reason why the run cannot continue now.
    pub(crate) fn show_waiting(&self, problem: Problem) {
        self.reporter.set_state(DownloadState::Waiting, Some(problem));
    }

    /// Removes entries of the cache if the disk at `near` is full; whether anything was removed.
    pub(crate) async fn make_room(&self, problem: &Problem, near: &Path, bytes: u64) -> bool {
        if problem.reason != Reason::DiskFull {
            return false;
        }
        let (cache, near) = (self.peer.cache.clone(), near.to_owned());
        let freed = blocking(move || cache.free_disk(&near, bytes)).await;
        freed.is_ok_and(|freed| freed > 0)
    }

    /// Shows a problem of this machine and waits before the next attempt; false if stopped. Tries
    /// again at once if the disk is full and something could be removed from the cache.
    pub(crate) async fn wait_to_retry(&self, problem: Problem) -> bool {
        let (path, missing) = {
            let status = self.channels.status.borrow();
            (
                status.path.clone(),
                status.bytes_total.saturating_sub(status.bytes_done),
            )
        };
        if self.make_room(&problem, &path, missing).await {
            return !self.stop.is_cancelled();
        }
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
