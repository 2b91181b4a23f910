//! The requests in flight of one download, and the calls that carry them.
//!
//! Invariant: a unit is marked as fetching exactly while a request for it is in flight.

use std::{collections::HashMap, sync::Arc};

use potluck_core::collection::plan::Plan;
use potluck_swarm::{PeerKey, RESERVE_REQUEST_BYTES, RequestId};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::download::{
    engine::request::{CallContext, RequestTask, UnitRequest},
    origin::{
        request::OriginTask,
        source::{ORIGIN, OriginSource},
    },
    peers::rpc::client::PeerClient,
};

/// Maximum bytes per call; a larger unit has a call of its own.
const MAX_CALL_BYTES: u64 = 4 * 1024 * 1024;

/// Maximum spans per call, as the API specifies.
const MAX_CALL_SPANS: usize = 4096;

/// The requests in flight of one download.
#[derive(Debug)]
pub(super) struct RequestTable {
    in_flight: HashMap<RequestId, InFlightRequest>,
    /// The context of every call.
    calls: CallContext,
    /// Stops all requests.
    stop: CancellationToken,
}

#[derive(Debug)]
struct InFlightRequest {
    peer: PeerKey,
    unit: u32,
    /// Cancelled when the request is no longer wanted.
    token: CancellationToken,
}

impl RequestTable {
    /// A table without requests.
    pub(super) fn new(calls: CallContext, stop: CancellationToken) -> Self {
        Self {
            in_flight: HashMap::new(),
            calls,
            stop,
        }
    }

    /// Adds a request; its call is started later.
    pub(super) fn add(&mut self, id: RequestId, peer: PeerKey, unit: u32) -> UnitRequest {
        let token = self.stop.child_token();
        let request = InFlightRequest {
            peer,
            unit,
            token: token.clone(),
        };
        self.in_flight.insert(id, request);
        self.calls.download.update(|units| units.fetching.set(unit, true));
        UnitRequest { id, unit, token }
    }

    /// Starts a call to a peer for these requests.
    pub(super) fn start_call(&self, peer: PeerKey, client: PeerClient, requests: Vec<UnitRequest>) {
        let task = RequestTask {
            peer,
            client,
            context: self.calls.clone(),
        };
        self.calls.tracker.spawn(task.run(requests).in_current_span());
    }

    /// Sets the origin of the content.
    pub(super) fn set_origin(&mut self, source: Option<Arc<OriginSource>>) {
        self.calls.origin = source;
    }

    /// Starts requests to the origin for these units.
    pub(super) fn start_origin_call(&self, requests: Vec<UnitRequest>) {
        if let Some(source) = &self.calls.origin {
            let task = OriginTask {
                source: Arc::clone(source),
                context: self.calls.clone(),
            };
            self.calls.tracker.spawn(task.run(requests));
        }
    }

    /// Ends a request: its call drops it, and its unit is no longer fetching unless another request
    /// has it.
    pub(super) fn close(&mut self, id: RequestId) {
        let Some(InFlightRequest { unit, token, .. }) = self.in_flight.remove(&id) else {
            return;
        };
        token.cancel();
        if !self.in_flight.values().any(|other| other.unit == unit) {
            self.calls
                .download
                .update(|units| units.fetching.set(unit, false));
        }
    }

    /// Ends all requests to a peer.
    pub(super) fn close_all_of(&mut self, peer: PeerKey) {
        let requests = self.in_flight.iter().filter(|(_, request)| request.peer == peer);
        let ids: Vec<RequestId> = requests.map(|(&id, _)| id).collect();
        ids.into_iter().for_each(|id| self.close(id));
    }
}

/// Groups requests into calls, in the order in which they were added.
#[derive(Debug, Default)]
pub(super) struct CallBatch {
    calls: Vec<Call>,
}

#[derive(Debug)]
struct Call {
    peer: PeerKey,
    requests: Vec<UnitRequest>,
    bytes: u64,
    spans: usize,
}

impl CallBatch {
    /// Adds a request to the last call to this peer that has room for it, or to a new one.
    pub(super) fn add(&mut self, peer: PeerKey, request: UnitRequest, plan: &Plan) {
        let (bytes, spans) = (plan.unit_len(request.unit), plan.spans(request.unit).count());
        let max_bytes = if peer == ORIGIN {
            RESERVE_REQUEST_BYTES
        } else {
            MAX_CALL_BYTES
        };
        let has_room = |call: &&mut Call| {
            call.peer == peer
                && call.bytes + bytes <= max_bytes
                && call.spans + spans <= MAX_CALL_SPANS
        };
        match self.calls.iter_mut().rev().find(has_room) {
            Some(call) => {
                call.requests.push(request);
                call.bytes += bytes;
                call.spans += spans;
            }
            None => self.calls.push(Call {
                peer,
                requests: vec![request],
                bytes,
                spans,
            }),
        }
    }

    /// The calls, without requests that were cancelled meanwhile.
    pub(super) fn into_calls(self) -> impl Iterator<Item = (PeerKey, Vec<UnitRequest>)> {
        self.calls.into_iter().map(|mut call| {
            call.requests.retain(|request| !request.token.is_cancelled());
            (call.peer, call.requests)
        })
    }
}
