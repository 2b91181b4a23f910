//! Certificates, the revocation list, and what connections may do.
//!
//! Calls read a copy of the members that a change replaces, so that no call waits for the disk. A
//! change takes the journal, which syncs its line before the change counts; run it on a thread that
//! may block.
//!
//! Another process may change the journal (`potluck network invite` on this machine), and another index
//! the common log, so [`PrivateNetwork::maintain`] reads them again every second.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use potluck_core::{
    PeerId, Sha256,
    network::{
        authority::{AuthorityError, Grant},
        credentials_error::CredentialsError,
        folder::{NetworkFolder, NetworkFolderError},
        identity::{CertifiedIdentity, MemberId, Role},
        key::SigningRequest,
        revocations::{RevocationList, SignedRevocations},
        tls::{TlsContext, TlsError, TlsMaterial},
    },
};
use tokio_util::sync::CancellationToken;

use crate::network::{
    journal::JournalError,
    member_store::{MemberStore, NetworkLog},
    membership::{Enrollment, Event, MemberEntry, Membership, MembershipError},
    shared_members::SharedMembersError,
};
use crate::store::shared_log::SharedLog;

/// How often the journal is read again. A code that was made on this machine works after that time.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// How often expired connections are closed, and the index's own certificate is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// The reason why a network cannot be served, or an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The folder cannot be used.
    #[error(transparent)]
    Folder(#[from] NetworkFolderError),
    /// The CA failed.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The index's certificate cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The members cannot be read or changed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The members that several indexes share cannot be read or changed.
    #[error(transparent)]
    Shared(SharedMembersError),
    /// The operation is refused.
    #[error(transparent)]
    #[allow(
        private_interfaces,
        reason = "callers outside this crate only print it"
    )]
    Refused(#[from] MembershipError),
}

impl From<SharedMembersError> for NetworkError {
    fn from(error: SharedMembersError) -> Self {
        match error {
            SharedMembersError::Journal(error) => error.into(),
            error => Self::Shared(error),
        }
    }
}

/// A certificate that was issued.
#[derive(Debug)]
pub(crate) struct Issued {
    /// X.509 in DER.
    pub(crate) certificate: Vec<u8>,
    /// The member.
    pub(crate) member: MemberId,
    /// The peer; `None` for the member itself.
    pub(crate) peer: Option<PeerId>,
    /// The member's role.
    pub(crate) role: Role,
}

/// The network that this index serves.
#[derive(Debug)]
pub(crate) struct PrivateNetwork {
    /// Locked while the disk, or the store of several indexes, makes a change.
    store: Mutex<MemberStore>,
    /// Locked after `store`, and for a moment only.
    folder: Mutex<NetworkFolder>,
    members: RwLock<Arc<Membership>>,
    revocations: RwLock<SignedRevocations>,
    tls: TlsContext,
    /// How long the certificates that it issues are valid.
    lifetime: Duration,
}

impl PrivateNetwork {
    /// Opens the network in a folder. Certificates of members and peers are valid for `lifetime`.
    /// `log` is that of several indexes, which share the members.
    ///
    /// # Errors
    /// [`NetworkError`]; its message says what to do.
    pub(crate) fn open(
        path: &Path,
        lifetime: Duration,
        log: Option<Box<dyn SharedLog>>,
    ) -> Result<Self, NetworkError> {
        let now = SystemTime::now();
        let folder = NetworkFolder::open(path, now)?;
        let authority = folder.authority();
        let log = log.map(|log| NetworkLog {
            log,
            network: authority.hash().to_string(),
            secret: authority.shared_secret("members"),
        });
        let store = MemberStore::open(path, log, unix(now))?;
        let members = store.members().clone();
        let revocations = folder.authority().sign_revocations(list_of(&members, now))?;
        let tls = TlsContext::new(TlsMaterial::index(&folder, revocations.list())?)?;
        Ok(Self {
            folder: Mutex::new(folder),
            store: Mutex::new(store),
            members: RwLock::new(Arc::new(members)),
            revocations: RwLock::new(revocations),
            tls,
            lifetime,
        })
    }

    /// The TLS settings, which follow the revocations.
    pub(crate) const fn tls(&self) -> &TlsContext {
        &self.tls
    }

    /// The members now.
    pub(crate) fn members(&self) -> Arc<Membership> {
        Arc::clone(&self.members.read())
    }

    /// Checks that the member of a connection has at least this role now.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub(crate) fn require(
        &self,
        identity: &CertifiedIdentity,
        role: Role,
    ) -> Result<(), MembershipError> {
        self.members.read().require(&identity.member, role)
    }

    /// The signed list of revocations, if its number is higher than this one.
    pub(crate) fn revocations_after(&self, number: u64) -> Bytes {
        let signed = self.revocations.read();
        match signed.list().number > number {
            true => signed.as_bytes().clone(),
            false => Bytes::new(),
        }
    }

    /// The certificate of the network's CA, X.509 in DER.
    pub(crate) fn authority(&self) -> Vec<u8> {
        self.folder.lock().authority().certificate().to_vec()
    }

    /// Makes the holder of a code's secret and of the request's key a member.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) fn enroll(
        &self,
        secret_hash: Sha256,
        request: &SigningRequest,
        name: &str,
    ) -> Result<Issued, NetworkError> {
        let now = SystemTime::now();
        let member = request.member_id();
        self.change(|members, folder| {
            let (certificate, role, event) =
                match members.enroll(&secret_hash, &member, name, unix(now))? {
                    Enrollment::Repeated { certificate, role } => (certificate, role, None),
                    Enrollment::New { role } => {
                        let grant = Grant::Member { member, name, role };
                        let certificate = self.issue(folder, request, grant, now)?;
                        let expires = unix(now + self.lifetime);
                        let event = members.joined(
                            secret_hash,
                            member,
                            name,
                            certificate.clone(),
                            expires,
                            unix(now),
                        )?;
                        (certificate, role, Some(event))
                    }
                };
            let issued = Issued {
                certificate,
                member,
                peer: None,
                role,
            };
            Ok((issued, event))
        })
    }

    /// Issues the certificate of a peer of a member.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) fn enroll_peer(
        &self,
        member: MemberId,
        request: &SigningRequest,
    ) -> Result<Issued, NetworkError> {
        self.certify(request, |members, _| {
            let peer = request.peer_id();
            let role = members.enroll_peer(&member, &peer)?;
            Ok((member, Some(peer), role))
        })
    }

    /// Renews the certificate of the member or peer with the request's key.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) fn renew(&self, request: &SigningRequest) -> Result<Issued, NetworkError> {
        self.certify(request, |members, now| {
            members.renew(&request.member_id(), &request.peer_id(), now)
        })
    }

    fn certify(
        &self,
        request: &SigningRequest,
        decide: impl Fn(&Membership, u64) -> Result<(MemberId, Option<PeerId>, Role), MembershipError>,
    ) -> Result<Issued, NetworkError> {
        let now = SystemTime::now();
        self.change(|members, folder| {
            let (member, peer, role) = decide(members, unix(now))?;
            let name = &members.active(&member)?.name;
            let grant = match peer {
                Some(_) => Grant::Peer { member, name, role },
                None => Grant::Member { member, name, role },
            };
            let issued = Issued {
                certificate: self.issue(folder, request, grant, now)?,
                member,
                peer,
                role,
            };
            let expires = unix(now + self.lifetime);
            let event = Event::Certified {
                member,
                peer,
                expires,
            };
            Ok((issued, Some(event)))
        })
    }

    fn issue(
        &self,
        folder: &NetworkFolder,
        request: &SigningRequest,
        grant: Grant<'_>,
        now: SystemTime,
    ) -> Result<Vec<u8>, NetworkError> {
        let issued = folder.authority().issue(request, grant, self.lifetime, now)?;
        Ok(issued.to_vec())
    }

    /// Opens a code and returns when it expires.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) fn invite(
        &self,
        by: MemberId,
        secret_hash: Sha256,
        role: Role,
        uses: Option<u32>,
        ttl: Option<Duration>,
    ) -> Result<u64, NetworkError> {
        let now = unix(SystemTime::now());
        self.change(|members, _| {
            let event = members.invite(Some(by), secret_hash, role, uses, ttl, now)?;
            let expires = match &event {
                Event::Invited { invite, .. } => invite.expires,
                _ => now,
            };
            Ok((expires, Some(event)))
        })
    }

    /// Revokes a member. Returns the number of codes that this voided.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) fn revoke(&self, by: MemberId, member: MemberId) -> Result<usize, NetworkError> {
        let now = unix(SystemTime::now());
        self.change(|members, _| {
            let voided = members.open_codes_of(&member, now);
            Ok((voided, members.revoke(Some(&by), &member, now)?))
        })
    }

    /// Ends a membership by its own wish. Returns the number of codes that this voided. The member's
    /// connections stay open, so that it receives the answer, until
    /// [`close_revoked`](Self::close_revoked); they are refused every other call.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) fn leave(&self, member: MemberId) -> Result<usize, NetworkError> {
        let now = unix(SystemTime::now());
        self.change_and_keep_connections(|members, _| {
            let voided = members.open_codes_of(&member, now);
            Ok((voided, Some(members.leave(&member, now)?)))
        })
    }

    /// Ends the use of a peer's key. Its connections stay open like those in
    /// [`leave`](Self::leave).
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) fn peer_leaves(&self, member: MemberId, peer: PeerId) -> Result<(), NetworkError> {
        let now = unix(SystemTime::now());
        let leave = |members: &Membership, _: &NetworkFolder| {
            Ok(((), members.peer_leaves(&member, peer, now)?))
        };
        self.change_and_keep_connections(leave)
    }

    /// Closes the connections of revoked members and peers.
    pub(crate) fn close_revoked(&self) {
        self.tls.close_revoked();
    }

    /// Up to `max` members in the order of their ids, from the one after `after`.
    pub(crate) fn list(&self, after: Option<MemberId>, max: usize) -> Vec<(MemberId, MemberEntry)> {
        let members = self.members();
        let page = members.members(after).take(max);
        page.map(|(id, entry)| (*id, entry.clone())).collect()
    }

    /// Makes a change, publishes the members, and closes the connections of those that it revokes.
    fn change<T>(
        &self,
        decide: impl Fn(&Membership, &NetworkFolder) -> Result<(T, Option<Event>), NetworkError>,
    ) -> Result<T, NetworkError> {
        let answer = self.change_and_keep_connections(decide);
        self.close_revoked();
        answer
    }

    /// Makes a change, then publishes the members.
    fn change_and_keep_connections<T>(
        &self,
        decide: impl Fn(&Membership, &NetworkFolder) -> Result<(T, Option<Event>), NetworkError>,
    ) -> Result<T, NetworkError> {
        let mut store = self.store.lock();
        let answer = store.change(|members| decide(members, &self.folder.lock()));
        // Also after an error: the change first reads what other processes wrote.
        self.publish(&self.folder.lock(), store.members())?;
        answer
    }

    fn publish(&self, folder: &NetworkFolder, members: &Membership) -> Result<(), NetworkError> {
        if **self.members.read() == *members {
            return Ok(());
        }
        *self.members.write() = Arc::new(members.clone());
        if members.revocations_number() == self.revocations.read().list().number {
            return Ok(());
        }
        let list = list_of(members, SystemTime::now());
        let signed = folder.authority().sign_revocations(list)?;
        // From now on handshakes of revoked members fail.
        self.tls.set(TlsMaterial::index(folder, signed.list())?)?;
        *self.revocations.write() = signed;
        Ok(())
    }

    /// Follows changes by other processes, renews the index's own certificate, and closes
    /// connections whose certificate has expired, until `stop`.
    pub(crate) async fn maintain(self: Arc<Self>, stop: CancellationToken) {
        let mut next_check = Instant::now() + CHECK_INTERVAL;
        let mut shown: Option<String> = None;
        loop {
            // Both arms are cancel-safe.
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(REFRESH_INTERVAL) => {}
            }
            let is_check_due = next_check <= Instant::now();
            if is_check_due {
                next_check = Instant::now() + CHECK_INTERVAL;
            }
            let network = Arc::clone(&self);
            let done = tokio::task::spawn_blocking(move || network.follow(is_check_due)).await;
            match done {
                Ok(Ok(())) => shown = None,
                Ok(Err(error)) => {
                    let message = error.to_string();
                    // Once a second is too often to repeat it.
                    if shown.as_ref() != Some(&message) {
                        tracing::warn!(error = message, "cannot follow the network's members");
                    }
                    shown = Some(message);
                }
                Err(error) => tracing::error!(%error, "following the network's members panicked"),
            }
        }
    }

    fn follow(&self, is_check_due: bool) -> Result<(), NetworkError> {
        let mut store = self.store.lock();
        let refreshed = store.refresh();
        // Also after an error: a part may have been read.
        self.publish(&self.folder.lock(), store.members())?;
        self.close_revoked();
        if is_check_due {
            let now = SystemTime::now();
            self.tls.close_expired(now);
            let mut folder = self.folder.lock();
            if folder.renew_index(now)? {
                let list = self.revocations.read().list().clone();
                self.tls.replace(TlsMaterial::index(&folder, &list)?)?;
                tracing::info!("renewed the certificate of the index");
            }
            drop(folder);
            store.compact_log(unix(now))?;
        }
        refreshed?;
        Ok(())
    }
}

fn list_of(members: &Membership, now: SystemTime) -> RevocationList {
    RevocationList {
        number: members.revocations_number(),
        made_at: now,
        members: members.revoked().copied().collect(),
        peers: members.revoked_peers().copied().collect(),
    }
}

/// Seconds since the Unix epoch; 0 if the clock is before it.
pub(crate) fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
