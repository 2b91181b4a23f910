//! Converts between domain types and the messages of the control service.

use std::{
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use potluck_core::{
    Problem, Reason, Sha256, collection::path::Label, convert, identity::layout::MAX_FILE_SIZE,
    proto::v1,
};
use potluck_origins::secret::Secret;

use crate::{
    download::{
        origin::spec::OriginSpec,
        seeding::SeedLimit,
        selection::PathFilter,
        status::{
            ContentMap, DownloadSpec, DownloadState, DownloadStatus, LimitsUpdate, MissingUnits,
            PeerState, PeerStatus,
        },
    },
    library::{CheckEvent, Item, LinkPolicy, OmissionKind, Omissions, ShareEvent, ShareOptions},
    limits::{Limits, Priority},
};

/// Maximum providers that one request may name by address.
const MAX_NAMED: usize = 256;

/// Maximum omitted entries in one message. Even with long paths they stay below the limit of a
/// message.
const OMISSIONS_PER_MESSAGE: usize = 100;

/// Maximum peers listed for each transfer in a list of transfers, as the contract specifies.
const MAX_LISTED_PEERS: usize = 32;

/// Parses an absolute path.
///
/// # Errors
/// `UNSAFE_PATH`.
pub(crate) fn path(text: &str, field: &str) -> Result<PathBuf, Problem> {
    let path = PathBuf::from(text);
    match path.is_absolute() && !text.contains('\0') {
        true => Ok(path),
        false => {
            let problem =
                Problem::new(Reason::UnsafePath, format!("`{text}` is not an absolute path"));
            Err(problem.field(field))
        }
    }
}

fn priority(number: u32) -> Result<Priority, Problem> {
    Priority::new(number).ok_or_else(|| {
        let message = format!("a priority must be 1 to {}, not {number}", Priority::MAX.get());
        Problem::new(Reason::InvalidArgument, message).field("priority")
    })
}

impl TryFrom<&v1::AdjustTransferRequest> for LimitsUpdate {
    type Error = Problem;

    fn try_from(request: &v1::AdjustTransferRequest) -> Result<Self, Problem> {
        Ok(Self {
            max_bytes_per_second: request.max_bytes_per_second,
            priority: request.priority.map(priority).transpose()?,
        })
    }
}

impl TryFrom<v1::StartTransferRequest> for DownloadSpec {
    type Error = Problem;

    fn try_from(request: v1::StartTransferRequest) -> Result<Self, Problem> {
        let name = match request.name.as_str() {
            "" => None,
            name => Some(Label::parse(name).map_err(|error| {
                Problem::new(Reason::InvalidName, error.to_string()).field("name")
            })?),
        };
        let target = match request.target.as_str() {
            "" => None,
            target => Some(path(target, "target")?),
        };
        let sha256 = match request.sha256.as_ref() {
            [] => None,
            sum => Some(Sha256::try_from(sum).map_err(|error| {
                Problem::new(Reason::InvalidId, error.to_string()).field("sha256")
            })?),
        };
        if request.providers.len() > MAX_NAMED {
            let message = format!("at most {MAX_NAMED} providers can be named");
            return Err(Problem::new(Reason::InvalidArgument, message).field("providers"));
        }
        let update = LimitsUpdate {
            max_bytes_per_second: request.max_bytes_per_second,
            priority: request.priority.map(priority).transpose()?,
        };
        let id = convert::file_id(&request.file_id, "file_id")?;
        let origin = request
            .origin
            .map(|origin| origin_spec(origin, sha256))
            .transpose()?;
        Ok(Self {
            id,
            origin,
            in_order: false,
            name: name.map(|label| label.as_str().to_owned()),
            target,
            sha256,
            providers: request
                .providers
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            detach: request.detach,
            allow_expansion: request.allow_expansion,
            filter: PathFilter::new(request.include, request.exclude)?,
            seed: request.seed.and_then(|seed| seed.limit).map(|limit| match limit {
                v1::seed_limit::Limit::Seconds(0) => SeedLimit::Never,
                v1::seed_limit::Limit::Seconds(time) => SeedLimit::For(Duration::from_secs(time)),
                v1::seed_limit::Limit::Thousandths(ratio) => SeedLimit::Ratio(ratio),
            }),
            limits: update,
        })
    }
}

/// Parses the origin of a request for content with this SHA-256.
fn origin_spec(origin: v1::TransferOrigin, sha256: Option<Sha256>) -> Result<OriginSpec, Problem> {
    let invalid =
        |message: &str, field: &str| Problem::new(Reason::InvalidArgument, message).field(field);
    let sha256 = sha256.ok_or_else(|| invalid("an origin needs a SHA-256", "sha256"))?;
    if origin.size == 0 || origin.size > MAX_FILE_SIZE {
        return Err(invalid(
            "the size at an origin is not that of a file",
            "origin.size",
        ));
    }
    Ok(OriginSpec {
        url: OriginSpec::parse_url(&origin.url)?,
        size: origin.size,
        sha256,
        validator: Some(origin.validator).filter(|validator| !validator.is_empty()),
        authorization: Some(origin.authorization)
            .filter(|value| !value.is_empty())
            .map(Secret::header),
        share_gated: origin.share_gated,
    })
}

impl TryFrom<v1::ReadFileRequest> for DownloadSpec {
    type Error = Problem;

    fn try_from(request: v1::ReadFileRequest) -> Result<Self, Problem> {
        v1::StartTransferRequest {
            file_id: request.file_id,
            sha256: request.sha256,
            providers: request.providers,
            max_bytes_per_second: request.max_bytes_per_second,
            priority: request.priority,
            ..Default::default()
        }
        .try_into()
    }
}

/// Converts a problem into a `Failure` message.
pub(crate) fn failure(problem: &Problem) -> v1::Failure {
    v1::Failure {
        reason: problem.reason.as_str().to_owned(),
        message: problem.message.clone(),
    }
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

impl From<&Item> for v1::LibraryItem {
    fn from(item: &Item) -> Self {
        Self {
            file: Some((&item.record).into()),
            name: item.name.clone(),
            path: path_text(&item.path),
            file_count: item.file_count,
            content_size: item.content_size,
            damaged_paths: item.damaged.iter().map(|path| path_text(path)).collect(),
        }
    }
}

impl TryFrom<v1::ShareOptions> for ShareOptions {
    type Error = Problem;

    fn try_from(options: v1::ShareOptions) -> Result<Self, Problem> {
        Ok(Self {
            links: match v1::LinkPolicy::try_from(options.links) {
                Ok(v1::LinkPolicy::Unspecified | v1::LinkPolicy::Keep) => LinkPolicy::Keep,
                Ok(v1::LinkPolicy::Follow) => LinkPolicy::Follow,
                Ok(v1::LinkPolicy::Skip) => LinkPolicy::Skip,
                Err(_) => {
                    let message = format!("this peer does not know link policy {}", options.links);
                    let problem = Problem::new(Reason::InvalidArgument, message);
                    return Err(problem.field("options.links"));
                }
            },
            is_strict: options.strict,
            exclude: options.exclude,
        })
    }
}

/// The messages of a share event, with at most `max_omissions` omitted entries.
pub(crate) fn share_responses(event: ShareEvent, max_omissions: usize) -> Vec<v1::ShareResponse> {
    use v1::share_response::Event;
    let event = match event {
        ShareEvent::Progress { path, done, total } => Event::Progress(v1::ShareProgress {
            path: path_text(&path),
            bytes_done: done,
            bytes_total: total,
        }),
        ShareEvent::Omitted { path, omitted } => return omissions(&path, &omitted, max_omissions),
        ShareEvent::Shared(item) => Event::Shared((&item).into()),
        ShareEvent::Failed { path, problem } => Event::Failed(v1::ShareFailure {
            path: path_text(&path),
            failure: Some(failure(&problem)),
        }),
    };
    vec![v1::ShareResponse { event: Some(event) }]
}

fn omissions(path: &Path, omitted: &Omissions, max: usize) -> Vec<v1::ShareResponse> {
    let counts = omitted.counts().map(|(kind, count)| v1::OmissionCount {
        kind: omission_kind(kind).into(),
        count,
    });
    let mut counts: Vec<_> = counts.collect();
    let sample = omitted.sample(max);
    let messages = sample.chunks(OMISSIONS_PER_MESSAGE).map(|entries| {
        let entries = entries.iter().map(|omission| v1::Omission {
            path: path_text(&omission.path),
            kind: omission_kind(omission.kind).into(),
            failure: Some(failure(&omission.problem)),
        });
        let omitted = v1::ShareOmissions {
            path: path_text(path),
            counts: std::mem::take(&mut counts),
            entries: entries.collect(),
        };
        v1::ShareResponse {
            event: Some(v1::share_response::Event::Omitted(omitted)),
        }
    });
    messages.collect()
}

const fn omission_kind(kind: OmissionKind) -> v1::OmissionKind {
    match kind {
        OmissionKind::Link => v1::OmissionKind::Link,
        OmissionKind::DanglingLink => v1::OmissionKind::DanglingLink,
        OmissionKind::LinkLoop => v1::OmissionKind::LinkLoop,
        OmissionKind::Special => v1::OmissionKind::Special,
        OmissionKind::Unreadable => v1::OmissionKind::Unreadable,
        OmissionKind::InvalidName => v1::OmissionKind::InvalidName,
        OmissionKind::Vanished => v1::OmissionKind::Vanished,
        OmissionKind::PeerState => v1::OmissionKind::PeerState,
        OmissionKind::Excluded => v1::OmissionKind::Excluded,
    }
}

impl From<CheckEvent> for v1::CheckResponse {
    fn from(event: CheckEvent) -> Self {
        use v1::check_response::Event;
        let event = match event {
            CheckEvent::Progress { path, done, total } => Event::Progress(v1::ShareProgress {
                path: path_text(&path),
                bytes_done: done,
                bytes_total: total,
            }),
            CheckEvent::Bad { path, id, problem } => Event::Bad(v1::BadFile {
                path: path_text(&path),
                file_id: id.to_bytes(),
                failure: Some(failure(&problem)),
            }),
            CheckEvent::Failed { path, problem } => Event::Failed(v1::ShareFailure {
                path: path_text(&path),
                failure: Some(failure(&problem)),
            }),
            CheckEvent::Done { files, bytes, bad } => Event::Summary(v1::CheckSummary {
                files,
                bytes,
                bad_files: bad,
            }),
        };
        Self { event: Some(event) }
    }
}

impl From<DownloadState> for v1::TransferState {
    fn from(state: DownloadState) -> Self {
        match state {
            DownloadState::Preparing => Self::Preparing,
            DownloadState::Running => Self::Running,
            DownloadState::Waiting => Self::Waiting,
            DownloadState::Paused => Self::Paused,
            DownloadState::Finishing => Self::Finishing,
            DownloadState::Done => Self::Done,
            DownloadState::Failed => Self::Failed,
            DownloadState::Cancelled => Self::Cancelled,
        }
    }
}

impl From<PeerState> for v1::PeerState {
    fn from(standing: PeerState) -> Self {
        match standing {
            PeerState::Connecting => Self::Connecting,
            PeerState::Active => Self::Active,
            PeerState::Idle => Self::Idle,
            PeerState::BackingOff => Self::BackingOff,
            PeerState::Unreachable => Self::Unreachable,
            PeerState::Banned => Self::Banned,
        }
    }
}

impl From<&PeerStatus> for v1::TransferPeer {
    fn from(row: &PeerStatus) -> Self {
        Self {
            peer_id: row.peer.map(|peer| peer.to_bytes()).unwrap_or_default(),
            address: Some((&row.address).into()),
            origin: row.origin.clone().unwrap_or_default(),
            state: v1::PeerState::from(row.state).into(),
            reason: row.reason.clone(),
            bytes: row.bytes,
            bytes_per_second: row.bytes_per_second,
            requests: row.requests,
            units: row.units,
            labels: convert::labels_message(&row.labels),
        }
    }
}

impl From<&DownloadStatus> for v1::Transfer {
    fn from(status: &DownloadStatus) -> Self {
        Self {
            transfer_id: status.number,
            file_id: status.id.to_bytes(),
            name: status.name.clone(),
            kind: status.kind.map_or(v1::FileKind::Unspecified, Into::into).into(),
            path: path_text(&status.path),
            state: v1::TransferState::from(status.state).into(),
            bytes_done: status.bytes_done,
            bytes_total: status.bytes_total,
            resumed_bytes: status.resumed_bytes,
            bytes_per_second: status.bytes_per_second,
            elapsed_ms: u64::try_from(status.elapsed.as_millis()).unwrap_or(u64::MAX),
            created_unix_seconds: status
                .created_at
                .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
                .map_or(0, |since| since.as_secs()),
            units_total: status.units_total,
            units_done: status.units_done,
            peers: status.peers.iter().map(Into::into).collect(),
            error: status.error.as_ref().map(failure),
            max_bytes_per_second: status.limits.max_bytes_per_second,
            priority: status.limits.priority.get(),
            unverified_bytes: status.unverified_bytes,
            sharing_error: status.sharing_error.as_ref().map(failure),
            copied_bytes: status.copied_bytes,
            not_kept: status.not_kept.clone(),
            chosen_files: status.chosen_files.map_or(0, |(chosen, _)| chosen),
            is_seeding: status.is_seeding,
            uploaded_bytes: status.uploaded_bytes,
            collection_files: status.chosen_files.map_or(0, |(_, all)| all),
        }
    }
}

/// A shortened transfer for lists: all transfers must fit into one message. Keeps the peers that
/// sent bytes or are banned, at most [`MAX_LISTED_PEERS`].
pub(crate) fn summarized(mut status: DownloadStatus) -> v1::Transfer {
    status
        .peers
        .retain(|row| row.bytes > 0 || row.state == PeerState::Banned);
    status.peers.truncate(MAX_LISTED_PEERS);
    (&status).into()
}

impl From<&MissingUnits> for v1::MissingUnits {
    fn from(run: &MissingUnits) -> Self {
        Self {
            first: run.first,
            count: run.count,
            providers: run.providers,
            in_flight: if run.in_flight { run.count } else { 0 },
        }
    }
}

impl From<&ContentMap> for v1::ContentMap {
    fn from(map: &ContentMap) -> Self {
        let in_flight: Vec<u8> = map.in_flight.iter().map(|&is_set| is_set.into()).collect();
        Self {
            verified: map.verified.clone().into(),
            in_flight: in_flight.into(),
            providers: map.providers.clone().into(),
            sender: map.sender.clone().into(),
            senders: map.senders.iter().map(Into::into).collect(),
        }
    }
}

impl From<&Limits> for v1::Limits {
    fn from(limits: &Limits) -> Self {
        Self {
            upload_bytes_per_second: Some(limits.upload().rate()),
            download_bytes_per_second: Some(limits.download().rate()),
            upload_slots: Some(limits.upload_slots()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use potluck_core::FileId;
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_list_has_only_peers_that_sent_bytes_or_are_banned() {
        let row = |bytes, standing| PeerStatus {
            peer: None,
            origin: None,
            labels: Default::default(),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)).into(),
            state: standing,
            reason: String::new(),
            bytes,
            bytes_per_second: 0,
            requests: 0,
            units: 0,
        };
        let mut status = DownloadStatus::new(1, &DownloadSpec::new(FileId([7; 32])));
        status.peers = vec![
            row(5, PeerState::Unreachable),
            row(0, PeerState::Active),
            row(0, PeerState::Banned),
        ];
        let listed = |status: &DownloadStatus| {
            let peers = summarized(status.clone()).peers.into_iter();
            peers.map(|row| (row.bytes, row.state())).collect::<Vec<_>>()
        };
        let expected = [(5, v1::PeerState::Unreachable), (0, v1::PeerState::Banned)];
        assert_eq!(listed(&status), expected);
        assert_eq!(
            v1::Transfer::from(&status).peers.len(),
            3,
            "a single transfer has all of them"
        );
        let reason = "it sent bytes of piece 123456 that failed verification".to_owned();
        status.peers = (0..1_000)
            .map(|_| PeerStatus {
                reason: reason.clone(),
                ..row(5, PeerState::Banned)
            })
            .collect();
        let transfers = vec![summarized(status); 200];
        let page = v1::ListTransfersResponse {
            transfers,
            ..Default::default()
        };
        let size = page.encoded_len();
        assert!(size < potluck_core::grpc::transport::MAX_MESSAGE, "{size}");
    }
}
