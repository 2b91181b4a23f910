//! This peer in a private network: its key and certificate, and the TLS settings of its connections.
//!
//! The key is `state/peer.key` in the home, and its certificate `state/peer.crt`. The member's
//! credentials are elsewhere ([`Credentials`]), because all peers of a user share them.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use parking_lot::Mutex;
use potluck_core::{
    PeerId, Problem, Reason,
    index_client::{self, IndexClient, IndexList},
    network::{
        certificate::CertificateInfo,
        credentials::Credentials,
        credentials_error::CredentialsError,
        identity::Role,
        own_pki::OwnPki,
        stored_identity::StoredIdentity,
        tls::{TlsContext, TlsError, TlsMaterial, follow_files},
    },
    process::Hangups,
};
use rand::RngExt as _;
use tokio_util::sync::CancellationToken;

use crate::{fs::blocking::blocking, home::NETWORK_KEY};

/// How often a peer looks whether a certificate is due: an expired one is then replaced soon after
/// the machine wakes up. Jittered, so that peers that joined together do not ask together.
const RENEWAL_CHECK: Duration = Duration::from_secs(60);

/// The same while its certificate has expired.
const EXPIRED_CHECK: Duration = Duration::from_secs(10);

/// The same at the least, for certificates that are valid for seconds.
const MIN_RENEWAL_CHECK: Duration = Duration::from_secs(1);

/// How long the start of a peer waits for a certificate in place of one that has expired.
const RENEWAL_AT_START: Duration = Duration::from_secs(5);

/// A peer's place in a private network.
#[derive(Debug)]
pub struct PeerNetwork {
    peer_id: PeerId,
    tls: TlsContext,
    source: Source,
}

/// Where this peer's certificate comes from.
#[derive(Debug)]
enum Source {
    /// The index of the private network issues it.
    Joined(Arc<Mutex<NetworkState>>),
    /// Something else renews its files.
    OwnPki(OwnPki),
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

    /// Whether the certificate of the peer is valid now.
    fn check(&self, now: SystemTime) -> Result<(), CredentialsError> {
        self.identity.check(self.credentials.ca(), now)
    }

    /// How long until a certificate of the peer or its member is due.
    fn time_until_renewal(&self, now: SystemTime) -> Duration {
        let identities = [self.credentials.member(), &self.identity];
        let infos = identities.into_iter().filter_map(StoredIdentity::info);
        let due = infos.map(|info| info.renew_at().duration_since(now).unwrap_or_default());
        due.min().unwrap_or(RENEWAL_CHECK)
    }
}

impl PeerNetwork {
    /// Loads this peer's key and certificate from its state folder. On the first start, and after this
    /// machine joined as another member, generates the key and asks the index for the certificate.
    ///
    /// # Errors
    /// [`Reason::Unauthenticated`] if there is no certificate and no index; the problem of the call to
    /// the index; otherwise the reason why a file cannot be used.
    pub(crate) async fn open(
        mut credentials: Credentials,
        state: PathBuf,
        index: Option<&IndexList>,
    ) -> Result<Self, Problem> {
        let member = credentials.member().key().member_id();
        let load = move || {
            let identity = StoredIdentity::open(&state, NETWORK_KEY)?;
            let owner = identity.info().and_then(CertificateInfo::identity);
            if owner.is_none_or(|owner| owner.member == member) {
                return Ok(identity);
            }
            // The old member left or was revoked, and its keys with it.
            tracing::warn!(
                "this machine joined again as another member: the peer gets a new key and id"
            );
            identity.remove()?;
            StoredIdentity::open(&state, NETWORK_KEY)
        };
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
                index_client::renew_member(&mut credentials).await?;
                identity = enroll(&credentials, identity, index).await?;
            }
            // Renewed below.
            Err(CredentialsError::Expired { .. }) if index.is_some() => {}
            Err(error) => return Err(error.into()),
        }
        let state = NetworkState {
            credentials,
            identity,
        };
        let network = Self {
            peer_id: state.identity.key().peer_id(),
            tls: TlsContext::new(state.material()?).map_err(tls_problem)?,
            source: Source::Joined(Arc::new(Mutex::new(state))),
        };
        if let Some(index) = index {
            network.renew_if_expired(index).await;
        }
        Ok(network)
    }

    /// Renews the certificate of this peer at its start if it has expired, because until then other
    /// peers and the index refuse it. After a failure, the peer tries again while it runs.
    async fn renew_if_expired(&self, index: &IndexList) {
        let now = SystemTime::now();
        let Some(Err(error)) = self.joined().map(|state| state.lock().check(now)) else {
            return;
        };
        let why = match tokio::time::timeout(RENEWAL_AT_START, self.renew_if_due(index, now)).await
        {
            Ok(Ok(())) => return,
            Ok(Err(problem)) => problem.message,
            Err(_) => "the index does not answer in time".to_owned(),
        };
        tracing::warn!(%error, %why, "this peer cannot reach others yet");
    }

    /// Uses a certificate of a PKI of one's own.
    ///
    /// # Errors
    /// [`Reason::InvalidArgument`] if a file cannot be used.
    pub(crate) async fn with_own_pki(files: OwnPki) -> Result<Self, Problem> {
        let load = {
            let files = files.clone();
            move || TlsMaterial::own_pki(&files)
        };
        let material = blocking(load).await??;
        let peer_id = material.peer_id().ok_or_else(|| {
            Problem::new(Reason::InvalidArgument, "the TLS certificate is not X.509")
        })?;
        Ok(Self {
            peer_id,
            tls: TlsContext::new(material).map_err(tls_problem)?,
            source: Source::OwnPki(files),
        })
    }

    fn joined(&self) -> Option<&Arc<Mutex<NetworkState>>> {
        match &self.source {
            Source::Joined(state) => Some(state),
            Source::OwnPki(_) => None,
        }
    }

    /// This peer's id, which follows from its key.
    pub fn peer_id(&self) -> PeerId {
        self.peer_id
    }

    /// The settings of its connections.
    pub(crate) const fn tls(&self) -> &TlsContext {
        &self.tls
    }

    /// Keeps the certificates of this peer and of its member valid until `stop`: renews each in the
    /// second half of its validity, through the index at `index`.
    pub(crate) async fn keep_valid(
        self: Arc<Self>,
        index: Option<IndexList>,
        hangups: Hangups,
        stop: CancellationToken,
    ) {
        if let Source::OwnPki(files) = &self.source {
            let tls = self.tls.clone();
            return follow_files(tls, files.clone(), Some(self.peer_id), hangups, stop).await;
        }
        let Some(index) = index else { return };
        loop {
            // Dropping a renewal loses nothing: the next one asks again.
            let renewed = tokio::select! {
                () = stop.cancelled() => return,
                renewed = self.renew_if_due(&index, SystemTime::now()) => renewed,
            };
            let wait = self.wait_after(renewed, SystemTime::now());
            tokio::select! {
                // Both arms only wait.
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// How long to wait after an attempt to renew, and a message if it failed.
    fn wait_after(&self, renewed: Result<(), Problem>, now: SystemTime) -> Duration {
        let Some(state) = self.joined() else {
            return RENEWAL_CHECK;
        };
        let (valid, until_due, until_expiry) = {
            let state = state.lock();
            let ends = state.identity.info().map(|info| info.not_after);
            let until_expiry = ends.and_then(|ends| ends.duration_since(now).ok());
            (
                state.check(now),
                state.time_until_renewal(now),
                until_expiry.unwrap_or_default(),
            )
        };
        let wait = match (renewed, valid) {
            (Ok(()), _) => until_due.min(RENEWAL_CHECK),
            (Err(problem), Ok(())) => {
                tracing::warn!(%problem, "a certificate of this peer was not renewed yet");
                // Several times before it expires.
                until_expiry.min(RENEWAL_CHECK * 4) / 4
            }
            (Err(problem), Err(error)) => {
                tracing::warn!(%error, why = %problem, "this peer cannot reach others");
                EXPIRED_CHECK
            }
        };
        wait.mul_f64(rand::rng().random_range(0.5..=1.0))
            .max(MIN_RENEWAL_CHECK)
    }

    /// Renews the certificates of this peer and of its member that are due.
    ///
    /// # Errors
    /// The problem of the call to the index, or of storing a certificate.
    pub(crate) async fn renew_if_due(
        &self,
        index: &IndexList,
        now: SystemTime,
    ) -> Result<(), Problem> {
        let Some(shared) = self.joined() else {
            return Ok(());
        };
        reload_credentials(shared, &self.tls).await?;
        let (ca, member, peer) = {
            let state = shared.lock();
            let member = state.credentials.member().clone();
            (state.credentials.ca().clone(), member, state.identity.clone())
        };
        if !member.needs_renewal(now) && !peer.needs_renewal(now) {
            return Ok(());
        }
        // Without a certificate, because the own one may have expired.
        let tls = TlsContext::new(TlsMaterial::anonymous(&ca)).map_err(tls_problem)?;
        let client = IndexClient::new(index.clone().secured(&tls)?);
        if member.needs_renewal(now) {
            let certificate = renew(&client, &member).await?;
            let state = Arc::clone(shared);
            let store = move || state.lock().credentials.store_certificate(&certificate, now);
            blocking(store).await??;
        }
        if peer.needs_renewal(now) {
            let certificate = renew(&client, &peer).await?;
            let (state, tls) = (Arc::clone(shared), self.tls.clone());
            let store = move || {
                let mut state = state.lock();
                state.identity.store_certificate(&certificate, &ca, now)?;
                tls.replace(state.material()?)
            };
            blocking(store).await?.map_err(tls_problem)?;
            tracing::info!(peer = %self.peer_id.short(), "renewed this peer's certificate");
        }
        Ok(())
    }

    /// The member's role when this peer's certificate was issued.
    pub(crate) fn role(&self) -> Option<Role> {
        let state = self.joined()?.lock();
        let identity = state.identity.info().and_then(CertificateInfo::identity);
        identity.map(|identity| identity.role)
    }

    /// The number of the newest known list of revocations; 0: none.
    pub(crate) fn revocations_number(&self) -> u64 {
        let Some(state) = self.joined() else { return 0 };
        let state = state.lock();
        let known = state.credentials.revocations();
        known.map_or(0, |signed| signed.list().number)
    }

    /// Stores a list of revocations, and closes connections that it names. A list that this network
    /// did not sign, and one that is not newer, is ignored.
    pub(crate) async fn take_revocations(&self, signed: Bytes) {
        let Some(state) = self.joined() else { return };
        let (state, tls) = (Arc::clone(state), self.tls.clone());
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

/// Reads what other processes of this user stored: renewed certificates, lists of revocations.
async fn reload_credentials(
    state: &Arc<Mutex<NetworkState>>,
    tls: &TlsContext,
) -> Result<(), Problem> {
    let (state, tls) = (Arc::clone(state), tls.clone());
    let reload = move || {
        let mut state = state.lock();
        let loaded = Credentials::load(state.credentials.folder())?;
        let number = |credentials: &Credentials| {
            credentials.revocations().map_or(0, |signed| signed.list().number)
        };
        let is_newer = number(&loaded) > number(&state.credentials);
        state.credentials = loaded;
        match is_newer {
            true => tls.replace(state.material()?),
            false => Ok(()),
        }
    };
    blocking(reload).await?.map_err(tls_problem)
}

/// Asks the index, as this member, for the certificate of a peer.
async fn enroll(
    credentials: &Credentials,
    mut identity: StoredIdentity,
    index: &IndexList,
) -> Result<StoredIdentity, Problem> {
    credentials.member().check(credentials.ca(), SystemTime::now())?;
    let member = TlsMaterial::member(credentials, credentials.member())?;
    let tls = TlsContext::new(member).map_err(tls_problem)?;
    let index = IndexClient::new(index.clone().secured(&tls)?);
    let certificate = index.enroll_peer(signing_request(&identity)?).await?;
    let ca = credentials.ca().clone();
    let store = move || {
        identity.store_certificate(&certificate, &ca, SystemTime::now())?;
        Ok::<_, CredentialsError>(identity)
    };
    Ok(blocking(store).await??)
}

/// Asks the index for a new certificate with the same key.
async fn renew(index: &IndexClient, identity: &StoredIdentity) -> Result<Bytes, Problem> {
    index.renew_certificate(signing_request(identity)?).await
}

fn signing_request(identity: &StoredIdentity) -> Result<Vec<u8>, Problem> {
    identity.key().signing_request().map_err(|error| {
        Problem::new(
            Reason::Internal,
            format!("cannot sign a request for a certificate: {error}"),
        )
    })
}

fn tls_problem(error: TlsError) -> Problem {
    match error {
        TlsError::Credentials(error) => error.into(),
        other => Problem::new(Reason::InvalidArgument, other.to_string()),
    }
}
