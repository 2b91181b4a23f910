//! Implements `NetworkService`: parses requests, changes the members, builds responses.
//!
//! The access layer has checked the role of the caller before a method runs. An index with a PKI of
//! one's own has no members: it offers only the removal of registrations and names.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use potluck_core::{
    FileId, PeerId, Problem, Reason, Sha256,
    collection::path::Label,
    convert,
    model::Registration,
    network::{
        identity::{CertifiedIdentity, MemberId, Role},
        join_code::JoinSecret,
        key::SigningRequest,
    },
    proto::v1::{self, network_service_server::NetworkService},
};
use tonic::{Request, Response, Status};

use crate::{
    catalog::cost,
    commit::{CommitRequest, Committer},
    grpc::access_layer::{caller, require},
    network::{
        audit::{AuditEntry, AuditLog, Caller},
        membership::{MemberEntry, MemberState},
        private_network::{NetworkError, PrivateNetwork},
    },
    problem::{invalid_field, invalid_name},
    rate_limiter::RateLimiter,
    registry::Registry,
    store::PeerRecord,
};

/// Attempts to enrol or renew per second from one address. A code has 128 random bits, so guessing is
/// hopeless at any rate; this bounds the work that strangers cause.
const ATTEMPTS_PER_SECOND: u32 = 10;

/// Attempts per second from all addresses together.
const ALL_ATTEMPTS_PER_SECOND: u32 = 100;

/// Attempts that one with a wrong code counts as, besides itself.
const FAILURE_COST: u32 = 9;

/// Time for the answer to a member that leaves, until its connections are closed.
const FAREWELL: Duration = Duration::from_secs(2);

/// The limiters of attempts.
#[derive(Debug)]
struct AttemptLimiters {
    by_address: RateLimiter,
    all: RateLimiter,
}

/// The state of the service.
#[derive(Debug)]
pub(crate) struct NetworkApi {
    /// `None` with a PKI of one's own.
    network: Option<Arc<PrivateNetwork>>,
    audit: AuditLog,
    registry: Arc<Registry>,
    committer: Committer,
    attempts: Mutex<AttemptLimiters>,
}

impl NetworkApi {
    /// A service for the members of `network`, or without one for those of a PKI of one's own.
    pub(crate) fn new(
        network: Option<Arc<PrivateNetwork>>,
        audit: AuditLog,
        registry: Arc<Registry>,
        committer: Committer,
    ) -> Self {
        Self {
            network,
            audit,
            registry,
            committer,
            attempts: Mutex::new(AttemptLimiters {
                by_address: RateLimiter::new(ATTEMPTS_PER_SECOND),
                all: RateLimiter::new(ALL_ATTEMPTS_PER_SECOND),
            }),
        }
    }

    /// The network.
    ///
    /// # Errors
    /// `UNIMPLEMENTED` with a PKI of one's own.
    fn network(&self) -> Result<&Arc<PrivateNetwork>, Status> {
        self.network.as_ref().ok_or_else(|| {
            Status::unimplemented(
                "this index uses certificates of a PKI of its own: whoever runs the PKI admits and \
                 removes members",
            )
        })
    }

    /// Takes one attempt from the budget of an address.
    fn admit(&self, caller: &Caller) -> Result<(), Problem> {
        let (mut attempts, now) = (self.attempts.lock(), Instant::now());
        attempts.by_address.take(source(caller), 1, now)?;
        Ok(attempts.all.take(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 1, now)?)
    }

    /// Makes a change on a thread that may block, and logs a refusal.
    async fn change<T: Send + 'static>(
        &self,
        caller: &Caller,
        method: &str,
        change: impl FnOnce(&PrivateNetwork) -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, Status> {
        let network = Arc::clone(self.network()?);
        let done = tokio::task::spawn_blocking(move || change(&network)).await;
        let done = done
            .map_err(|_| Problem::new(Reason::Internal, "the change failed because of a defect"))?;
        done.map_err(|error| {
            let problem = Problem::from(error);
            if problem.reason == Reason::InvalidCode {
                let mut attempts = self.attempts.lock();
                attempts
                    .by_address
                    .charge(source(caller), FAILURE_COST, Instant::now());
            }
            self.record_refusal(caller, method, &problem);
            problem.into()
        })
    }

    fn record_refusal(&self, caller: &Caller, method: &str, problem: &Problem) {
        let entry = AuditEntry::Refused {
            call: format!("NetworkService/{method}"),
            reason: problem.reason.word(),
        };
        self.audit.record(caller.clone(), entry);
    }

    /// Drops the registrations of peers that may no longer register.
    async fn forget(&self, peers: Vec<PeerId>) -> Result<(), Problem> {
        for peer in peers {
            self.committer
                .commit(CommitRequest::Forget { peer }, 0)
                .await
                .map_err(Problem::from)?;
        }
        Ok(())
    }

    fn peers_of(&self, member: &MemberId) -> Result<Vec<PeerId>, Status> {
        let members = self.network()?.members();
        let entry = members.members(None).find(|(id, _)| *id == member);
        Ok(entry.map_or_else(Vec::new, |(_, entry)| entry.peers.keys().copied().collect()))
    }
}

fn source(caller: &Caller) -> IpAddr {
    caller.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// The caller, and its identity, which the access layer requires.
fn member<T>(request: &Request<T>) -> Result<(Caller, CertifiedIdentity), Problem> {
    let caller = caller_of(request);
    let identity = caller.identity.clone();
    identity.map(|identity| (caller, identity)).ok_or_else(|| {
        Problem::new(
            Reason::NotAMember,
            "the connection has no certificate of this network",
        )
    })
}

fn caller_of<T>(request: &Request<T>) -> Caller {
    caller(request.extensions())
}

fn signing_request(der: &[u8]) -> Result<SigningRequest, Problem> {
    SigningRequest::parse(der).map_err(|error| {
        Problem::new(Reason::InvalidSigningRequest, error.to_string()).field("signing_request")
    })
}

fn role_of(role: i32) -> Result<Role, Problem> {
    match v1::Role::try_from(role) {
        Ok(v1::Role::Reader) => Ok(Role::Reader),
        Ok(v1::Role::Publisher) => Ok(Role::Publisher),
        Ok(v1::Role::Admin) => Ok(Role::Admin),
        Ok(v1::Role::Unspecified) | Err(_) => {
            Err(invalid_field("role", "a role is reader, publisher or admin"))
        }
    }
}

fn role_message(role: Role) -> i32 {
    match role {
        Role::Reader => v1::Role::Reader.into(),
        Role::Publisher => v1::Role::Publisher.into(),
        Role::Admin => v1::Role::Admin.into(),
    }
}

fn member_id(bytes: &[u8]) -> Result<MemberId, Problem> {
    MemberId::try_from(bytes).map_err(|_| {
        Problem::new(Reason::InvalidId, "the id of a member has 16 bytes").field("member_id")
    })
}

fn to_message(id: &MemberId, entry: &MemberEntry) -> v1::Member {
    v1::Member {
        member_id: Bytes::copy_from_slice(&id.0),
        name: entry.name.clone(),
        role: role_message(entry.role),
        state: match entry.state {
            MemberState::Active => v1::MemberState::Active,
            MemberState::Revoked => v1::MemberState::Revoked,
            MemberState::Left => v1::MemberState::Left,
        }
        .into(),
        peer_count: u32::try_from(entry.peers.len()).unwrap_or(u32::MAX),
        joined_unix_seconds: entry.joined,
        expires_unix_seconds: entry.expires,
        invited_by: entry
            .invited_by
            .map(|by| Bytes::copy_from_slice(&by.0))
            .unwrap_or_default(),
    }
}

#[tonic::async_trait]
impl NetworkService for NetworkApi {
    async fn enroll(
        &self,
        request: Request<v1::EnrollRequest>,
    ) -> Result<Response<v1::EnrollResponse>, Status> {
        let caller = caller_of(&request);
        self.admit(&caller)?;
        let request = request.into_inner();
        let secret = JoinSecret::try_from(&*request.secret).map_err(|_| {
            Problem::new(Reason::InvalidCode, "the secret of a code has 16 bytes").field("secret")
        })?;
        let (hash, key) = (
            Sha256(secret.hash().0),
            signing_request(&request.signing_request)?,
        );
        let name = request.name.clone();
        let enroll = move |network: &PrivateNetwork| {
            Ok((network.enroll(hash, &key, &name)?, network.authority()))
        };
        let (issued, authority) = self.change(&caller, "Enroll", enroll).await?;
        let entry = AuditEntry::Joined {
            member: issued.member,
            name: request.name,
            role: issued.role,
        };
        self.audit.record(caller, entry);
        Ok(Response::new(v1::EnrollResponse {
            certificate: issued.certificate.into(),
            authority: authority.into(),
            member_id: Bytes::copy_from_slice(&issued.member.0),
            role: role_message(issued.role),
        }))
    }

    async fn enroll_peer(
        &self,
        request: Request<v1::EnrollPeerRequest>,
    ) -> Result<Response<v1::EnrollPeerResponse>, Status> {
        let (caller, identity) = member(&request)?;
        let key = signing_request(&request.into_inner().signing_request)?;
        if identity.peer.is_some() {
            let problem = Problem::new(
                Reason::RoleRequired,
                "a peer cannot enrol another peer: call with the certificate of the member",
            );
            self.record_refusal(&caller, "EnrollPeer", &problem);
            return Err(problem.into());
        }
        self.admit(&caller)?;
        let enroll = move |network: &PrivateNetwork| network.enroll_peer(identity.member, &key);
        let issued = self.change(&caller, "EnrollPeer", enroll).await?;
        let mut by = caller;
        if let Some(identity) = &mut by.identity {
            identity.peer = issued.peer;
        }
        self.audit.record(by, AuditEntry::PeerEnrolled);
        Ok(Response::new(v1::EnrollPeerResponse {
            certificate: issued.certificate.into(),
            peer_id: issued.peer.map(PeerId::to_bytes).unwrap_or_default(),
        }))
    }

    async fn renew_certificate(
        &self,
        request: Request<v1::RenewCertificateRequest>,
    ) -> Result<Response<v1::RenewCertificateResponse>, Status> {
        let caller = caller_of(&request);
        self.admit(&caller)?;
        let key = signing_request(&request.into_inner().signing_request)?;
        let renew = move |network: &PrivateNetwork| network.renew(&key);
        let issued = self.change(&caller, "RenewCertificate", renew).await?;
        let entry = AuditEntry::Renewed {
            member: issued.member,
            peer: issued.peer,
        };
        self.audit.record(caller, entry);
        Ok(Response::new(v1::RenewCertificateResponse {
            certificate: issued.certificate.into(),
            role: role_message(issued.role),
        }))
    }

    async fn create_invite(
        &self,
        request: Request<v1::CreateInviteRequest>,
    ) -> Result<Response<v1::CreateInviteResponse>, Status> {
        let (caller, identity) = member(&request)?;
        let request = request.into_inner();
        let hash = Sha256::try_from(&*request.secret_hash)
            .map_err(|error| invalid_field("secret_hash", error.to_string()))?;
        let role = role_of(request.role)?;
        let uses = (request.uses > 0).then_some(request.uses);
        let ttl = (request.ttl_ms > 0).then(|| Duration::from_millis(request.ttl_ms));
        let by = identity.member;
        let invite = move |network: &PrivateNetwork| network.invite(by, hash, role, uses, ttl);
        let expires_unix_seconds = self.change(&caller, "CreateInvite", invite).await?;
        let entry = AuditEntry::Invited {
            role,
            uses: uses.unwrap_or(crate::network::membership::DEFAULT_USES),
        };
        self.audit.record(caller, entry);
        Ok(Response::new(v1::CreateInviteResponse { expires_unix_seconds }))
    }

    async fn list_members(
        &self,
        request: Request<v1::ListMembersRequest>,
    ) -> Result<Response<v1::ListMembersResponse>, Status> {
        /// Members per page: as the contract defines it.
        const DEFAULT_PAGE: u32 = 100;
        const MAX_PAGE: u32 = 1_000;
        let v1::ListMembersRequest {
            page_size,
            page_token,
        } = request.into_inner();
        let after = match &*page_token {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                Problem::new(
                    Reason::InvalidPageToken,
                    "this page token is not from this list: start again without a page token",
                )
                .field("page_token")
            })?),
        };
        let size = if page_size == 0 {
            DEFAULT_PAGE
        } else {
            page_size.min(MAX_PAGE)
        } as usize;
        let mut page = self.network()?.list(after, size + 1);
        let has_more = page.len() > size;
        page.truncate(size);
        let last = page.last().filter(|_| has_more);
        Ok(Response::new(v1::ListMembersResponse {
            next_page_token: last.map(|(id, _)| id.to_string()).unwrap_or_default(),
            members: page.iter().map(|(id, entry)| to_message(id, entry)).collect(),
        }))
    }

    async fn revoke_member(
        &self,
        request: Request<v1::RevokeMemberRequest>,
    ) -> Result<Response<v1::RevokeMemberResponse>, Status> {
        let (caller, identity) = member(&request)?;
        let id = member_id(&request.into_inner().member_id)?;
        let revoke = move |network: &PrivateNetwork| network.revoke(identity.member, id);
        let voided = self.change(&caller, "RevokeMember", revoke).await?;
        self.audit.record(caller, AuditEntry::Revoked { member: id });
        self.forget(self.peers_of(&id)?).await?;
        Ok(Response::new(v1::RevokeMemberResponse {
            voided_codes: u32::try_from(voided).unwrap_or(u32::MAX),
            revocations_number: self.network()?.members().revocations_number(),
        }))
    }

    async fn leave(
        &self,
        request: Request<v1::LeaveRequest>,
    ) -> Result<Response<v1::LeaveResponse>, Status> {
        let (caller, CertifiedIdentity { member, peer, .. }) = member(&request)?;
        let peers = match peer {
            Some(peer) => vec![peer],
            None => self.peers_of(&member)?,
        };
        self.forget(peers).await?;
        let leave = move |network: &PrivateNetwork| match peer {
            Some(peer) => network.peer_leaves(member, peer).map(|()| 0),
            None => network.leave(member),
        };
        let voided = self.change(&caller, "Leave", leave).await?;
        let network = Arc::clone(self.network()?);
        tokio::spawn(async move {
            tokio::time::sleep(FAREWELL).await;
            network.close_revoked();
        });
        self.audit.record(caller, AuditEntry::Left);
        Ok(Response::new(v1::LeaveResponse {
            voided_codes: u32::try_from(voided).unwrap_or(u32::MAX),
        }))
    }

    async fn get_revocations(
        &self,
        request: Request<v1::GetRevocationsRequest>,
    ) -> Result<Response<v1::GetRevocationsResponse>, Status> {
        let number = request.into_inner().revocations_number;
        Ok(Response::new(v1::GetRevocationsResponse {
            revocations: self.network()?.revocations_after(number),
        }))
    }

    async fn remove_bindings(
        &self,
        request: Request<v1::RemoveBindingsRequest>,
    ) -> Result<Response<v1::RemoveBindingsResponse>, Status> {
        let (caller, identity) = member(&request)?;
        let v1::RemoveBindingsRequest { file_id, name } = request.into_inner();
        let file = convert::file_id(&file_id, "file_id")?;
        if !name.is_empty() {
            Label::parse(&name).map_err(|error| invalid_name(&error).field("name"))?;
        }
        let name = (!name.is_empty()).then_some(name);
        let is_admin = require(self.network.as_deref(), &identity, Role::Admin).is_ok();
        let owner = (!is_admin).then_some(&identity.member);
        let mut removed = 0;
        for (binding, change) in self.removals(&file, name.as_deref(), owner) {
            self.committer.commit(change, 0).await.map_err(Problem::from)?;
            removed += binding;
        }
        let entry = AuditEntry::BindingsRemoved { file, removed };
        self.audit.record(caller, entry);
        Ok(Response::new(v1::RemoveBindingsResponse { removed }))
    }

    async fn remove_registrations(
        &self,
        request: Request<v1::RemoveRegistrationsRequest>,
    ) -> Result<Response<v1::RemoveRegistrationsResponse>, Status> {
        let (caller, _) = member(&request)?;
        let v1::RemoveRegistrationsRequest { peer_id, file_id } = request.into_inner();
        let peer = (!peer_id.is_empty()).then(|| PeerId::try_from(&*peer_id));
        let peer = peer
            .transpose()
            .map_err(|error| Problem::new(Reason::InvalidId, error.to_string()).field("peer_id"))?;
        let file = (!file_id.is_empty()).then(|| convert::file_id(&file_id, "file_id"));
        let file = file.transpose()?;
        let unregister = |peer, file| CommitRequest::Unregister {
            peer,
            files: vec![file],
        };
        let changes = match (peer, file) {
            (Some(peer), None) => vec![CommitRequest::Forget { peer }],
            (Some(peer), Some(file)) => vec![unregister(peer, file)],
            (None, Some(file)) => {
                let providers = self.registry.catalog().providers_of(&file);
                providers.into_iter().map(|peer| unregister(peer, file)).collect()
            }
            (None, None) => {
                let message = "give a peer, a file, or both";
                return Err(invalid_field("peer_id", message).into());
            }
        };
        let mut removed = 0;
        for change in changes {
            removed += self.committer.commit(change, 0).await.map_err(Problem::from)?;
        }
        let entry = AuditEntry::RegistrationsRemoved { file, peer, removed };
        self.audit.record(caller, entry);
        Ok(Response::new(v1::RemoveRegistrationsResponse { removed }))
    }
}

impl NetworkApi {
    /// The changes that remove names from a file, each with the number of its names. `owner` limits
    /// them to the peers of one member.
    fn removals(
        &self,
        file: &FileId,
        name: Option<&str>,
        owner: Option<&MemberId>,
    ) -> Vec<(u64, CommitRequest)> {
        let catalog = self.registry.catalog();
        let owner = owner.map(ToString::to_string);
        let mut changes = Vec::new();
        for (id, address) in catalog.binders_of(file) {
            if owner.as_ref().is_some_and(|owner| *owner != address.host) {
                continue;
            }
            let Some(Registration {
                file: record,
                mut names,
                is_complete,
            }) = catalog.registration(&id, file)
            else {
                continue;
            };
            let before = names.len();
            names.retain(|known| name.is_some_and(|name| name != known));
            let removed = (before - names.len()) as u64;
            if removed == 0 {
                continue;
            }
            let change = match names.is_empty() {
                true => CommitRequest::Unregister {
                    peer: id,
                    files: vec![*file],
                },
                false => {
                    let kept = Registration {
                        file: record,
                        names,
                        is_complete,
                    };
                    bind(PeerRecord::with_owner(id, address), vec![kept])
                }
            };
            changes.push((removed, change));
        }
        changes
    }
}

/// The change that binds names to files.
pub(crate) fn bind(peer: PeerRecord, files: Vec<Registration>) -> CommitRequest {
    CommitRequest::Register {
        peer,
        cost: files.iter().map(cost::max_cost).sum(),
        files,
        replace: false,
        instance: Vec::new(),
    }
}
