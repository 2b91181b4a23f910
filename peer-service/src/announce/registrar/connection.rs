//! The client of the index, and the data that every call of a registrar carries.

use std::{sync::Arc, time::Duration};

use potluck_core::{
    FileId, Problem, Token,
    index_client::{INSTANCE, IndexClient},
    model::{Address, Lease, Reachability, Registration},
};
use rand::RngExt as _;

use crate::network::PeerNetwork;

/// How the index knows who calls.
#[derive(Debug, Clone)]
pub enum Caller {
    /// By the token that each call carries.
    Token(Token),
    /// By the certificate of the connection, in a private network.
    Member(Arc<PeerNetwork>),
}

/// The client of the index, and the data that every call carries.
#[derive(Debug, Clone)]
pub struct IndexConnection {
    client: IndexClient,
    caller: Caller,
    address: Address,
    /// The duration of the lease; `None`: the index's default.
    ttl: Option<Duration>,
}

impl Caller {
    const fn token(&self) -> Option<&Token> {
        match self {
            Self::Token(token) => Some(token),
            Self::Member(_) => None,
        }
    }
}

impl IndexConnection {
    /// A connection of one run of this peer. The index gives `address` to other peers.
    pub fn new(
        client: IndexClient,
        caller: Caller,
        address: Address,
        ttl: Option<Duration>,
    ) -> Self {
        Self {
            client: client.with_instance(rand::rng().random::<[u8; INSTANCE]>()),
            caller,
            address,
            ttl,
        }
    }

    /// Registers files, and opens or renews the lease; see [`IndexClient::register`].
    pub(crate) async fn register(
        &self,
        files: &[Registration],
        replace: bool,
    ) -> Result<Lease, Problem> {
        self.client
            .register(self.caller.token(), &self.address, files, self.ttl, replace)
            .await
    }

    /// Renews the lease; see [`IndexClient::renew`]. In a private network, also takes over the list
    /// of revocations.
    pub(crate) async fn renew(&self) -> Result<Lease, Problem> {
        let network = match &self.caller {
            Caller::Token(token) => return self.client.renew(token, &self.address).await,
            Caller::Member(network) => network,
        };
        let known = network.revocations_number();
        let (lease, revocations) = self.client.renew_in_network(&self.address, known).await?;
        if !revocations.is_empty() {
            network.take_revocations(revocations).await;
        }
        Ok(lease)
    }

    /// Lets the index connect to this peer; see [`IndexClient::check_reachability`].
    pub(crate) async fn check_reachability(&self) -> Result<Reachability, Problem> {
        self.client.check_reachability(self.caller.token()).await
    }

    /// Removes registrations; see [`IndexClient::unregister`].
    pub(crate) async fn unregister(&self, files: Option<&[FileId]>) -> Result<u64, Problem> {
        self.client.unregister(self.caller.token(), files).await
    }
}
