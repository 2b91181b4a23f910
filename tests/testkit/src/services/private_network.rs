//! A private network whose certificates the tests issue themselves.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use potluck_core::{
    PeerId,
    network::{
        authority::{DEFAULT_VALIDITY, Grant},
        credentials::Credentials,
        folder::NetworkFolder,
        identity::{MemberId, Role},
        key::SigningRequest,
        revocations::RevocationList,
        stored_identity::StoredIdentity,
        tls::{ServerIdentity, TlsContext, TlsMaterial},
    },
};
use potluck_peer::{Config, home::NETWORK_KEY};
use tempfile::TempDir;

use crate::services::{index::TestIndex, peer::TestPeer};

/// A network with its CA, in a temporary folder.
#[derive(Debug)]
pub struct TestNetwork {
    /// The folder of the index.
    pub folder: NetworkFolder,
    dir: TempDir,
}

impl TestNetwork {
    /// A new network with this name.
    pub fn create(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("network");
        Self {
            folder: NetworkFolder::create(&folder, name, SystemTime::now()).unwrap(),
            dir,
        }
    }

    /// A folder for this test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The TLS settings of the network's index.
    pub fn index_tls(&self) -> TlsContext {
        let material = TlsMaterial::index(&self.folder, &RevocationList::empty()).unwrap();
        TlsContext::new(material).unwrap()
    }

    /// An index with these settings, which keeps everything in memory.
    pub async fn start_index(&self, tls: TlsContext) -> TestIndex {
        TestIndex::secured(tls).await
    }

    /// The credentials of a new member, in a folder of this name.
    pub fn join(&self, name: &str, role: Role) -> Credentials {
        let (folder, now) = (self.path(name), SystemTime::now());
        let member = Credentials::prepare(&folder).unwrap();
        let grant = Grant::Member {
            member: member.key().member_id(),
            name,
            role,
        };
        let certificate = self.certify(&member, grant, DEFAULT_VALIDITY, now);
        let ca = self.folder.authority().certificate();
        Credentials::create(&folder, ca, &certificate, Vec::new(), now).unwrap()
    }

    /// A certificate for the key of `identity`.
    pub fn certify(
        &self,
        identity: &StoredIdentity,
        grant: Grant<'_>,
        validity: Duration,
        now: SystemTime,
    ) -> Vec<u8> {
        let request = SigningRequest::parse(&identity.key().signing_request().unwrap()).unwrap();
        let authority = self.folder.authority();
        authority.issue(&request, grant, validity, now).unwrap().to_vec()
    }

    /// A key with a certificate of a peer of this member, in `folder`.
    pub fn certify_peer(&self, folder: &Path, member: MemberId, role: Role) -> StoredIdentity {
        std::fs::create_dir_all(folder).unwrap();
        let (mut peer, now) = (
            StoredIdentity::open(folder, NETWORK_KEY).unwrap(),
            SystemTime::now(),
        );
        let grant = Grant::Peer {
            member,
            name: "peer",
            role,
        };
        let certificate = self.certify(&peer, grant, DEFAULT_VALIDITY, now);
        let ca = self.folder.authority().certificate();
        peer.store_certificate(&certificate, ca, now).unwrap();
        peer
    }

    /// The TLS settings of a peer of this member.
    pub fn peer_tls(&self, credentials: &Credentials, name: &str) -> (PeerId, TlsContext) {
        let member = credentials.member().key().member_id();
        let peer = self.certify_peer(&self.path(name), member, Role::Publisher);
        let tls = TlsContext::new(TlsMaterial::member(credentials, &peer).unwrap()).unwrap();
        (peer.key().peer_id(), tls)
    }

    /// The configuration of a peer of this member, with its home in a folder of this name.
    pub fn peer_config(&self, credentials: &Credentials, name: &str) -> Config {
        let home = self.path(name);
        let member = credentials.member().key().member_id();
        self.certify_peer(&home.join("state"), member, Role::Publisher);
        Config {
            network: Some(credentials.clone()),
            ..Config::new(home)
        }
    }

    /// A peer of this member.
    pub async fn start_peer(&self, credentials: &Credentials, name: &str) -> TestPeer {
        TestPeer::with_config(self.peer_config(credentials, name)).await
    }
}

/// The settings of a client with this member's own certificate.
pub fn member_tls(credentials: &Credentials) -> TlsContext {
    let material = TlsMaterial::member(credentials, credentials.member()).unwrap();
    TlsContext::new(material).unwrap()
}

/// The index at this address, as a client of the network sees it.
pub fn secured_index(
    index: &TestIndex,
    tls: &TlsContext,
) -> potluck_core::grpc::transport::Endpoint {
    index
        .endpoint
        .clone()
        .secured(tls, ServerIdentity::Index)
        .unwrap()
}
