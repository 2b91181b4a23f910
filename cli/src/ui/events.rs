//! The state of the peer and of the index as a stream of server-sent events.
//!
//! | event | data |
//! |---|---|
//! | `peer` | the peer, as in `status --json` |
//! | `limits` | the limits, as in `limits --json` |
//! | `summary` | a transfer, as in `transfers --json` |
//! | `transfers` | the numbers of all transfers, newest first |
//! | `transfer` | a transfer with all its peers, its findings and its picture |
//! | `index` | the index, as in `status --json`; `null` for none |
//! | `problem` | `error` and `message` while the peer does not answer |
//!
//! An event is sent when its data changes. Whatever the page missed, the next connection sends again.
//!
//! Invariant: a browser that does not read holds at most [`QUEUE`] events.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    time::Duration,
};

use axum::{
    extract::State,
    response::sse::{Event, Sse},
};
use futures_util::{Stream, stream};
use potluck_core::Problem;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::MissedTickBehavior};

use super::PageSources;
use crate::{
    control::model::Transfer,
    output::json_line,
    views::{status, transfers},
};

/// Time between two looks at the peer: a movement on the page looks smooth.
const PEER_INTERVAL: Duration = Duration::from_millis(500);

/// Looks at the transfers for each look at the limits and the peer's own state.
const LOOKS_PER_STATUS: u64 = 2;

/// Time between two looks at the index, which other peers ask, too.
const INDEX_INTERVAL: Duration = Duration::from_secs(3);

/// Maximum running transfers that are sent with their picture.
const MAX_PICTURED: usize = 16;

/// Events that wait for the browser.
const QUEUE: usize = 16;

/// The stream of a page. It ends when the browser goes away or the server stops.
pub(super) async fn stream(
    State(sources): State<PageSources>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        // All arms are cancel-safe: they only look and send.
        tokio::select! {
            () = follow_peer(&sources, EventSender::new(sender.clone())) => {}
            () = follow_index(&sources, EventSender::new(sender.clone())) => {}
            () = sender.closed() => {}
            () = sources.stop.cancelled() => {}
        }
    });
    Sse::new(stream::unfold(receiver, async |mut receiver| {
        let event = receiver.recv().await?;
        Some((Ok(event), receiver))
    }))
}

/// The browser went away.
#[derive(Debug)]
struct Gone;

/// Sends what changed.
#[derive(Debug)]
struct EventSender {
    events: mpsc::Sender<Event>,
    /// The last data by event and transfer.
    sent: HashMap<(&'static str, u64), String>,
}

impl EventSender {
    fn new(events: mpsc::Sender<Event>) -> Self {
        Self {
            events,
            sent: HashMap::new(),
        }
    }

    /// Sends an event unless its data is that of the last one. `number` is the transfer that it
    /// describes, or 0.
    async fn send(&mut self, name: &'static str, number: u64, data: &Value) -> Result<(), Gone> {
        let data = json_line(data);
        if self.sent.get(&(name, number)) == Some(&data) {
            return Ok(());
        }
        let event = Event::default().event(name).data(&data);
        self.sent.insert((name, number), data);
        self.events.send(event).await.map_err(|_| Gone)
    }

    /// Forgets transfers that are not listed.
    fn keep(&mut self, numbers: &HashSet<u64>) {
        self.sent
            .retain(|(_, number), _| *number == 0 || numbers.contains(number));
    }
}

async fn follow_peer(sources: &PageSources, mut sender: EventSender) {
    let mut ticks = tokio::time::interval(PEER_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut active = HashSet::new();
    for look in 0.. {
        ticks.tick().await;
        let has_status = look % LOOKS_PER_STATUS == 0;
        let problem = match look_at_peer(sources, &mut sender, &mut active, has_status).await {
            Ok(Ok(())) => Value::Null,
            Ok(Err(problem)) => {
                json!({ "error": problem.reason.word(), "message": problem.message })
            }
            Err(Gone) => return,
        };
        if sender.send("problem", 0, &problem).await.is_err() {
            return;
        }
    }
}

/// Sends the state of the peer and of its transfers. `active` are the transfers that ran at the last
/// look: each is sent once more when it ends.
async fn look_at_peer(
    sources: &PageSources,
    sender: &mut EventSender,
    active: &mut HashSet<u64>,
    has_status: bool,
) -> Result<Result<(), Problem>, Gone> {
    let peer = &sources.peer;
    if has_status {
        let (state, limits) = match tokio::join!(peer.status(), peer.limits()) {
            (Ok(state), Ok(limits)) => (state, limits),
            (Err(problem), _) | (_, Err(problem)) => return Ok(Err(problem)),
        };
        let object = status::peer_object(&state, peer.endpoint());
        sender.send("peer", 0, &object).await?;
        sender.send("limits", 0, &status::limits_object(limits)).await?;
    }
    let list = match peer.transfers().await {
        Ok(list) => list,
        Err(problem) => return Ok(Err(problem)),
    };
    for transfer in &list {
        let object = transfers::object(transfer);
        sender.send("summary", transfer.number, &object).await?;
    }
    let numbers: HashSet<u64> = list.iter().map(|transfer| transfer.number).collect();
    let in_order: Value = list.iter().map(|transfer| transfer.number).collect();
    sender.send("transfers", 0, &in_order).await?;
    let is_active = |transfer: &&Transfer| !transfer.state.has_ended();
    let now: HashSet<u64> = list
        .iter()
        .filter(is_active)
        .take(MAX_PICTURED)
        .map(|transfer| transfer.number)
        .collect();
    for &number in now.union(active) {
        // A transfer that was removed meanwhile has no picture.
        if let Ok(explanation) = peer.explain(number).await {
            let object = transfers::pictured_object(&explanation);
            sender.send("transfer", number, &object).await?;
        }
    }
    *active = now;
    sender.keep(&numbers);
    Ok(Ok(()))
}

async fn follow_index(sources: &PageSources, mut sender: EventSender) {
    let Some(index) = &sources.index else {
        let _ = sender.send("index", 0, &Value::Null).await;
        return std::future::pending().await;
    };
    let mut ticks = tokio::time::interval(INDEX_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let object = status::index_object(index.endpoint(), &index.stats().await);
        if sender.send("index", 0, &object).await.is_err() {
            return;
        }
    }
}
