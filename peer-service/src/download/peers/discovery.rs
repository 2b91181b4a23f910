//! Finds providers of a file: from the index, kept up to date, and from addresses that the user
//! named.
//!
//! The list is the current state and not a stream of changes, so a late reader misses nothing. If
//! the index is lost, the list stays unchanged until the index is back.
//!
//! A remote index must not make this peer connect to addresses that only this machine or its
//! network reaches, such as services on loopback. Such addresses from a remote index are ignored.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt as _;
use potluck_core::{
    FileId, PeerId, Problem, Reason,
    index_client::IndexClient,
    model::{Address, ProviderEvent},
};
use rand::RngExt as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::download::status::{DownloadState, DownloadStatus};

/// Providers requested from the index for a file: far more than the connection limit, to have a
/// choice.
const MAX_SNAPSHOT: u32 = 200;

/// Maximum providers that are kept, so that a malicious index cannot exhaust memory.
const MAX_PROVIDERS: usize = 2_000;

/// First delay before reconnecting to a lost index; doubles up to [`MAX_RETRY`].
const RETRY: Duration = Duration::from_millis(500);

/// Maximum of that delay.
const MAX_RETRY: Duration = Duration::from_secs(15);

/// Time for which a download is stuck before the index is queried again, because an answer may have
/// been lost or damaged. Doubles each time, up to [`MAX_REQUERY_DELAY`].
const REQUERY_DELAY: Duration = Duration::from_secs(15);

/// Maximum of that delay.
const MAX_REQUERY_DELAY: Duration = Duration::from_secs(300);

/// A peer that may have the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerCandidate {
    /// The peer's address.
    pub(crate) address: Address,
    /// The peer's id, if the index reported it.
    pub(crate) peer: Option<PeerId>,
}

/// The providers known now.
#[derive(Debug, Clone, Default)]
pub(crate) struct PeerCandidates {
    /// Unique by address, in no particular order.
    pub(crate) list: Arc<Vec<PeerCandidate>>,
    /// The current problem with the index.
    pub(crate) index_error: Option<Problem>,
    /// Whether the index has answered at least once, or no index is configured.
    pub(crate) index_answered: bool,
}

impl PeerCandidates {
    /// The problem to report if no peer is known.
    pub(crate) fn no_provider(&self) -> Option<Problem> {
        if !self.list.is_empty() || !self.index_answered {
            return None;
        }
        Some(match &self.index_error {
            Some(problem) => problem.clone(),
            None => Problem::new(Reason::NoProviders, "no peer provides it now"),
        })
    }
}

/// The last state reported by the index.
#[derive(Debug, Default)]
struct IndexView {
    providers: BTreeMap<PeerId, Address>,
    error: Option<Problem>,
    answered: bool,
    /// Number of providers ignored because a remote index named a local address.
    ignored: u64,
}

/// Finds the providers of one download.
#[derive(Debug)]
pub(crate) struct Discovery {
    /// The id of the content.
    pub(crate) id: FileId,
    /// The index; `None`: only the named peers.
    pub(crate) index: Option<IndexClient>,
    /// Addresses that the user named, which are always on the list.
    pub(crate) named_peers: watch::Receiver<Vec<Address>>,
    /// The status of the download: while it is stuck, the index is queried again at intervals.
    pub(crate) status: watch::Receiver<DownloadStatus>,
}

impl Discovery {
    /// Keeps `list` up to date until `stop`. Addresses for which `is_self` holds are never on it.
    pub(crate) async fn run(
        mut self,
        is_self: impl Fn(Option<&PeerId>, &Address) -> bool,
        list: watch::Sender<PeerCandidates>,
        stop: CancellationToken,
    ) {
        let (view, mut updates) = watch::channel(IndexView {
            answered: self.index.is_none(),
            ..IndexView::default()
        });
        let watch = async {
            match &self.index {
                Some(index) => watch_index(index, self.id, self.status, &view).await,
                None => std::future::pending().await,
            }
        };
        let publish = async {
            let named_peers = &mut self.named_peers;
            loop {
                list.send_replace(merge(
                    &updates.borrow_and_update(),
                    &named_peers.borrow_and_update(),
                    &is_self,
                ));
                tokio::select! {
                    Ok(()) = updates.changed() => {}
                    Ok(()) = named_peers.changed() => {}
                    else => return,
                }
            }
        };
        // Dropping the watch loses nothing: the next one starts with a snapshot.
        tokio::select! {
            () = stop.cancelled() => {}
            () = watch => {}
            () = publish => {}
        }
    }
}

/// Follows the index forever and reconnects when it is lost.
async fn watch_index(
    index: &IndexClient,
    id: FileId,
    mut status: watch::Receiver<DownloadStatus>,
    view: &watch::Sender<IndexView>,
) {
    let mut retry = RETRY;
    let mut requeries = 0;
    loop {
        // Dropping the watch loses nothing: the next one starts with a snapshot.
        let lost = tokio::select! {
            lost = follow(index, id, view, &mut retry) => lost,
            () = wait_for_requery(&mut status, &mut requeries) => {
                tracing::debug!(
                    file = %id.short(),
                    "the download is stuck: queries the index again"
                );
                continue;
            }
        };
        tracing::debug!(
            file = %id.short(), error = %lost,
            "lost the index: keeps the known providers"
        );
        view.send_modify(|view| {
            view.error = Some(lost);
            view.answered = true;
        });
        let wait = retry.mul_f64(rand::rng().random_range(0.5..1.0));
        retry = (retry * 2).min(MAX_RETRY);
        tokio::time::sleep(wait).await;
    }
}

/// Completes if the download was stuck without new bytes for long enough to query the index again.
/// `requeries` counts consecutive queries.
async fn wait_for_requery(status: &mut watch::Receiver<DownloadStatus>, requeries: &mut u32) {
    loop {
        let Ok(bytes_done) = status
            .wait_for(|status| status.state == DownloadState::Waiting)
            .await
            .map(|status| status.bytes_done)
        else {
            return std::future::pending().await;
        };
        let delay = (REQUERY_DELAY * (1 << (*requeries).min(10))).min(MAX_REQUERY_DELAY);
        let delay = delay.mul_f64(rand::rng().random_range(0.75..1.25));
        tokio::select! {
            _ = status.wait_for(|status| status.bytes_done != bytes_done) => *requeries = 0,
            () = tokio::time::sleep(delay) => {
                *requeries += 1;
                return;
            }
        }
    }
}

async fn follow(
    index: &IndexClient,
    id: FileId,
    view: &watch::Sender<IndexView>,
    retry: &mut Duration,
) -> Problem {
    let is_local = index.endpoint().is_local().await;
    let mut events = match index.watch_providers(id, MAX_SNAPSHOT).await {
        Ok(events) => std::pin::pin!(events),
        Err(problem) => return problem,
    };
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(problem) => return problem,
        };
        if matches!(event, ProviderEvent::Snapshot(_)) {
            *retry = RETRY;
        }
        view.send_modify(|view| {
            let ignored = view.ignored;
            view.apply(event, is_local);
            if view.ignored > ignored {
                tracing::debug!(
                    file = %id.short(), ignored = view.ignored, index = %index.endpoint(),
                    "ignored peers at local addresses that an index on another machine named"
                );
            }
        });
    }
    Problem::new(
        Reason::Unreachable,
        format!("the index at {} ended the watch", index.endpoint()),
    )
}

impl IndexView {
    /// Applies an event; `is_local` says whether the index runs on this machine.
    fn apply(&mut self, event: ProviderEvent, is_local: bool) {
        let Self {
            providers, ignored, ..
        } = self;
        let mut is_usable = |address: &Address| {
            let is_usable = is_local || may_be_remote(address);
            *ignored += u64::from(!is_usable);
            is_usable
        };
        match event {
            ProviderEvent::Snapshot(all) => {
                *providers = all
                    .into_iter()
                    .filter(|provider| is_usable(&provider.address))
                    .take(MAX_PROVIDERS)
                    .map(|provider| (provider.peer, provider.address))
                    .collect();
            }
            // The provider moved to an address that cannot be reached.
            ProviderEvent::Joined(provider) if !is_usable(&provider.address) => {
                providers.remove(&provider.peer);
            }
            ProviderEvent::Joined(provider) => {
                if providers.len() < MAX_PROVIDERS || providers.contains_key(&provider.peer) {
                    providers.insert(provider.peer, provider.address);
                }
            }
            ProviderEvent::Left(peer) => {
                providers.remove(&peer);
            }
        }
        (self.error, self.answered) = (None, true);
    }
}

/// Whether this may be the address of a peer on another machine, judging by its form.
fn may_be_remote(address: &Address) -> bool {
    let Ok(ip) = address.host.parse::<IpAddr>() else {
        let host = address.host.to_ascii_lowercase();
        let host = host.trim_end_matches('.');
        return host != "localhost" && !host.ends_with(".localhost");
    };
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let this_network = ip.octets()[0] == 0;
            !(ip.is_loopback()
                || this_network
                || ip.is_multicast()
                || ip.is_broadcast()
                || ip.is_link_local())
        }
        IpAddr::V6(ip) => {
            !(ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_unicast_link_local())
        }
    }
}

fn merge(
    view: &IndexView,
    named: &[Address],
    is_self: &impl Fn(Option<&PeerId>, &Address) -> bool,
) -> PeerCandidates {
    let from_index = view.providers.iter().map(|(peer, address)| (Some(peer), address));
    let named = named.iter().map(|address| (None, address));
    // Providers with an id come first and take precedence over the same address without one.
    let mut seen = HashSet::new();
    let all = from_index
        .chain(named)
        .filter(|&(peer, address)| !is_self(peer, address) && seen.insert(address))
        .map(|(peer, address)| PeerCandidate {
            address: address.clone(),
            peer: peer.copied(),
        })
        .collect();
    PeerCandidates {
        list: Arc::new(all),
        index_error: view.error.clone(),
        index_answered: view.answered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::download::status::DownloadSpec;

    fn at(port: u16) -> Address {
        Address::from(std::net::SocketAddr::from(([127, 0, 0, 1], port)))
    }

    #[test]
    fn an_address_is_listed_once_with_its_id_and_this_peer_never() {
        let (own, other) = (PeerId([1; 32]), PeerId([2; 32]));
        // Two peers may share an address, one of them this peer.
        let view = IndexView {
            providers: [(own, at(1)), (other, at(1))].into(),
            ..IndexView::default()
        };
        let candidates = merge(&view, &[at(1), at(2), at(2)], &|peer, _| peer == Some(&own));
        let expected = [(at(1), Some(other)), (at(2), None)];
        let expected = expected.map(|(address, peer)| PeerCandidate { address, peer });
        assert_eq!(candidates.list[..], expected);
    }

    fn provider(n: u8, host: &str) -> potluck_core::model::Provider {
        potluck_core::model::Provider {
            peer: PeerId([n; 32]),
            address: Address {
                host: host.to_owned(),
                port: 22,
            },
            is_complete: true,
        }
    }

    #[test]
    fn local_addresses_from_a_remote_index_are_ignored() {
        let local = [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "224.0.0.1",
            "169.254.169.254",
            "::1",
            "::",
            "ff02::1",
            "fe80::1",
            "::ffff:127.0.0.1",
            "localhost",
            "LocalHost.",
            "db.localhost",
        ];
        let good = provider(200, "192.0.2.1");
        let named = || (0..).zip(local).map(|(n, host)| provider(n, host));
        let snapshot = || ProviderEvent::Snapshot(named().chain([good.clone()]).collect());
        let mut view = IndexView::default();
        view.apply(snapshot(), false);
        assert_eq!(view.providers.keys().collect::<Vec<_>>(), [&good.peer]);
        assert_eq!(view.ignored, local.len() as u64);
        for provider in named() {
            view.apply(ProviderEvent::Joined(provider), false);
        }
        assert_eq!(view.providers.len(), 1);
        view.apply(ProviderEvent::Joined(provider(200, "::1")), false);
        assert!(view.providers.is_empty(), "it moved to a local address");
        view.apply(snapshot(), true);
        assert_eq!(
            view.providers.len(),
            local.len() + 1,
            "a local index may name them"
        );
    }

    #[tokio::test]
    async fn a_peer_that_is_named_later_is_listed_too() {
        let (name, named_peers) = watch::channel(vec![at(1)]);
        let (list, mut candidates) = watch::channel(PeerCandidates::default());
        let stop = CancellationToken::new();
        let id = FileId([1; 32]);
        let (_view, status) = watch::channel(DownloadStatus::new(1, &DownloadSpec::new(id)));
        let discovery = Discovery {
            id,
            index: None,
            named_peers,
            status,
        };
        let running = tokio::spawn(discovery.run(|_, _| false, list, stop.clone()));
        let ports = |now: &PeerCandidates| -> Vec<u16> {
            now.list.iter().map(|it| it.address.port).collect()
        };
        let first = candidates.wait_for(|now| ports(now) == [1]).await;
        assert!(first.unwrap().index_answered, "there is no index");
        name.send_modify(|named| named.push(at(2)));
        candidates.wait_for(|now| ports(now) == [1, 2]).await.unwrap();
        // The list must stay up to date even if the sender of named addresses is gone.
        drop(name);
        tokio::task::yield_now().await;
        assert!(!running.is_finished());
        stop.cancel();
        running.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_stuck_download_queries_the_index_again_later_each_time() {
        let (show, mut status) =
            watch::channel(DownloadStatus::new(1, &DownloadSpec::new(FileId([1; 32]))));
        let mut requeries = 0;
        let idle = tokio::time::timeout(
            10 * MAX_REQUERY_DELAY,
            wait_for_requery(&mut status, &mut requeries),
        );
        assert!(idle.await.is_err(), "a download that is not stuck makes no query");
        show.send_modify(|status| status.state = DownloadState::Waiting);
        let mut delays = Vec::new();
        for _ in 0..7 {
            let started = tokio::time::Instant::now();
            wait_for_requery(&mut status, &mut requeries).await;
            delays.push(started.elapsed());
        }
        assert!(delays[0] <= REQUERY_DELAY.mul_f64(1.26), "{delays:?}");
        assert!(
            delays[6] >= MAX_REQUERY_DELAY.mul_f64(0.74)
                && delays[6] <= MAX_REQUERY_DELAY.mul_f64(1.26),
            "{delays:?}"
        );
        // New bytes reset the delays.
        let progress = async {
            tokio::time::sleep(REQUERY_DELAY).await;
            show.send_modify(|status| status.bytes_done += 1);
        };
        let started = tokio::time::Instant::now();
        tokio::join!(wait_for_requery(&mut status, &mut requeries), progress);
        assert!(started.elapsed() < 3 * REQUERY_DELAY, "{:?}", started.elapsed());
        assert_eq!(requeries, 1);
    }
}
