//! Conversions between protobuf messages and the index's domain types.
//!
//! Messages come from outside. Every error names the field at fault.

use std::time::Duration;

use crate::{
    FileId, FileLayout, PeerId, Problem, Reason, Root, Sha256,
    collection::path::Label,
    identity::{id::IdError, layout::MAX_FILE_SIZE, merkle::EMPTY_ROOT},
    model::{
        Address, ClusterId, FileKind, FileRecord, IndexStats, IndexedFile, LabelValue, Labels,
        ListedPeer, Provider, ProviderEvent, Reachability, Registration,
    },
    proto::v1,
};

/// Maximum length of a host name, in bytes (RFC 1035).
const MAX_HOST_LEN: usize = 253;

/// Maximum names per file in a response, as the contract defines it.
const MAX_NAMES: usize = 16;

fn id<T: for<'a> TryFrom<&'a [u8], Error = IdError>>(
    bytes: &[u8],
    field: &str,
) -> Result<T, Problem> {
    T::try_from(bytes)
        .map_err(|error| Problem::new(Reason::InvalidId, error.to_string()).field(field))
}

/// Parses a file id from a request's field.
///
/// # Errors
/// [`Reason::InvalidId`], with the name of the field.
pub fn file_id(bytes: &[u8], field: &str) -> Result<FileId, Problem> {
    id(bytes, field)
}

impl From<v1::FileKind> for FileKind {
    fn from(kind: v1::FileKind) -> Self {
        match kind {
            v1::FileKind::Unspecified | v1::FileKind::File => Self::File,
            v1::FileKind::Collection => Self::Collection,
        }
    }
}

impl Reachability {
    /// Converts a message; `None` for a value that is unset or unknown.
    pub const fn from_message(reachability: v1::Reachability) -> Option<Self> {
        Some(match reachability {
            v1::Reachability::Unspecified => return None,
            v1::Reachability::Reachable => Self::Reachable,
            v1::Reachability::Refused => Self::Refused,
            v1::Reachability::TimedOut => Self::TimedOut,
            v1::Reachability::NotThisPeer => Self::NotThisPeer,
            v1::Reachability::Unreachable => Self::Unreachable,
            v1::Reachability::NotChecked => Self::NotChecked,
        })
    }
}

impl From<Reachability> for v1::Reachability {
    fn from(reachability: Reachability) -> Self {
        match reachability {
            Reachability::Reachable => Self::Reachable,
            Reachability::Refused => Self::Refused,
            Reachability::TimedOut => Self::TimedOut,
            Reachability::NotThisPeer => Self::NotThisPeer,
            Reachability::Unreachable => Self::Unreachable,
            Reachability::NotChecked => Self::NotChecked,
        }
    }
}

impl From<FileKind> for v1::FileKind {
    fn from(kind: FileKind) -> Self {
        match kind {
            // A missing root says that the record is provisional.
            FileKind::File | FileKind::Provisional => Self::File,
            FileKind::Collection => Self::Collection,
        }
    }
}

impl TryFrom<v1::FileRecord> for FileRecord {
    type Error = Problem;

    /// Derives the id from size and root. If the record has an id, it must match.
    fn try_from(record: v1::FileRecord) -> Result<Self, Problem> {
        if FileLayout::new(record.size).is_none() {
            let message = format!(
                "a file has at most {MAX_FILE_SIZE} bytes, but this one has {}",
                record.size
            );
            return Err(Problem::new(Reason::OutOfRange, message).field("file.size"));
        }
        if record.root.is_empty() && !record.sha256.is_empty() {
            return provisional(&record);
        }
        let root: Root = id(&record.root, "file.root")?;
        let derived = FileId::derive(record.size, &root);
        if record.size == 0 && root != EMPTY_ROOT {
            let message = "the root of an empty file must be SHA-256 of the empty string";
            return Err(Problem::new(Reason::IdMismatch, message).field("file.root"));
        }
        if !record.file_id.is_empty() && id::<FileId>(&record.file_id, "file.file_id")? != derived {
            return Err(Problem::new(
                Reason::IdMismatch,
                "the id does not match the size and the root",
            )
            .field("file.file_id"));
        }
        let sha256 = match record.sha256.is_empty() {
            true => None,
            false => Some(id::<Sha256>(&record.sha256, "file.sha256")?),
        };
        Ok(Self {
            id: derived,
            size: record.size,
            root,
            sha256,
            kind: record.kind().into(),
        })
    }
}

/// A record without a root.
fn provisional(record: &v1::FileRecord) -> Result<FileRecord, Problem> {
    let derived = FileRecord::provisional(record.size, id(&record.sha256, "file.sha256")?);
    let has_id = !record.file_id.is_empty();
    if record.size == 0 || record.kind() == v1::FileKind::Collection {
        let message = "an empty file and a collection have a root";
        return Err(Problem::new(Reason::IdMismatch, message).field("file.root"));
    }
    if has_id && id::<FileId>(&record.file_id, "file.file_id")? != derived.id {
        let message = "without a root, the id must match the size and the SHA-256";
        return Err(Problem::new(Reason::IdMismatch, message).field("file.file_id"));
    }
    Ok(derived)
}

impl From<&FileRecord> for v1::FileRecord {
    fn from(record: &FileRecord) -> Self {
        Self {
            file_id: record.id.to_bytes(),
            size: record.size,
            root: match record.is_provisional() {
                true => Default::default(),
                false => record.root.to_bytes(),
            },
            sha256: record.sha256.map(Sha256::to_bytes).unwrap_or_default(),
            kind: v1::FileKind::from(record.kind).into(),
        }
    }
}

impl From<&Address> for v1::Address {
    fn from(address: &Address) -> Self {
        Self {
            host: address.host.clone(),
            port: address.port.into(),
        }
    }
}

impl TryFrom<v1::Address> for Address {
    type Error = Problem;

    /// An empty host is valid: in a request it stands for the caller's own address.
    fn try_from(address: v1::Address) -> Result<Self, Problem> {
        let port = u16::try_from(address.port)
            .ok()
            .filter(|&port| port != 0)
            .ok_or_else(|| {
                Problem::new(Reason::InvalidAddress, "a port is 1 to 65535").field("address.port")
            })?;
        if !is_host(&address.host) {
            let message = "a host is an IP address without brackets, or a name of letters, digits, `-`, `_` and dots";
            return Err(Problem::new(Reason::InvalidAddress, message).field("address.host"));
        }
        Ok(Self {
            host: address.host,
            port,
        })
    }
}

/// Labels as a message; `None` if there are none.
pub fn labels_message(labels: &Labels) -> Option<v1::Labels> {
    let name = |label: &Option<LabelValue>| label.as_ref().map(ToString::to_string);
    (!labels.is_empty()).then(|| v1::Labels {
        zone: name(&labels.zone).unwrap_or_default(),
        rack: name(&labels.rack).unwrap_or_default(),
    })
}

impl From<v1::Labels> for Labels {
    /// Ignores names that are not valid: nothing depends on them but a preference.
    fn from(labels: v1::Labels) -> Self {
        Self {
            zone: LabelValue::parse(&labels.zone),
            rack: LabelValue::parse(&labels.rack),
        }
    }
}

fn is_host(host: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    host.parse::<std::net::IpAddr>().is_ok()
        || (host.len() <= MAX_HOST_LEN && host.chars().all(plain))
}

impl From<&Provider> for v1::Provider {
    fn from(provider: &Provider) -> Self {
        Self {
            peer_id: provider.peer.to_bytes(),
            address: Some((&provider.address).into()),
            complete: provider.is_complete,
        }
    }
}

impl TryFrom<v1::Provider> for Provider {
    type Error = Problem;

    fn try_from(provider: v1::Provider) -> Result<Self, Problem> {
        Ok(Self {
            peer: id::<PeerId>(&provider.peer_id, "provider.peer_id")?,
            address: provider.address.unwrap_or_default().try_into()?,
            is_complete: provider.complete,
        })
    }
}

impl From<&Registration> for v1::Registration {
    fn from(registration: &Registration) -> Self {
        Self {
            file: Some((&registration.file).into()),
            names: registration.names.clone(),
            complete: Some(registration.is_complete),
        }
    }
}

/// Keeps only valid labels. The index accepts no other names, and a name is printed to a terminal.
fn names(mut names: Vec<String>) -> Vec<String> {
    names.retain(|name| Label::parse(name).is_ok());
    names.truncate(MAX_NAMES);
    names
}

impl TryFrom<v1::QueryResult> for IndexedFile {
    type Error = Problem;

    fn try_from(result: v1::QueryResult) -> Result<Self, Problem> {
        Ok(Self {
            file: result.file.unwrap_or_default().try_into()?,
            names: names(result.names),
            provider_count: result.provider_count,
            providers: result
                .providers
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<v1::SearchResult> for IndexedFile {
    type Error = Problem;

    fn try_from(result: v1::SearchResult) -> Result<Self, Problem> {
        Ok(Self {
            file: result.file.unwrap_or_default().try_into()?,
            names: names(result.names),
            provider_count: result.provider_count,
            providers: Vec::new(),
        })
    }
}

impl TryFrom<v1::WatchProvidersResponse> for ProviderEvent {
    type Error = Problem;

    fn try_from(response: v1::WatchProvidersResponse) -> Result<Self, Problem> {
        use v1::watch_providers_response::Event;
        match response.event {
            Some(Event::Snapshot(snapshot)) => Ok(Self::Snapshot(
                snapshot
                    .providers
                    .into_iter()
                    .map(TryInto::try_into)
                    .collect::<Result<_, _>>()?,
            )),
            Some(Event::Joined(provider)) => Ok(Self::Joined(provider.try_into()?)),
            Some(Event::Left(peer)) => Ok(Self::Left(id(&peer, "left")?)),
            None => Err(Problem::new(
                Reason::NotPotluck,
                "the index sent an event without content",
            )),
        }
    }
}

impl TryFrom<v1::ListedPeer> for ListedPeer {
    type Error = Problem;

    fn try_from(peer: v1::ListedPeer) -> Result<Self, Problem> {
        Ok(Self {
            peer: id::<PeerId>(&peer.peer_id, "peer.peer_id")?,
            address: peer.address.unwrap_or_default().try_into()?,
            file_count: peer.file_count,
            last_seen: Duration::from_millis(peer.last_seen_ms),
            version: peer.version,
        })
    }
}

impl From<&ListedPeer> for v1::ListedPeer {
    fn from(peer: &ListedPeer) -> Self {
        Self {
            peer_id: peer.peer.to_bytes(),
            address: Some((&peer.address).into()),
            file_count: peer.file_count,
            last_seen_ms: u64::try_from(peer.last_seen.as_millis()).unwrap_or(u64::MAX),
            version: peer.version.clone(),
        }
    }
}

impl From<v1::GetStatsResponse> for IndexStats {
    fn from(stats: v1::GetStatsResponse) -> Self {
        Self {
            peers: stats.peers,
            files: stats.files,
            registrations: stats.registrations,
            watchers: stats.watchers,
            uptime: Duration::from_millis(stats.uptime_ms),
            version: stats.version,
            store: stats.store,
            cluster_id: ClusterId::from_bytes(&stats.cluster_id),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn records() -> impl Strategy<Value = FileRecord> {
        let size = prop_oneof![Just(0), 0..=MAX_FILE_SIZE];
        (
            size,
            any::<[u8; 32]>(),
            proptest::option::of(any::<[u8; 32]>()),
            any::<bool>(),
        )
            .prop_map(|(size, root, sha256, collection)| {
                let root = if size == 0 { EMPTY_ROOT } else { Root(root) };
                FileRecord {
                    id: FileId::derive(size, &root),
                    size,
                    root,
                    sha256: sha256.map(Sha256),
                    kind: if collection {
                        FileKind::Collection
                    } else {
                        FileKind::File
                    },
                }
            })
    }

    #[test]
    fn a_record_without_a_root_is_provisional() {
        let record = FileRecord::provisional(5, Sha256([3; 32]));
        let sent = v1::FileRecord::from(&record);
        assert!(sent.root.is_empty());
        assert_eq!(FileRecord::try_from(sent.clone()), Ok(record));
        let lie = v1::FileRecord { size: 6, ..sent };
        assert_eq!(
            reason(FileRecord::try_from(lie)),
            (Reason::IdMismatch, Some("file.file_id".to_owned()))
        );
    }

    #[test]
    fn provisional_ids_are_as_documented() {
        // printf 'potluck/origin/v1\0' | cat - <(printf '\1\0\0\0\0\0\0\0') <(printf x | sha256sum | xxd -r -p) | sha256sum
        let sum = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";
        let id = FileId::provisional(1, &sum.parse().expect("64 digits"));
        assert_eq!(
            id.to_string(),
            "40441903b7222be8b116b999fd0875209c5cc4714bd221a3e923363de0fa1903"
        );
    }

    fn providers() -> impl Strategy<Value = Provider> {
        let host = prop_oneof![
            any::<std::net::IpAddr>().prop_map(|ip| ip.to_string()),
            "[a-z0-9]{1,9}(\\.[a-z0-9-]{1,9}){0,3}",
        ];
        (any::<[u8; 32]>(), host, 1..=u16::MAX, any::<bool>()).prop_map(
            |(peer, host, port, is_complete)| Provider {
                peer: PeerId(peer),
                address: Address { host, port },
                is_complete,
            },
        )
    }

    fn reason<T>(result: Result<T, Problem>) -> (Reason, Option<String>) {
        let problem = result.err().expect("refused");
        (problem.reason, problem.field)
    }

    proptest! {
        #[test]
        fn records_survive_the_wire(record in records()) {
            let sent = v1::FileRecord::from(&record);
            prop_assert_eq!(FileRecord::try_from(sent.clone()), Ok(record));
            prop_assert_eq!(FileRecord::try_from(v1::FileRecord { file_id: Default::default(), ..sent }), Ok(record));
        }

        #[test]
        fn an_inconsistent_record_is_refused(record in records(), size in 1..=MAX_FILE_SIZE) {
            let lie = v1::FileRecord { size, ..(&record).into() };
            let told = FileRecord::try_from(lie);
            prop_assert_eq!(told.is_ok(), size == record.size);
        }

        #[test]
        fn providers_survive_the_wire(provider in providers()) {
            prop_assert_eq!(Provider::try_from(v1::Provider::from(&provider)), Ok(provider.clone()));
            let endpoint: crate::grpc::transport::Endpoint = provider.address.to_string().parse().unwrap();
            prop_assert_eq!(endpoint.to_string(), format!("http://{}", provider.address));
        }

        #[test]
        fn only_valid_hosts_are_accepted(host in any::<String>()) {
            let address = v1::Address { host, port: 1 };
            if let Ok(address) = Address::try_from(address)
                && let Ok(endpoint) = address.to_string().parse::<crate::grpc::transport::Endpoint>()
            {
                prop_assert_eq!(endpoint.to_string(), format!("http://{address}"));
            }
        }
    }

    #[test]
    fn refusals_name_the_field() {
        let good = v1::FileRecord {
            size: 1,
            root: vec![1; 32].into(),
            ..Default::default()
        };
        let with = |change: fn(&mut v1::FileRecord)| {
            let mut record = good.clone();
            change(&mut record);
            reason(FileRecord::try_from(record))
        };
        let field = |name: &str| Some(name.to_owned());
        assert_eq!(
            with(|r| r.root = Default::default()),
            (Reason::InvalidId, field("file.root"))
        );
        assert_eq!(
            with(|r| r.file_id = vec![1; 31].into()),
            (Reason::InvalidId, field("file.file_id"))
        );
        assert_eq!(
            with(|r| r.file_id = vec![1; 32].into()),
            (Reason::IdMismatch, field("file.file_id"))
        );
        assert_eq!(
            with(|r| r.sha256 = vec![1; 33].into()),
            (Reason::InvalidId, field("file.sha256"))
        );
        assert_eq!(
            with(|r| r.size = u64::MAX),
            (Reason::OutOfRange, field("file.size"))
        );
        assert_eq!(with(|r| r.size = 0), (Reason::IdMismatch, field("file.root")));
        for (host, port, at) in [
            ("h", 0, "address.port"),
            ("h", 65_536, "address.port"),
            ("a b", 1, "address.host"),
            ("h/x", 1, "address.host"),
            ("[::1]", 1, "address.host"),
            ("u@h", 1, "address.host"),
            ("h\u{1b}", 1, "address.host"),
        ] {
            let address = v1::Address {
                host: host.into(),
                port,
            };
            assert_eq!(
                reason(Address::try_from(address)),
                (Reason::InvalidAddress, field(at)),
                "{host}:{port}"
            );
        }
    }

    #[test]
    fn names_that_are_not_labels_are_dropped() {
        let mut all = vec!["ok".to_owned(), "\u{1b}[2J".to_owned(), "../x".to_owned()];
        all.extend((0..20).map(|i| i.to_string()));
        let kept = names(all);
        assert_eq!(
            (kept.len(), &kept[..2]),
            (16, &["ok".to_owned(), "0".to_owned()][..])
        );
    }
}
