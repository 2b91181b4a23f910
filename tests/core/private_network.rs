//! TLS in a private network, over loopback: who may connect to whom.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant, SystemTime},
};

use futures_util::StreamExt as _;
use potluck_core::{
    Reason,
    grpc::transport::Endpoint,
    index_client::IndexClient,
    model::Address,
    network::{
        authority::{DEFAULT_VALIDITY, Grant},
        credentials::Credentials,
        identity::{MemberId, Role},
        key::IdentityKey,
        revocations::RevocationList,
        stored_identity::StoredIdentity,
        tls::{ServerIdentity, TlsContext, TlsMaterial},
    },
};
use potluck_testkit::{
    content::{bytes, write_file},
    services::{OwnCa, TestIndex, TestNetwork, TestPeer, member_tls, secured_index},
    transfer::{assert_done, transfer_request_from},
};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The problem of a client with these settings that calls the index.
async fn index_problem(index: &TestIndex, tls: &TlsContext) -> Option<potluck_core::Problem> {
    let client = IndexClient::new(secured_index(index, tls));
    client.stats().await.err()
}

/// The reason why a client with these settings cannot reach the peer at `address`.
async fn peer_refusal(
    address: &Address,
    tls: &TlsContext,
    expected: ServerIdentity,
) -> Option<Reason> {
    let endpoint = Endpoint::parse_secured(&address.to_string(), tls, expected).unwrap();
    endpoint.connect().await.err().map(|problem| problem.reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_of_a_network_share_a_file_over_mutual_tls() {
    let network = TestNetwork::create("kitchen");
    let ann = network.join("ann", Role::Publisher);
    let bob = network.join("bob", Role::Reader);
    let data = bytes(3_000_000, 1);
    let path = write_file(&network.path("src"), "data.bin", &data);
    let seed = network.start_peer(&ann, "seed").await;
    let id = seed.share(&path).await;
    let peer = network.start_peer(&bob, "peer").await;
    let target = network.path("out.bin");
    let request = transfer_request_from(id, &target, [&seed.address]);
    assert_done(&peer.download(request).await);
    assert_eq!(std::fs::read(&target).unwrap(), data);
    assert_ne!(seed.running.peer_id, peer.running.peer_id);
    seed.stop().await;
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_reaches_the_index_and_peers_by_their_names() {
    let network = TestNetwork::create("kitchen");
    let ann = network.join("ann", Role::Publisher);
    let index = network.start_index(network.index_tls()).await;
    let seed = network.start_peer(&ann, "seed").await;
    let tls = member_tls(&ann);
    assert_eq!(index_problem(&index, &tls).await, None);
    for expected in [
        ServerIdentity::AnyPeer,
        ServerIdentity::Peer(seed.running.peer_id),
    ] {
        assert_eq!(peer_refusal(&seed.address, &tls, expected).await, None);
    }
    // Neither poses as the other, nor a peer as another peer.
    let other = IdentityKey::generate().unwrap().peer_id();
    for expected in [ServerIdentity::Index, ServerIdentity::Peer(other)] {
        assert_eq!(
            peer_refusal(&seed.address, &tls, expected).await,
            Some(Reason::Unauthenticated)
        );
    }
    let index_address = Address::from(index.address);
    assert_eq!(
        peer_refusal(&index_address, &tls, ServerIdentity::AnyPeer).await,
        Some(Reason::Unauthenticated)
    );
    seed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_recognizes_a_peer_although_the_peer_refuses_its_calls() {
    let network = TestNetwork::create("kitchen");
    let ann = network.join("ann", Role::Publisher);
    let seed = network.start_peer(&ann, "seed").await;
    let tls = network.index_tls();
    let other = IdentityKey::generate().unwrap().peer_id();
    for (peer, is_proven) in [(seed.running.peer_id, true), (other, false)] {
        let address = seed.address.to_string();
        let expected = ServerIdentity::Peer(peer);
        let endpoint = Endpoint::parse_secured(&address, &tls, expected).unwrap();
        assert_eq!(endpoint.proves_identity().await, is_proven);
        assert!(endpoint.connect().await.is_err());
    }
    seed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outsider_is_refused_by_a_peer() {
    let network = TestNetwork::create("kitchen");
    let ann = network.join("ann", Role::Publisher);
    let seed = network.start_peer(&ann, "seed").await;
    let joining = TlsContext::new(TlsMaterial::anonymous(network.folder.authority().certificate()));
    let refused = peer_refusal(&seed.address, &joining.unwrap(), ServerIdentity::AnyPeer).await;
    assert_eq!(refused, Some(Reason::NotAMember));
    seed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_another_network_are_refused_and_refuse() {
    let (kitchen, garden) = (TestNetwork::create("kitchen"), TestNetwork::create("garden"));
    let ann = kitchen.join("ann", Role::Publisher);
    let seed = kitchen.start_peer(&ann, "seed").await;
    let index = kitchen.start_index(kitchen.index_tls()).await;
    let tls = member_tls(&garden.join("eve", Role::Admin));
    let problem = index_problem(&index, &tls).await.unwrap();
    assert!(problem.message.contains("another network"), "{problem}");
    let refused = peer_refusal(&seed.address, &tls, ServerIdentity::AnyPeer).await;
    assert_eq!(refused, Some(Reason::Unauthenticated));
    // Someone who knows the CA's certificate, but has another CA's certificate.
    let eve = garden.join("eve2", Role::Admin);
    let mut material = TlsMaterial::member(&eve, eve.member()).unwrap();
    material.roots = vec![kitchen.folder.authority().certificate().clone()];
    let tls = TlsContext::new(material).unwrap();
    let refused = peer_refusal(&seed.address, &tls, ServerIdentity::AnyPeer).await;
    assert_eq!(refused, Some(Reason::NotAMember));
    seed.stop().await;
}

/// The settings of a peer whose certificate is valid for seven days from `issued`.
fn peer_issued_at(network: &TestNetwork, ann: &Credentials, issued: SystemTime) -> TlsContext {
    let folder = network.path("dated");
    std::fs::create_dir_all(&folder).unwrap();
    let mut peer = StoredIdentity::open(&folder, "peer").unwrap();
    let grant = Grant::Peer {
        member: ann.member().key().member_id(),
        name: "ann",
        role: Role::Reader,
    };
    let certificate = network.certify(&peer, grant, DEFAULT_VALIDITY, issued);
    peer.store_certificate(&certificate, ann.ca(), issued).unwrap();
    TlsContext::new(TlsMaterial::member(ann, &peer).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_have_expired_or_are_not_yet_valid_are_refused() {
    let network = TestNetwork::create("kitchen");
    let ann = network.join("ann", Role::Publisher);
    let seed = network.start_peer(&ann, "seed").await;
    let now = SystemTime::now();
    for issued in [now - 10 * DAY, now + DAY] {
        let tls = peer_issued_at(&network, &ann, issued);
        let endpoint =
            Endpoint::parse_secured(&seed.address.to_string(), &tls, ServerIdentity::AnyPeer);
        let problem = endpoint.unwrap().connect().await.unwrap_err();
        assert!(problem.message.contains("clock"), "{problem}");
    }
    seed.stop().await;
}

fn revoking(members: &[MemberId]) -> RevocationList {
    RevocationList {
        number: 1,
        members: members.iter().copied().collect(),
        ..RevocationList::empty()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_a_revoked_member_are_closed() {
    let network = TestNetwork::create("kitchen");
    let (ann, bob) = (
        network.join("ann", Role::Admin),
        network.join("bob", Role::Reader),
    );
    let tls = network.index_tls();
    let index = network.start_index(tls.clone()).await;
    let (ann_client, bob_client) = [&ann, &bob]
        .map(|member| IndexClient::new(secured_index(&index, &member_tls(member))))
        .into();
    ann_client.stats().await.unwrap();
    bob_client.stats().await.unwrap();
    let file = potluck_core::FileId([7; 32]);
    let mut watch = Box::pin(bob_client.watch_providers(file, 1).await.unwrap());
    watch.next().await.unwrap().unwrap();
    let list = revoking(&[bob.member().key().member_id()]);
    tls.replace(TlsMaterial::index(&network.folder, &list).unwrap())
        .unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), watch.next())
        .await
        .unwrap();
    assert!(ended.is_none_or(|event| event.is_err()), "the stream ends");
    let problem = bob_client.stats().await.unwrap_err();
    assert_eq!(problem.reason, Reason::Revoked, "{problem}");
    ann_client.stats().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_certificate_is_used_without_a_restart() {
    let network = TestNetwork::create("kitchen");
    let ann = network.join("ann", Role::Publisher);
    let seed = network.start_peer(&ann, "seed").await;
    let tls = peer_issued_at(&network, &ann, SystemTime::now() - 10 * DAY);
    let refused = peer_refusal(&seed.address, &tls, ServerIdentity::AnyPeer).await;
    assert_eq!(refused, Some(Reason::CertificateExpired));
    let peer =
        network.certify_peer(&network.path("new"), ann.member().key().member_id(), Role::Reader);
    tls.replace(TlsMaterial::member(&ann, &peer).unwrap()).unwrap();
    let refused = peer_refusal(&seed.address, &tls, ServerIdentity::AnyPeer).await;
    assert_eq!(refused, None);
    seed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_joins_knows_the_index_by_the_hash_of_the_authority() {
    let (kitchen, garden) = (TestNetwork::create("kitchen"), TestNetwork::create("garden"));
    let index = kitchen.start_index(kitchen.index_tls()).await;
    let joining = |network: &TestNetwork| {
        TlsContext::new(TlsMaterial::joining(network.folder.authority().hash())).unwrap()
    };
    let endpoint = secured_index(&index, &joining(&kitchen));
    endpoint.connect().await.unwrap();
    let problem = secured_index(&index, &joining(&garden))
        .connect()
        .await
        .unwrap_err();
    assert!(problem.message.contains("another network"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_with_and_without_tls_get_clear_errors_from_the_other_kind_of_server() {
    let network = TestNetwork::create("kitchen");
    let tls = member_tls(&network.join("ann", Role::Admin));
    let secured = network.start_index(network.index_tls()).await;
    let plain = TestIndex::in_memory().await;
    for problem in [
        secured.endpoint.connect().await.unwrap_err(),
        IndexClient::new(secured.endpoint.clone())
            .stats()
            .await
            .unwrap_err(),
    ] {
        assert_eq!(problem.reason, Reason::NotAMember, "{problem}");
        assert!(problem.message.contains("potluck network join"), "{problem}");
    }
    for problem in [
        secured_index(&plain, &tls).connect().await.unwrap_err(),
        index_problem(&plain, &tls).await.unwrap(),
    ] {
        assert_eq!(problem.reason, Reason::NotPotluck, "{problem}");
        assert!(problem.message.contains("--no-network"), "{problem}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_handshake_is_ended() {
    let network = TestNetwork::create("kitchen");
    let index = network.start_index(network.index_tls()).await;
    let (address, began) = (index.address, Instant::now());
    let dripping = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        // The start of a ClientHello, one byte at a time.
        for byte in [22, 3, 1, 1, 0, 1, 0].into_iter().chain(std::iter::repeat(0)) {
            if stream.write_all(&[byte]).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        stream.read(&mut [0]).is_ok_and(|read| read > 0)
    });
    assert!(!dripping.await.unwrap());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_half_open_handshakes_do_not_keep_a_member_out() {
    let network = TestNetwork::create("kitchen");
    let tls = member_tls(&network.join("ann", Role::Admin));
    let index = network.start_index(network.index_tls()).await;
    let mut held = Vec::new();
    for _ in 0..1000 {
        let mut stream = TcpStream::connect(index.address).unwrap();
        // Half a ClientHello.
        stream.write_all(&[22, 3, 1, 1, 0, 1, 0, 0, 200]).unwrap();
        held.push(stream);
    }
    let began = Instant::now();
    assert_eq!(index_problem(&index, &tls).await, None);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_a_pki_of_ones_own_name_hosts_and_keys() {
    let ca = OwnCa::create();
    let settings = |files: &potluck_core::network::own_pki::OwnPki| {
        TlsContext::new(TlsMaterial::own_pki(files).unwrap()).unwrap()
    };
    let index_tls = settings(&ca.issue("127.0.0.1"));
    let index = TestIndex::secured(index_tls).await;
    let files = ca.issue("seed.example");
    let seed = TestPeer::in_own_pki(&ca.path("seed"), files).await;
    let tls = settings(&ca.issue("ann.example"));
    assert_eq!(index_problem(&index, &tls).await, None);
    let seed_id = seed.running.peer_id;
    for (expected, refusal) in [
        (ServerIdentity::AnyPeer, None),
        (ServerIdentity::Peer(seed_id), None),
        (
            ServerIdentity::Peer(IdentityKey::generate().unwrap().peer_id()),
            Some(Reason::Unauthenticated),
        ),
        // Its certificate does not name the host of the URL.
        (ServerIdentity::Index, Some(Reason::Unauthenticated)),
    ] {
        assert_eq!(peer_refusal(&seed.address, &tls, expected).await, refusal);
    }
    let other = settings(&OwnCa::create().issue("eve.example"));
    let refused = peer_refusal(&seed.address, &other, ServerIdentity::AnyPeer).await;
    assert_eq!(refused, Some(Reason::Unauthenticated));
    seed.stop().await;
}
