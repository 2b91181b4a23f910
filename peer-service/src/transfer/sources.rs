//! Who has the file: what the index says, kept up to date, and who was named by address.
//!
//! The list is a level, not a stream of edges: whoever looks sees all providers of now, so nothing is missed by looking late.
//! Losing the index loses no provider: the list stays as it was until the index is back.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt as _;
use potluck_core::{
    FileId, PeerId, Problem,
    index_client::{Address, IndexClient, WatchEvent},
};
use rand::RngExt as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Providers asked of the index for a file: far more than are connected at once, so that there is a choice.
const MAX_SNAPSHOT: u32 = 200;

/// Most providers remembered: an index that lies cannot fill the memory.
const MAX_PROVIDERS: usize = 2_000;

/// First wait before a lost index is asked again; doubles up to [`MAX_RETRY`].
const RETRY: Duration = Duration::from_millis(500);

/// Longest such wait.
const MAX_RETRY: Duration = Duration::from_secs(15);

/// A peer worth asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// Where it is.
    pub(crate) address: Address,
    /// Who it is, where the index vouches for it.
    pub(crate) peer: Option<PeerId>,
}

/// Who has the file, as far as is known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources {
    /// By address, in no useful order.
    pub(crate) list: Arc<Vec<Source>>,
    /// What is wrong with the index.
    pub(crate) index_error: Option<Problem>,
    /// Whether the index answered at least once, or there is none to ask.
    pub(crate) asked: bool,
}

/// Keeps the list until `stop`. `named` are always on it; whoever `is_self` says is this peer never is.
pub(crate) async fn keep(
    index: Option<IndexClient>,
    id: FileId,
    named: Vec<Address>,
    is_self: impl Fn(Option<&PeerId>, &Address) -> bool + Send,
    list: watch::Sender<Sources>,
    stop: CancellationToken,
) {
    let mut known = Known {
        named,
        from_index: BTreeMap::new(),
    };
    publish(&list, &known, &is_self, |sources| sources.asked = index.is_none());
    let Some(index) = index else { return };
    let mut retry = RETRY;
    loop {
        // Dropping the watch at any point loses nothing: the next one begins with a snapshot.
        let lost = tokio::select! {
            () = stop.cancelled() => return,
            lost = follow(&index, id, &mut known, &is_self, &list, &mut retry) => lost,
        };
        tracing::debug!(file = %id.short(), error = %lost, "the index is lost; going on with the providers known");
        list.send_modify(|sources| {
            sources.index_error = Some(lost);
            sources.asked = true;
        });
        let wait = retry.mul_f64(rand::rng().random_range(0.5..1.0));
        retry = (retry * 2).min(MAX_RETRY);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

struct Known {
    named: Vec<Address>,
    from_index: BTreeMap<PeerId, Address>,
}

async fn follow(
    index: &IndexClient,
    id: FileId,
    known: &mut Known,
    is_self: &(impl Fn(Option<&PeerId>, &Address) -> bool + Send),
    list: &watch::Sender<Sources>,
    retry: &mut Duration,
) -> Problem {
    let mut events = match index.watch(id, MAX_SNAPSHOT).await {
        Ok(events) => std::pin::pin!(events),
        Err(problem) => return problem,
    };
    while let Some(event) = events.next().await {
        match event {
            Ok(WatchEvent::Snapshot(providers)) => {
                *retry = RETRY;
                known.from_index = providers
                    .into_iter()
                    .take(MAX_PROVIDERS)
                    .map(|p| (p.peer, p.address))
                    .collect();
            }
            Ok(WatchEvent::Joined(provider)) => {
                if known.from_index.len() < MAX_PROVIDERS || known.from_index.contains_key(&provider.peer) {
                    known.from_index.insert(provider.peer, provider.address);
                }
            }
            Ok(WatchEvent::Left(peer)) => {
                known.from_index.remove(&peer);
            }
            Err(problem) => return problem,
        }
        publish(list, known, is_self, |sources| {
            sources.index_error = None;
            sources.asked = true;
        });
    }
    Problem::new(
        potluck_core::Reason::Unreachable,
        format!("the index at {} ended the watch", index.endpoint()),
    )
}

fn publish(
    list: &watch::Sender<Sources>,
    known: &Known,
    is_self: &impl Fn(Option<&PeerId>, &Address) -> bool,
    change: impl FnOnce(&mut Sources),
) {
    let from_index = known
        .from_index
        .iter()
        .map(|(peer, address)| (Some(peer), address));
    let named = known.named.iter().map(|address| (None, address));
    // Those with an id come first and win over the same address without one.
    let mut seen = HashSet::new();
    let all = from_index
        .chain(named)
        .filter(|&(peer, address)| !is_self(peer, address) && seen.insert(address))
        .map(|(peer, address)| Source {
            address: address.clone(),
            peer: peer.copied(),
        })
        .collect();
    list.send_modify(|sources| {
        sources.list = Arc::new(all);
        change(sources);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_is_tried_once_with_its_id_and_the_peer_itself_never() {
        let at = |port| Address::from(std::net::SocketAddr::from(([127, 0, 0, 1], port)));
        let (own, other) = (PeerId([1; 32]), PeerId([2; 32]));
        // Behind one address two peers can be, of which one is this.
        let known = Known {
            named: vec![at(1), at(2), at(2)],
            from_index: [(own, at(1)), (other, at(1))].into(),
        };
        let (list, sources) = watch::channel(Sources::default());
        publish(&list, &known, &|peer, _| peer == Some(&own), |_| {});
        let expected = [(at(1), Some(other)), (at(2), None)];
        let expected = expected.map(|(address, peer)| Source { address, peer });
        assert_eq!(sources.borrow().list[..], expected);
    }
}
