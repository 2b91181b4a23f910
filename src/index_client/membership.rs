//! Calls of a machine that joins a private network, and of its members, to renew their certificates.

use bytes::Bytes;

use crate::{
    Problem,
    index_client::client::IndexClient,
    proto::v1::{self, network_service_client::NetworkServiceClient},
};
use tonic::transport::Channel;

impl IndexClient {
    fn network(&self) -> NetworkServiceClient<Channel> {
        NetworkServiceClient::new(self.channel().clone())
    }

    /// Returns a certificate, X.509 in DER, for a peer of the calling member. `signing_request` is
    /// signed by the peer's key.
    ///
    /// # Errors
    /// Those of `NetworkService.EnrollPeer`.
    pub async fn enroll_peer(&self, signing_request: Vec<u8>) -> Result<Bytes, Problem> {
        let request = v1::EnrollPeerRequest {
            signing_request: signing_request.into(),
        };
        let answer = self.call(self.network().enroll_peer(request)).await?;
        Ok(answer.certificate)
    }

    /// Returns a new certificate, X.509 in DER, for the key that signed `signing_request`. The
    /// connection needs no certificate, because the own one may have expired.
    ///
    /// # Errors
    /// Those of `NetworkService.RenewCertificate`.
    pub async fn renew_certificate(&self, signing_request: Vec<u8>) -> Result<Bytes, Problem> {
        let request = v1::RenewCertificateRequest {
            signing_request: signing_request.into(),
        };
        let answer = self.call(self.network().renew_certificate(request)).await?;
        Ok(answer.certificate)
    }
}
