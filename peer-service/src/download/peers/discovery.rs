//! Finds providers of a file: from the index, kept up to date, and from addresses that the user
//! named.
//!
//! The list is the current state and not a stream of changes, so a late reader misses nothing. If
//! the index is lost, the list stays unchanged until the index is back.
//!
//! A remote index must not make this peer connect to addresses that only this machine or its
//! network reaches, such as services on loopback. Such addresses from a remote index are ignored.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt as _;
use potluck_core::{
    FileId, PeerId, Problem,
    grpc::limiter::client_network,
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

/// How long a download waits before the index is queried again, because an answer may have been
/// lost or damaged. Doubles each time, up to [`MAX_ASK_ANEW`].
const ASK_ANEW: Duration = Duration::from_secs(15);

/// Maximum of that delay.
const MAX_ASK_ANEW: Duration = Duration::from_secs(300);

/// A peer that may have the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerCandidate {
    /// The peer's address.
    pub(crate) address: Address,
    /// The peer's id, if the index reported it.
    pub(crate) peer: Option<PeerId>,
}

/// The unit of fairness among peers, because one owner can run any number of peers on a host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Host {
    /// An IPv4 address, or an IPv6 network.
    Network(IpAddr),
    /// A host name.
    Name(Box<str>),
}

impl From<&Address> for Host {
    fn from(address: &Address) -> Self {
        match address.host.parse() {
            Ok(ip) => Self::Network(client_network(ip)),
            Err(_) => Self::Name(address.host.as_str().into()),
        }
    }
}

/// Numbers the peers of each host. Sorting by these numbers gives every host its turn before any
/// host has a second.
#[derive(Debug, Default)]
pub(crate) struct HostTurns<'a>(HashMap<&'a Host, u32>);

impl<'a> HostTurns<'a> {
    /// The number of the next peer of this host.
    pub(crate) fn next(&mut self, host: &'a Host) -> u32 {
        let turn = self.0.entry(host).or_default();
        *turn += 1;
        *turn
    }
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

/// The last state reported by the index.
#[derive(Debug, Default)]
struct IndexView {
    providers: BTreeMap<PeerId, Address>,
    error: Option<Problem>,
    answered: bool,
    /// Number of providers ignored because a remote index named a local address.
    ignored: u64,
}

/// Keeps the list up to date until `stop`. Addresses in `named` are always on it; addresses for
/// which `is_self` holds never are. While the download waits, the index is queried again at
/// intervals.
pub(crate) async fn run_discovery(
    (index, status): (Option<IndexClient>, watch::Receiver<DownloadStatus>),
    id: FileId,
    mut named: watch::Receiver<Vec<Address>>,
    is_self: impl Fn(Option<&PeerId>, &Address) -> bool,
    list: watch::Sender<PeerCandidates>,
    stop: CancellationToken,
) {
    let (index_view, mut updates) = watch::channel(IndexView {
        answered: index.is_none(),
        ..IndexView::default()
    });
    let listen = async {
        match &index {
            Some(index) => watch_index(index, id, status, &index_view).await,
            None => std::future::pending().await,
        }
    };
    let publish = async {
        loop {
            list.send_replace(merge(
                &updates.borrow_and_update(),
                &named.borrow_and_update(),
                &is_self,
            ));
            tokio::select! {
                Ok(()) = updates.changed() => {}
                Ok(()) = named.changed() => {}
                else => return,
            }
        }
    };
    // Dropping the watch loses nothing: the next one starts with a snapshot.
    tokio::select! {
        () = stop.cancelled() => {}
        () = listen => {}
        () = publish => {}
    }
}

/// Follows the index forever and reconnects when it is lost.
async fn watch_index(
    index: &IndexClient,
    id: FileId,
    mut status: watch::Receiver<DownloadStatus>,
    index_view: &watch::Sender<IndexView>,
) {
    let mut retry = RETRY;
    let mut asked_anew = 0;
    loop {
        // Dropping the watch loses nothing: the next one starts with a snapshot.
        let lost = tokio::select! {
            lost = follow(index, id, index_view, &mut retry) => lost,
            () = has_waited(&mut status, &mut asked_anew) => {
                tracing::debug!(file = %id.short(), "the transfer waits: the index is asked anew");
                continue;
            }
        };
        tracing::debug!(file = %id.short(), error = %lost, "the index is lost; going on with the providers known");
        index_view.send_modify(|index_view| {
            index_view.error = Some(lost);
            index_view.answered = true;
        });
        let wait = retry.mul_f64(rand::rng().random_range(0.5..1.0));
        retry = (retry * 2).min(MAX_RETRY);
        tokio::time::sleep(wait).await;
    }
}

/// Completes if the download has waited without new bytes for long enough to query the index again.
/// `times` counts consecutive queries.
async fn has_waited(status: &mut watch::Receiver<DownloadStatus>, times: &mut u32) {
    loop {
        let Ok(done) = status
            .wait_for(|status| status.state == DownloadState::Waiting)
            .await
            .map(|status| status.bytes_done)
        else {
            return std::future::pending().await;
        };
        let delay = (ASK_ANEW * (1 << (*times).min(10))).min(MAX_ASK_ANEW);
        let delay = delay.mul_f64(rand::rng().random_range(0.75..1.25));
        tokio::select! {
            _ = status.wait_for(|status| status.bytes_done != done) => *times = 0,
            () = tokio::time::sleep(delay) => {
                *times += 1;
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
                    "the index named peers at addresses of this machine only, and is on another: ignored them"
                );
            }
        });
    }
    Problem::new(
        potluck_core::Reason::Unreachable,
        format!("the index at {} ended the watch", index.endpoint()),
    )
}

impl IndexView {
    /// Applies an event; `is_local` says whether the index runs on this machine.
    fn apply(&mut self, event: ProviderEvent, is_local: bool) {
        let Self {
            providers, ignored, ..
        } = self;
        let mut may_call = |address: &Address| {
            let may = is_local || is_reached_from_afar(address);
            *ignored += u64::from(!may);
            may
        };
        match event {
            ProviderEvent::Snapshot(all) => {
                *providers = all
                    .into_iter()
                    .filter(|provider| may_call(&provider.address))
                    .take(MAX_PROVIDERS)
                    .map(|provider| (provider.peer, provider.address))
                    .collect();
            }
            // The provider moved to an address that cannot be reached.
            ProviderEvent::Joined(provider) if !may_call(&provider.address) => {
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
fn is_reached_from_afar(address: &Address) -> bool {
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
            !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip.is_unicast_link_local())
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
    fn each_address_is_tried_once_with_its_id_and_the_peer_itself_never() {
        let (own, other) = (PeerId([1; 32]), PeerId([2; 32]));
        // Two peers may share an address, one of them this peer.
        let view = IndexView {
            providers: [(own, at(1)), (other, at(1))].into(),
            ..IndexView::default()
        };
        let sources = merge(&view, &[at(1), at(2), at(2)], &|peer, _| peer == Some(&own));
        let expected = [(at(1), Some(other)), (at(2), None)];
        let expected = expected.map(|(address, peer)| PeerCandidate { address, peer });
        assert_eq!(sources.list[..], expected);
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
    fn an_index_elsewhere_cannot_name_what_only_this_machine_reaches() {
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
        assert!(
            view.providers.is_empty(),
            "it moved to where nobody else reaches it"
        );
        view.apply(snapshot(), true);
        assert_eq!(
            view.providers.len(),
            local.len() + 1,
            "an index here may name them"
        );
    }

    #[tokio::test]
    async fn who_is_named_later_is_on_the_list_as_well() {
        let (name, named) = watch::channel(vec![at(1)]);
        let (list, mut sources) = watch::channel(PeerCandidates::default());
        let stop = CancellationToken::new();
        let id = FileId([1; 32]);
        let (_view, status) = watch::channel(DownloadStatus::new(1, &DownloadSpec::new(id)));
        let kept = tokio::spawn(run_discovery(
            (None, status),
            id,
            named,
            |_, _| false,
            list,
            stop.clone(),
        ));
        let addresses =
            |sources: &PeerCandidates| sources.list.iter().map(|of| of.address.port).collect::<Vec<_>>();
        let first = sources.wait_for(|now| addresses(now) == [1]).await;
        assert!(first.unwrap().index_answered, "there is no index to ask");
        name.send_modify(|named| named.push(at(2)));
        sources.wait_for(|now| addresses(now) == [1, 2]).await.unwrap();
        // The list must stay up to date even if the sender of named addresses is gone.
        drop(name);
        tokio::task::yield_now().await;
        assert!(!kept.is_finished());
        stop.cancel();
        kept.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_download_that_waits_asks_the_index_again_later_each_time() {
        let (show, mut status) = watch::channel(DownloadStatus::new(1, &DownloadSpec::new(FileId([1; 32]))));
        let mut times = 0;
        let idle = tokio::time::timeout(10 * MAX_ASK_ANEW, has_waited(&mut status, &mut times));
        assert!(idle.await.is_err(), "a download that does not wait asks nobody");
        show.send_modify(|status| status.state = DownloadState::Waiting);
        let mut delays = Vec::new();
        for _ in 0..7 {
            let begun = tokio::time::Instant::now();
            has_waited(&mut status, &mut times).await;
            delays.push(begun.elapsed());
        }
        assert!(delays[0] <= ASK_ANEW.mul_f64(1.26), "{delays:?}");
        assert!(
            delays[6] >= MAX_ASK_ANEW.mul_f64(0.74) && delays[6] <= MAX_ASK_ANEW.mul_f64(1.26),
            "{delays:?}"
        );
        // New bytes reset the delays.
        let progress = async {
            tokio::time::sleep(ASK_ANEW).await;
            show.send_modify(|status| status.bytes_done += 1);
        };
        let begun = tokio::time::Instant::now();
        tokio::join!(has_waited(&mut status, &mut times), progress);
        assert!(begun.elapsed() < 3 * ASK_ANEW, "{:?}", begun.elapsed());
        assert_eq!(times, 1);
    }
}
