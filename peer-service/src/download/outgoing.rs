//! How this peer opens connections to other peers.

use std::net::IpAddr;

use potluck_core::{
    PeerId, Problem,
    grpc::transport::Endpoint,
    model::Address,
    network::tls::{ServerIdentity, TlsContext},
};

use crate::locality::Locality;

/// How this peer opens connections to other peers.
#[derive(Debug, Clone, Default)]
pub struct Outgoing {
    /// The local address, so that peers and the index see the address on which this peer listens.
    /// `None`: the system chooses.
    pub local_address: Option<IpAddr>,
    /// TLS in a network; `None` for plaintext.
    pub tls: Option<TlsContext>,
    /// Where this machine is.
    pub locality: Locality,
}

impl Outgoing {
    /// The endpoint at `address`. In a network, `peer` must answer there; `None` for any peer of the
    /// network.
    ///
    /// # Errors
    /// [`potluck_core::Reason::InvalidAddress`].
    pub(crate) fn endpoint(
        &self,
        address: &Address,
        peer: Option<PeerId>,
    ) -> Result<Endpoint, Problem> {
        let address = address.to_string();
        match &self.tls {
            None => address.parse(),
            Some(tls) => {
                let expected = peer.map_or(ServerIdentity::AnyPeer, ServerIdentity::Peer);
                Endpoint::parse_secured(&address, tls, expected)
            }
        }
    }
}
