//! Starts a run that sends a file to its caller. Such a run is not in the list of downloads.

use std::sync::Arc;

use tokio::sync::watch;

use crate::download::{
    manager::DownloadManager,
    status::{DownloadSpec, DownloadStatus},
    task::{
        reading::{self, FileReader},
        run_context::{RunChannels, RunContext},
    },
};

impl DownloadManager {
    /// Sends the bytes of a file in order while they are downloaded, and keeps nothing. Ignores the
    /// name, the target and the filter of the request.
    pub(crate) fn read(&self, spec: DownloadSpec) -> FileReader {
        let status = DownloadStatus::new(0, &spec);
        let channels = RunChannels {
            limits: watch::channel(status.limits).1,
            named_peers: watch::channel(spec.providers.clone()).1,
            status: watch::Sender::new(status),
            active: watch::Sender::new(None),
        };
        let stop = self.shared.shutdown.child_token();
        let context = RunContext::new(Arc::clone(&self.shared.context), spec, channels, stop);
        let (reader, chunks) = FileReader::new(&context);
        self.shared.context.tracker.spawn(reading::read(context, chunks));
        reader
    }
}
