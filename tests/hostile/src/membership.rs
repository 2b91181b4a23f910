//! Keys and certificates of an attacker who is a member of a private network.

use std::{path::Path, time::SystemTime};

use potluck_core::{
    PeerId, Token,
    grpc::transport::Endpoint,
    index_client::{IndexClient, member_context},
    model::{Address, Registration},
    network::{
        credentials::Credentials,
        stored_identity::StoredIdentity,
        tls::{ServerIdentity, TlsContext, TlsMaterial},
    },
};
use tempfile::TempDir;

use crate::target::Tls;

/// An attacker: anybody, or a member of a private network.
#[derive(Debug, Clone)]
pub struct Attacker {
    credentials: Option<Credentials>,
}

/// A peer of the attacker, as the index knows it.
#[derive(Debug)]
pub struct AttackingPeer {
    /// Its id.
    pub id: PeerId,
    /// Its settings; `None` in plaintext.
    pub tls: Option<TlsContext>,
    token: Option<Token>,
    index: IndexClient,
    /// Its key, until this is dropped.
    _folder: Option<TempDir>,
}

impl Attacker {
    /// The member whose credentials are in this folder; anybody without a folder.
    ///
    /// # Errors
    /// The credentials cannot be used.
    pub fn new(credentials: Option<&Path>) -> anyhow::Result<Self> {
        let credentials = credentials.map(Credentials::load).transpose()?;
        Ok(Self { credentials })
    }

    /// The TLS settings of an attack on a server; `None` in plaintext.
    ///
    /// # Errors
    /// The credentials cannot be used.
    pub fn tls(&self) -> anyhow::Result<Option<Tls>> {
        let Some(credentials) = &self.credentials else {
            return Ok(None);
        };
        Ok(Some(Tls {
            member: member_context(credentials)?,
            anonymous: TlsContext::new(TlsMaterial::anonymous(credentials.ca()))?,
        }))
    }

    /// A new peer of this attacker: with a random token, or with a certificate from the index.
    ///
    /// # Errors
    /// The index refuses or does not answer.
    pub async fn new_peer(&self, index: &str) -> anyhow::Result<AttackingPeer> {
        let Some(credentials) = &self.credentials else {
            let token = Token::generate();
            return Ok(AttackingPeer {
                id: token.peer_id(),
                tls: None,
                token: Some(token),
                index: IndexClient::new(index.parse::<Endpoint>()?),
                _folder: None,
            });
        };
        let member = member_context(credentials)?;
        let secured = |tls| Endpoint::parse_secured(index, tls, ServerIdentity::Index);
        let folder = tempfile::tempdir()?;
        let mut identity = StoredIdentity::open(folder.path(), "peer")?;
        let request = identity.key().signing_request()?;
        let client = IndexClient::new(secured(&member)?);
        let certificate = client.enroll_peer(request).await?;
        identity.store_certificate(&certificate, credentials.ca(), SystemTime::now())?;
        let tls = TlsContext::new(TlsMaterial::member(credentials, &identity)?)?;
        Ok(AttackingPeer {
            id: identity.key().peer_id(),
            index: IndexClient::new(secured(&tls)?),
            tls: Some(tls),
            token: None,
            _folder: Some(folder),
        })
    }
}

impl AttackingPeer {
    /// Registers files for an hour. In a network without names, which need the role publisher.
    ///
    /// # Errors
    /// The index refuses or does not answer.
    pub async fn register(
        &self,
        address: &Address,
        mut files: Vec<Registration>,
    ) -> anyhow::Result<()> {
        if self.tls.is_some() {
            files.iter_mut().for_each(|file| file.names.clear());
        }
        let ttl = Some(std::time::Duration::from_secs(3600));
        self.index
            .register(self.token.as_ref(), address, &files, ttl, false)
            .await?;
        Ok(())
    }
}
