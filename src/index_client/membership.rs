//! Calls of a machine that joins a private network, and of its members.

use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::{
    FileId, PeerId, Problem, Reason,
    grpc::transport::MAX_MESSAGE,
    index_client::client::IndexClient,
    network::{
        identity::{MemberId, Role},
        join_code::{JoinSecret, JoinSecretHash},
    },
    process::traces::TracedChannel,
    proto::v1::{self, network_service_client::NetworkServiceClient},
};

/// The end of the year 9999, in seconds since 1970.
const LAST_SECOND: u64 = 253_402_300_799;

/// A certificate that the index issued to a new member.
#[derive(Debug, Clone)]
pub struct Enrolled {
    /// The member's certificate, X.509 in DER.
    pub certificate: Bytes,
    /// The certificate of the network's CA, X.509 in DER; not verified.
    pub authority: Bytes,
    /// The member's rights.
    pub role: Role,
}

/// A member of the network, as the index lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedMember {
    /// Its id.
    pub id: MemberId,
    /// The name that it chose; untrusted text.
    pub name: String,
    /// Its rights.
    pub role: Role,
    /// `active`, `revoked` or `left`.
    pub state: &'static str,
    /// Number of its peers.
    pub peers: usize,
    /// When it joined.
    pub joined: SystemTime,
    /// When its last certificate expires.
    pub expires: SystemTime,
}

fn service(channel: TracedChannel) -> NetworkServiceClient<TracedChannel> {
    NetworkServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

impl IndexClient {
    /// Joins the network with the secret of a code. `signing_request` is signed by the member's key.
    ///
    /// # Errors
    /// Those of `NetworkService.Enroll`.
    pub async fn enroll(
        &self,
        secret: &JoinSecret,
        signing_request: Vec<u8>,
        name: &str,
    ) -> Result<Enrolled, Problem> {
        let request = v1::EnrollRequest {
            secret: Bytes::copy_from_slice(secret.expose()),
            signing_request: signing_request.into(),
            name: name.to_owned(),
        };
        let answer = self
            .call(|channel| {
                let request = request.clone();
                async move { service(channel).enroll(request).await }
            })
            .await?;
        Ok(Enrolled {
            role: role(answer.role())?,
            certificate: answer.certificate,
            authority: answer.authority,
        })
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
        let answer = self
            .call(|channel| {
                let request = request.clone();
                async move { service(channel).enroll_peer(request).await }
            })
            .await?;
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
        let answer = self
            .call(|channel| {
                let request = request.clone();
                async move { service(channel).renew_certificate(request).await }
            })
            .await?;
        Ok(answer.certificate)
    }

    /// Opens a join code whose secret has this hash, and returns when it expires. `None` stands for
    /// the defaults of the index.
    ///
    /// # Errors
    /// Those of `NetworkService.CreateInvite`.
    pub async fn create_invite(
        &self,
        secret: JoinSecretHash,
        role: Role,
        uses: Option<u32>,
        ttl: Option<Duration>,
    ) -> Result<SystemTime, Problem> {
        let request = v1::CreateInviteRequest {
            secret_hash: Bytes::copy_from_slice(&secret.0),
            role: match role {
                Role::Reader => v1::Role::Reader,
                Role::Publisher => v1::Role::Publisher,
                Role::Admin => v1::Role::Admin,
            }
            .into(),
            uses: uses.unwrap_or(0),
            ttl_ms: ttl.map_or(0, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
        };
        let answer = self
            .call(|channel| {
                let request = request.clone();
                async move { service(channel).create_invite(request).await }
            })
            .await?;
        time(answer.expires_unix_seconds)
    }

    /// All members of the network.
    ///
    /// # Errors
    /// Those of `NetworkService.ListMembers`.
    pub async fn members(&self) -> Result<Vec<ListedMember>, Problem> {
        /// Maximum pages that are read: more members than any network has.
        const MAX_PAGES: usize = 1_000;
        let (mut members, mut page_token) = (Vec::new(), String::new());
        for _ in 0..MAX_PAGES {
            let request = v1::ListMembersRequest {
                page_size: 0,
                page_token,
            };
            let answer = self
                .call(|channel| {
                    let request = request.clone();
                    async move { service(channel).list_members(request).await }
                })
                .await?;
            for member in answer.members {
                members.push(member.try_into()?);
            }
            page_token = answer.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        Ok(members)
    }

    /// Revokes a member, and returns the number of its codes that this voided.
    ///
    /// # Errors
    /// Those of `NetworkService.RevokeMember`.
    pub async fn revoke_member(&self, member: MemberId) -> Result<u32, Problem> {
        let request = v1::RevokeMemberRequest {
            member_id: Bytes::copy_from_slice(&member.0),
        };
        let answer = self
            .call(|channel| {
                let request = request.clone();
                async move { service(channel).revoke_member(request).await }
            })
            .await?;
        Ok(answer.voided_codes)
    }

    /// Ends the membership of the caller; with a peer's certificate, only the use of its key.
    ///
    /// # Errors
    /// Those of `NetworkService.Leave`.
    pub async fn leave(&self) -> Result<(), Problem> {
        let leave = async |channel| service(channel).leave(v1::LeaveRequest {}).await;
        self.call(leave).await.map(drop)
    }

    /// Removes names that were bound to a file; all of them if `name` is `None`. Returns their
    /// number.
    ///
    /// # Errors
    /// Those of `NetworkService.RemoveBindings`.
    pub async fn remove_bindings(&self, file: FileId, name: Option<&str>) -> Result<u64, Problem> {
        let request = v1::RemoveBindingsRequest {
            file_id: file.to_bytes(),
            name: name.unwrap_or_default().to_owned(),
        };
        let answer = self
            .call(|channel| {
                let request = request.clone();
                async move { service(channel).remove_bindings(request).await }
            })
            .await?;
        Ok(answer.removed)
    }

    /// Removes registrations of other members' peers. Returns their number.
    ///
    /// # Errors
    /// Those of `NetworkService.RemoveRegistrations`.
    pub async fn remove_registrations(
        &self,
        peer: Option<PeerId>,
        file: Option<FileId>,
    ) -> Result<u64, Problem> {
        let request = v1::RemoveRegistrationsRequest {
            peer_id: peer.map(PeerId::to_bytes).unwrap_or_default(),
            file_id: file.map(FileId::to_bytes).unwrap_or_default(),
        };
        let answer = self
            .call(|channel| {
                let request = request.clone();
                async move { service(channel).remove_registrations(request).await }
            })
            .await?;
        Ok(answer.removed)
    }
}

fn role(role: v1::Role) -> Result<Role, Problem> {
    match role {
        v1::Role::Reader => Ok(Role::Reader),
        v1::Role::Publisher => Ok(Role::Publisher),
        v1::Role::Admin => Ok(Role::Admin),
        v1::Role::Unspecified => Err(invalid("a member without a role")),
    }
}

impl TryFrom<v1::Member> for ListedMember {
    type Error = Problem;

    fn try_from(member: v1::Member) -> Result<Self, Problem> {
        let id =
            MemberId::try_from(&*member.member_id).map_err(|_| invalid("an invalid member id"))?;
        Ok(Self {
            id,
            role: role(member.role())?,
            state: match member.state() {
                v1::MemberState::Unspecified | v1::MemberState::Active => "active",
                v1::MemberState::Revoked => "revoked",
                v1::MemberState::Left => "left",
            },
            name: member.name,
            peers: member.peer_count as usize,
            joined: time(member.joined_unix_seconds)?,
            expires: time(member.expires_unix_seconds)?,
        })
    }
}

fn invalid(what: &str) -> Problem {
    Problem::new(Reason::NotPotluck, format!("the index sent {what}"))
}

/// A time that can be printed: RFC 3339 has four digits for the year.
fn time(unix_seconds: u64) -> Result<SystemTime, Problem> {
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(unix_seconds))
        .filter(|_| unix_seconds <= LAST_SECOND)
        .ok_or_else(|| invalid("a time after the year 9999"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_cannot_be_printed_is_refused() {
        let member = |expires| v1::Member {
            member_id: vec![1; 16].into(),
            role: v1::Role::Reader.into(),
            expires_unix_seconds: expires,
            ..Default::default()
        };
        let last = ListedMember::try_from(member(LAST_SECOND)).unwrap();
        assert_eq!(
            humantime::format_rfc3339_seconds(last.expires).to_string(),
            "9999-12-31T23:59:59Z"
        );
        for expires in [LAST_SECOND + 1, u64::MAX] {
            let problem = ListedMember::try_from(member(expires)).unwrap_err();
            assert_eq!(problem.reason, Reason::NotPotluck, "{expires}");
        }
    }
}
