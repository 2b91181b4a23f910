//! The peers of an index, as JSON.

use potluck_core::model::PeerPage;
use serde_json::{Value, json};

/// A page of peers.
pub(crate) fn page_object(page: &PeerPage) -> Value {
    let peers = page.peers.iter().map(|peer| {
        json!({
            "peer": peer.peer,
            "address": peer.address.to_string(),
            "files": peer.file_count,
            "seconds_since_seen": peer.last_seen.as_secs(),
            "version": peer.version,
        })
    });
    json!({ "peers": peers.collect::<Vec<_>>(), "next_page": page.next })
}
