//! The state of an index and of a peer, as JSON.

use potluck_core::{
    Problem,
    grpc::transport::Endpoint,
    model::{IndexStats, Reachability},
};
use serde_json::{Value, json};

use crate::{
    control::model::{Limits, Status},
    views::transfers::labels,
};

/// The index as JSON: its statistics, or why it does not answer.
pub(crate) fn index_object(endpoint: &Endpoint, stats: &Result<IndexStats, Problem>) -> Value {
    match stats {
        Ok(stats) => json!({
            "url": endpoint.to_string(),
            "reachable": true,
            "peers": stats.peers,
            "files": stats.files,
            "registrations": stats.registrations,
            "watchers": stats.watchers,
            "uptime_seconds": stats.uptime.as_secs(),
            "version": stats.version,
            "store": stats.store,
            "cluster_id": stats.cluster_id.map(|id| id.to_string()),
        }),
        Err(problem) => json!({
            "url": endpoint.to_string(),
            "reachable": false,
            "error": problem.reason.word(),
            "message": problem.message,
        }),
    }
}

/// A peer as JSON.
pub(crate) fn peer_object(status: &Status, control: &Endpoint) -> Value {
    let mut object = json!({
        "peer": status.peer,
        "control": control.to_string(),
        "listening": status.listening.as_ref().map(ToString::to_string),
        "advertised": status.advertised.as_ref().map(ToString::to_string),
        "index": status.index,
        "registered": status.registered,
        "index_error": status.index_error.as_ref().map(|problem| problem.reason.word()),
        "reachable": status.reachability.and_then(Reachability::is_reachable),
        "reachability": status.reachability,
        "download_only": status.is_download_only,
        "items": status.items,
        "files": status.files,
        "bytes": status.bytes,
        "uploaded_bytes": status.uploaded,
        "downloaded_bytes": status.downloaded,
        "transfers": status.transfers,
        "paused_transfers": status.paused,
        "warnings": status.warnings,
        "home": status.home,
        "files_folder": status.files_folder,
        "uptime_seconds": status.uptime.as_secs(),
        "version": status.version,
        "damaged_items": status.damaged_items,
        "previous_peer": status.previous_peer,
    });
    labels(&mut object, &status.labels);
    object
}

/// The limits of a peer as JSON; 0: no limit.
pub(crate) fn limits_object(limits: Limits) -> Value {
    json!({
        "upload_bytes_per_second": limits.upload,
        "download_bytes_per_second": limits.download,
        "upload_slots": limits.slots,
    })
}
