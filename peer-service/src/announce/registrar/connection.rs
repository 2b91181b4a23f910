//! The client of the index, and the data that every call of a registrar carries.

use std::time::Duration;

use potluck_core::{
    FileId, Problem, Token,
    index_client::{INSTANCE, IndexClient},
    model::{Address, Lease, Registration},
};
use rand::RngExt as _;

/// The client of the index, and the data that every call carries.
#[derive(Debug, Clone)]
pub struct IndexConnection {
    client: IndexClient,
    token: Token,
    address: Address,
    /// The duration of the lease; `None`: the index's default.
    ttl: Option<Duration>,
}

impl IndexConnection {
    /// A connection of one run of this peer. The index gives `address` to other peers.
    pub fn new(client: IndexClient, token: Token, address: Address, ttl: Option<Duration>) -> Self {
        Self {
            client: client.with_instance(rand::rng().random::<[u8; INSTANCE]>()),
            token,
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
            .register(&self.token, &self.address, files, self.ttl, replace)
            .await
    }

    /// Renews the lease; see [`IndexClient::renew`].
    pub(crate) async fn renew(&self) -> Result<Lease, Problem> {
        self.client.renew(&self.token, &self.address).await
    }

    /// Removes registrations; see [`IndexClient::unregister`].
    pub(crate) async fn unregister(&self, files: Option<&[FileId]>) -> Result<u64, Problem> {
        self.client.unregister(&self.token, files).await
    }
}
