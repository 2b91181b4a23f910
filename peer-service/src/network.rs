//! This peer in a private network: its key and certificate, and the TLS settings of its connections.
//!
//! The key is `state/peer.key` in the home, and its certificate `state/peer.crt`. The member's
//! credentials are elsewhere ([`Credentials`]), because all peers of a user share them.

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use potluck_core::{
    PeerId, Problem, Reason,
    grpc::transport::Endpoint,
    index_client::IndexClient,
    network::{
        credentials::Credentials,
        credentials_error::CredentialsError,
        stored_identity::StoredIdentity,
        tls::{ServerIdentity, TlsContext, TlsError, TlsMaterial},
    },
};

use crate::fs::blocking::blocking;

/// The stem of the names of a peer's key and certificate in its state folder.
pub const PEER: &str = "peer";

/// A peer's place in a private network.
#[derive(Debug)]
pub struct PeerNetwork {
    peer_id: PeerId,
    tls: TlsContext,
    state: Arc<Mutex<NetworkState>>,
}

#[derive(Debug)]
struct NetworkState {
    credentials: Credentials,
    identity: StoredIdentity,
}

impl NetworkState {
    fn material(&self) -> Result<TlsMaterial, CredentialsError> {
        TlsMaterial::member(&self.credentials, &self.identity)
    }
}

impl PeerNetwork {
    /// Loads this peer's key and certificate from its state folder. On the first start, generates the
    /// key and asks the index for the certificate.
    ///
    /// # Errors
    /// [`Reason::Unauthenticated`] if there is no certificate and no index; the problem of the call to
    /// the index; otherwise the reason why a file cannot be used.
    pub(crate) async fn open(
        credentials: Credentials,
        state: PathBuf,
        index: Option<&Endpoint>,
    ) -> Result<Self, Problem> {
        let load = move || StoredIdentity::open(&state, PEER);
        let mut identity = blocking(load).await??;
        match identity.check(credentials.ca(), SystemTime::now()) {
            Ok(()) => {}
            Err(
                error @ (CredentialsError::NoCertificate { .. }
                | CredentialsError::OtherNetwork { .. }),
            ) => {
                let Some(index) = index else {
                    return Err(error.into());
                };
                identity = enroll(&credentials, identity, index).await?;
            }
            Err(error) => return Err(error.into()),
        }
        let state = NetworkState {
            credentials,
            identity,
        };
        Ok(Self {
            peer_id: state.identity.key().peer_id(),
            tls: TlsContext::new(state.material()?).map_err(tls_problem)?,
            state: Arc::new(Mutex::new(state)),
        })
    }

    /// This peer's id, which follows from its key.
    pub fn peer_id(&self) -> PeerId {
        self.peer_id
    }

    /// The settings of its connections.
    pub(crate) const fn tls(&self) -> &TlsContext {
        &self.tls
    }

    /// The number of the newest known list of revocations; 0: none.
    pub(crate) fn revocations_number(&self) -> u64 {
        let state = self.state.lock();
        let known = state.credentials.revocations();
        known.map_or(0, |signed| signed.list().number)
    }

    /// Stores a list of revocations, and closes connections that it names. A list that this network
    /// did not sign, and one that is not newer, is ignored.
    pub(crate) async fn take_revocations(&self, signed: Bytes) {
        let (state, tls) = (Arc::clone(&self.state), self.tls.clone());
        let take = move || {
            let mut state = state.lock();
            if !state.credentials.store_revocations(&signed)? {
                return Ok(());
            }
            let material = state.material()?;
            drop(state);
            tls.replace(material)
        };
        match blocking(take).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a list of revocations was not taken over"),
            Err(problem) => tracing::warn!(%problem, "a list of revocations was not taken over"),
        }
    }
}

/// Asks the index, as this member, for the certificate of a peer.
async fn enroll(
    credentials: &Credentials,
    mut identity: StoredIdentity,
    index: &Endpoint,
) -> Result<StoredIdentity, Problem> {
    credentials.member().check(credentials.ca(), SystemTime::now())?;
    let member = TlsMaterial::member(credentials, credentials.member())?;
    let tls = TlsContext::new(member).map_err(tls_problem)?;
    let index = IndexClient::new(index.clone().secured(&tls, ServerIdentity::Index)?);
    let request = identity.key().signing_request().map_err(|error| {
        Problem::new(
            Reason::Internal,
            format!("cannot sign a request for a certificate: {error}"),
        )
    })?;
    let certificate = index.enroll_peer(request).await?;
    let ca = credentials.ca().clone();
    let store = move || {
        identity.store_certificate(&certificate, &ca, SystemTime::now())?;
        Ok::<_, CredentialsError>(identity)
    };
    Ok(blocking(store).await??)
}

fn tls_problem(error: TlsError) -> Problem {
    match error {
        TlsError::Credentials(error) => error.into(),
        other => Problem::new(Reason::InvalidArgument, other.to_string()),
    }
}
