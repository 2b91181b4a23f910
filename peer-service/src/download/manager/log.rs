//! What the log says of downloads: one line for each end, pause and continuation.

use std::time::Duration;

use potluck_core::model::FileKind;

use crate::download::{status::DownloadStatus, task::run::RunEnd};

/// Logs how a run ended after `took`.
pub(super) fn log_end(status: &DownloadStatus, ended: &RunEnd, took: Duration) {
    let DownloadStatus {
        number: transfer,
        name,
        bytes_total: size,
        ..
    } = status;
    let id = status.id.short();
    match ended {
        RunEnd::Done => {
            let (origins, peers): (Vec<_>, Vec<_>) =
                status.peers.iter().partition(|source| source.origin.is_some());
            let peer_bytes: u64 = peers.iter().map(|peer| peer.bytes).sum();
            let origin_bytes: u64 = origins.iter().map(|origin| origin.bytes).sum();
            let received = peer_bytes + origin_bytes;
            let peers = peers.iter().filter(|peer| peer.bytes > 0).count();
            let seconds = took.as_secs_f64();
            tracing::info!(
                transfer,
                name,
                %id,
                kind = status.kind.map_or("unknown", kind_word),
                size,
                seconds = rounded(seconds),
                bytes_per_second = (received as f64 / seconds.max(0.001)) as u64,
                peers,
                peer_bytes,
                origin_bytes,
                "download done"
            );
        }
        RunEnd::Failed(problem) => {
            tracing::warn!(transfer, name, %id, size, %problem, "download failed");
        }
        RunEnd::Stopped => tracing::debug!(transfer, name, %id, size, "download stopped"),
    }
}

/// Logs what the owner did to a download.
pub(super) fn log_command(status: &DownloadStatus, did: &'static str) {
    let (transfer, name, done, size) =
        (status.number, &status.name, status.bytes_done, status.bytes_total);
    tracing::info!(transfer, name, id = %status.id.short(), done, size, "download {did}");
}

const fn kind_word(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Collection => "collection",
        FileKind::Provisional => "provisional",
    }
}

/// Seconds with three decimals.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}
