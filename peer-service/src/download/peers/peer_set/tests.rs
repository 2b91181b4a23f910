use potluck_core::FileId;
use tokio::sync::mpsc;

use super::*;

fn peers() -> PeerSet {
    let (events, _) = mpsc::channel(1);
    let connector = ConnectorContext {
        id: FileId([1; 32]),
        units: 8,
        own_id: PeerId([2; 32]),
        outgoing: crate::download::outgoing::Outgoing::default(),
        events,
    };
    let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
    PeerSet::new(KnownPeers::default(), connector, stop, tracker)
}

fn many() -> Vec<PeerCandidate> {
    let address = |n: u16| Address {
        host: "192.0.2.1".into(),
        port: 1000 + n,
    };
    let candidate = |n| PeerCandidate {
        address: address(n),
        peer: None,
    };
    (0..100).map(candidate).collect()
}

fn started(peers: &PeerSet) -> usize {
    peers
        .iter()
        .filter(|(_, peer)| peer.connection != ConnectionState::Waiting)
        .count()
}

// The tests do not await the connectors, so no connection is opened.
#[tokio::test]
async fn the_cap_rises_once_half_of_the_first_attempts_succeeded() {
    let mut peers = peers();
    peers.raise_connection_cap();
    peers.update_candidates(&many());
    assert_eq!(started(&peers), CROWD_CONNECTIONS, "no peer had answered");
    peers.raise_connection_cap();
    assert_eq!(started(&peers), CROWD_CONNECTIONS);
    let connecting = peers
        .peers
        .values_mut()
        .filter(|peer| peer.connection == ConnectionState::Connecting);
    for peer in connecting.take(CROWD_CONNECTIONS / 2) {
        peer.connection = ConnectionState::Connected;
    }
    peers.raise_connection_cap();
    assert_eq!(started(&peers), MAX_CONNECTED);
}

#[tokio::test]
async fn a_provider_that_was_away_is_tried_however_many_useless_peers_there_are() {
    let mut peers = peers();
    peers.update_candidates(&many());
    let connect = |peers: &mut PeerSet| {
        let connecting = peers
            .peers
            .values_mut()
            .filter(|peer| peer.connection == ConnectionState::Connecting);
        connecting.for_each(|peer| peer.connection = ConnectionState::Connected);
    };
    connect(&mut peers);
    peers.raise_connection_cap();
    connect(&mut peers);
    // So many failures that every other peer comes first, unless the choice is random.
    let waiting = |(key, peer): (PeerKey, &PeerEntry)| {
        (peer.connection == ConnectionState::Waiting).then_some(key)
    };
    let seed = peers.iter().find_map(waiting).unwrap();
    peers.peers.get_mut(&seed).unwrap().failures = u32::MAX / 2;
    let mut rounds = 0;
    while peers.get(seed).unwrap().connection != ConnectionState::Connected {
        assert!(peers.replace_idle_peer().is_some());
        assert_eq!(started(&peers), MAX_CONNECTED);
        connect(&mut peers);
        rounds += 1;
        assert!(rounds < 10_000, "it never gets a slot");
    }
}

/// A peer that restarts on another port is the same peer.
#[tokio::test]
async fn a_banned_peer_is_followed_to_its_new_address() {
    let mut peers = peers();
    let mut candidate = many().remove(0);
    candidate.peer = Some(PeerId([7; 32]));
    peers.update_candidates(std::slice::from_ref(&candidate));
    let key = peers.by_address[&candidate.address];
    peers.ban(key, "violation".into());
    let before = candidate.address.clone();
    candidate.address.port += 1000;
    peers.update_candidates(std::slice::from_ref(&candidate));
    assert_eq!((peers.peers.len(), peers.by_address.len()), (1, 1));
    assert_eq!(peers.get(key).unwrap().candidate.address, candidate.address);
    assert!(!peers.by_address.contains_key(&before));
    peers.readmit(key);
    let peer = peers.get(key).unwrap();
    assert_eq!(peer.connection, ConnectionState::Connecting);
    assert_eq!(
        peer.last_violation.as_deref(),
        Some("violation"),
        "the violation is remembered"
    );
}

#[tokio::test(start_paused = true)]
async fn silent_peers_of_one_host_do_not_delay_other_hosts() {
    let mut peers = peers();
    let port = |port| Address {
        host: "198.51.100.1".into(),
        port,
    };
    let candidate = |address| PeerCandidate { address, peer: None };
    let mut all: Vec<PeerCandidate> = (1..=300).map(port).map(candidate).collect();
    peers.update_candidates(&all);
    assert_eq!(started(&peers), CROWD_CONNECTIONS);
    all.push(many().remove(0));
    peers.update_candidates(&all);
    let honest = peers.by_address[&all[300].address];
    assert_eq!(
        peers.get(honest).unwrap().connection,
        ConnectionState::Waiting,
        "no slot is free"
    );
    tokio::time::advance(SILENCE_TIMEOUT).await;
    peers.connect_past_silent();
    assert_eq!(peers.get(honest).unwrap().connection, ConnectionState::Connecting);
    // Hosts are tried in rounds from the start.
    let mut peers = self::peers();
    peers.update_candidates(&all);
    let honest = peers.by_address[&all[300].address];
    assert_eq!(peers.get(honest).unwrap().connection, ConnectionState::Connecting);
}

#[tokio::test(start_paused = true)]
async fn hundreds_of_silent_hosts_are_tried_within_seconds_and_few_at_once() {
    let mut peers = peers();
    let all: Vec<PeerCandidate> = (1..=200)
        .map(|n| PeerCandidate {
            address: Address {
                host: format!("198.51.100.{n}"),
                port: 1,
            },
            peer: None,
        })
        .collect();
    peers.update_candidates(&all);
    let tried = |peers: &PeerSet| {
        peers
            .iter()
            .filter(|(_, peer)| peer.failures > 0 || peer.holds_slot())
            .count()
    };
    let mut seconds = 0;
    while tried(&peers) < all.len() {
        tokio::time::advance(SILENCE_TIMEOUT).await;
        peers.connect_past_silent();
        assert!(peers.connection_count() <= MAX_CONNECTED);
        seconds += 1;
        assert!(seconds < 10, "{} were tried", tried(&peers));
    }
    assert!(seconds <= 4, "{seconds} s");
}

#[tokio::test]
async fn an_unlisted_peer_that_sent_nothing_is_forgotten() {
    let mut peers = peers();
    let all = many();
    peers.update_candidates(&all);
    let problem = Problem::new(Reason::Unreachable, "gone");
    let key = |peers: &PeerSet, at: usize| peers.by_address[&all[at].address];
    let (lost, banned, sender) = (key(&peers, 0), key(&peers, 1), key(&peers, 2));
    for peer in peers.peers.values_mut() {
        peer.connection = ConnectionState::Waiting;
    }
    peers.peers.get_mut(&lost).unwrap().connection = ConnectionState::Lost(problem);
    peers.peers.get_mut(&banned).unwrap().connection = ConnectionState::Banned("violation".into());
    peers.credit_bytes(sender, 1);
    peers.max_connections = 0;
    peers.update_candidates(&all[50..]);
    assert_eq!((peers.peers.len(), peers.by_address.len()), (52, 52));
    assert!(peers.get(lost).is_none());
    assert!(peers.get(banned).is_some() && peers.get(sender).is_some());
    // A peer that returns counts as a new one.
    peers.update_candidates(&all);
    assert_eq!(peers.peers.len(), 100);
}

/// A peer whose certificate had expired registers again once it has a new one.
#[tokio::test]
async fn a_peer_that_registers_again_is_retried_without_delay() {
    let mut peers = peers();
    let candidate = many().remove(0);
    let list = std::slice::from_ref(&candidate);
    peers.update_candidates(list);
    let key = peers.by_address[&candidate.address];
    peers.credit_bytes(key, 1);
    let expired = Problem::new(Reason::CertificateExpired, "its certificate has expired");
    for _ in 0..5 {
        peers.mark_lost(key, &expired);
    }
    let first_try = peers.get(key).unwrap().stop.clone();
    peers.update_candidates(list);
    assert_eq!(peers.get(key).unwrap().failures, 5, "it was listed all the time");
    peers.update_candidates(&[]);
    assert!(!first_try.is_cancelled(), "it is known, and retried with delays");
    peers.update_candidates(list);
    let peer = peers.get(key).unwrap();
    assert!(first_try.is_cancelled());
    assert_eq!(
        (peer.failures, &peer.connection),
        (0, &ConnectionState::Connecting)
    );
    // A connected peer is left alone.
    peers.peers.get_mut(&key).unwrap().connection = ConnectionState::Connected;
    peers.update_candidates(&[]);
    peers.update_candidates(list);
    assert_eq!(peers.get(key).unwrap().connection, ConnectionState::Connected);
}
