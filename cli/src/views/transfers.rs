//! Transfers as JSON, and their limits as text.

use std::time::UNIX_EPOCH;

use potluck_core::model::{LabelValue, Labels};
use serde_json::{Value, json};

use crate::{
    control::model::{ContentMap, Explanation, Transfer, TransferPeer},
    output::text,
};

/// A transfer as JSON.
pub(crate) fn object(transfer: &Transfer) -> Value {
    json!({
        "transfer": transfer.number,
        "id": transfer.file,
        "name": transfer.name,
        "kind": transfer.kind,
        "path": transfer.path,
        "state": transfer.state,
        "seeding": transfer.is_seeding,
        "uploaded_bytes": transfer.uploaded,
        "chosen_files": transfer.chosen_files.map(|(chosen, _)| chosen),
        "collection_files": transfer.chosen_files.map(|(_, all)| all),
        "bytes": transfer.done,
        "total": transfer.total,
        "resumed_bytes": transfer.resumed,
        "copied_bytes": transfer.copied,
        "unverified_bytes": transfer.unverified,
        "bytes_per_second": transfer.bytes_per_second,
        "max_bytes_per_second": transfer.limit,
        "priority": transfer.priority,
        "seconds": transfer.elapsed.as_secs_f64(),
        "created_unix_seconds": transfer
            .created_at
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
            .map(|since| since.as_secs()),
        "units": transfer.units_done,
        "units_total": transfer.units_total,
        "sources": transfer.peers.iter().map(peer_object).collect::<Vec<_>>(),
        "error": transfer.error.as_ref().map(|problem| problem.reason.word()),
        "message": transfer.error.as_ref().map(|problem| problem.message.as_str()),
        "sharing_error": transfer.sharing_error.as_ref().map(|problem| problem.reason.word()),
        "sharing_message": transfer.sharing_error.as_ref().map(|problem| problem.message.as_str()),
    })
}

/// A transfer with the reasons for its state, as JSON.
pub(crate) fn explanation_object(explanation: &Explanation) -> Value {
    let mut object = object(&explanation.transfer);
    object["missing"] = json!(explanation.missing);
    object["findings"] = json!(explanation.findings);
    object
}

/// A transfer with the reasons for its state and the picture of its content, as JSON.
pub(crate) fn pictured_object(explanation: &Explanation) -> Value {
    let mut object = explanation_object(explanation);
    object["map"] = map_object(&explanation.map);
    object
}

/// The picture of a transfer's content as JSON: lists with a number from 0 to 255 for each cell, and
/// the addresses of the senders.
fn map_object(map: &ContentMap) -> Value {
    json!({
        "verified": &map.verified[..],
        "in_flight": &map.in_flight[..],
        "providers": &map.providers[..],
        "sender": &map.sender[..],
        "senders": map.senders.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

/// How many files of a collection are downloaded, if not all, as text.
pub(crate) fn chosen_text(transfer: &Transfer) -> Option<String> {
    let (chosen, all) = transfer.chosen_files?;
    Some(format!("{chosen} of {}", text::count(all, "file")))
}

/// A peer of a transfer as JSON.
pub(crate) fn peer_object(peer: &TransferPeer) -> Value {
    let mut object = json!({
        "peer": peer.peer,
        "address": peer.address.to_string(),
        "bytes": peer.bytes,
        "bytes_per_second": peer.bytes_per_second,
        "requests": peer.requests,
        "units": peer.units,
        "state": peer.state,
        "reason": peer.reason,
    });
    labels(&mut object, &peer.labels);
    if let Some(origin) = &peer.origin {
        object["origin"] = json!(origin);
    }
    object
}

/// Adds labels, if there are any.
pub(crate) fn labels(object: &mut Value, labels: &Labels) {
    if !labels.is_empty() {
        let name = |label: &Option<LabelValue>| label.as_ref().map(ToString::to_string);
        object["labels"] = json!({ "zone": name(&labels.zone), "rack": name(&labels.rack) });
    }
}

/// The limit and priority of a transfer, as text.
pub(crate) fn limits_text(transfer: &Transfer) -> String {
    let limit = match transfer.limit {
        0 => "no rate limit".to_owned(),
        limit => text::limit(limit),
    };
    format!("priority {}, {limit}", transfer.priority)
}
