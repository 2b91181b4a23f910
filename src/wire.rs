//! The wall between messages and domain types: every conversion of what the index speaks about.
//!
//! Whatever fails here came from outside and is named by its field.

use crate::{
    FileId, PeerId, Problem, Reason, Root, Sha256,
    id::IdError,
    index_client::{Address, FileRecord, Found, Kind, Provider, Registration, WatchEvent},
    proto::v1,
};

fn id<T: for<'a> TryFrom<&'a [u8], Error = IdError>>(bytes: &[u8], field: &str) -> Result<T, Problem> {
    T::try_from(bytes).map_err(|error| Problem::new(Reason::InvalidId, error.to_string()).field(field))
}

/// A file id from a request's field, or the problem to answer with.
///
/// # Errors
/// [`Reason::InvalidId`] naming the field.
pub fn file_id(bytes: &[u8], field: &str) -> Result<FileId, Problem> {
    id(bytes, field)
}

impl From<v1::FileKind> for Kind {
    fn from(kind: v1::FileKind) -> Self {
        match kind {
            v1::FileKind::Unspecified | v1::FileKind::File => Self::File,
            v1::FileKind::Collection => Self::Collection,
        }
    }
}

impl From<Kind> for v1::FileKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::File => Self::File,
            Kind::Collection => Self::Collection,
        }
    }
}

impl TryFrom<v1::FileRecord> for FileRecord {
    type Error = Problem;

    /// The record, its id derived where empty and otherwise checked against size and root.
    fn try_from(record: v1::FileRecord) -> Result<Self, Problem> {
        let root: Root = id(&record.root, "file.root")?;
        let derived = FileId::derive(record.size, &root);
        if crate::FileLayout::new(record.size).is_none() {
            return Err(Problem::new(Reason::OutOfRange, "no file is that large").field("file.size"));
        }
        if !record.file_id.is_empty() && id::<FileId>(&record.file_id, "file.file_id")? != derived {
            return Err(
                Problem::new(Reason::IdMismatch, "the id does not fit the size and the root")
                    .field("file.file_id"),
            );
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

impl From<&FileRecord> for v1::FileRecord {
    fn from(record: &FileRecord) -> Self {
        Self {
            file_id: record.id.to_bytes(),
            size: record.size,
            root: record.root.to_bytes(),
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

    fn try_from(address: v1::Address) -> Result<Self, Problem> {
        let port = u16::try_from(address.port)
            .ok()
            .filter(|&port| port != 0)
            .ok_or_else(|| {
                Problem::new(Reason::InvalidAddress, "a port is 1 to 65535").field("address.port")
            })?;
        Ok(Self {
            host: address.host,
            port,
        })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl From<std::net::SocketAddr> for Address {
    fn from(address: std::net::SocketAddr) -> Self {
        Self {
            host: address.ip().to_canonical().to_string(),
            port: address.port(),
        }
    }
}

impl From<&Provider> for v1::Provider {
    fn from(provider: &Provider) -> Self {
        Self {
            peer_id: provider.peer.to_bytes(),
            address: Some((&provider.address).into()),
            partial: provider.partial,
        }
    }
}

impl TryFrom<v1::Provider> for Provider {
    type Error = Problem;

    fn try_from(provider: v1::Provider) -> Result<Self, Problem> {
        Ok(Self {
            peer: id::<PeerId>(&provider.peer_id, "provider.peer_id")?,
            address: provider.address.unwrap_or_default().try_into()?,
            partial: provider.partial,
        })
    }
}

impl From<&Registration> for v1::Registration {
    fn from(registration: &Registration) -> Self {
        Self {
            file: Some((&registration.file).into()),
            names: registration.names.clone(),
            partial: registration.partial,
        }
    }
}

impl TryFrom<v1::QueryResult> for Found {
    type Error = Problem;

    fn try_from(result: v1::QueryResult) -> Result<Self, Problem> {
        Ok(Self {
            file: result.file.unwrap_or_default().try_into()?,
            names: result.names,
            provider_count: result.provider_count,
            providers: result
                .providers
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<v1::SearchResult> for Found {
    type Error = Problem;

    fn try_from(result: v1::SearchResult) -> Result<Self, Problem> {
        Ok(Self {
            file: result.file.unwrap_or_default().try_into()?,
            names: result.names,
            provider_count: result.provider_count,
            providers: Vec::new(),
        })
    }
}

impl TryFrom<v1::WatchResponse> for WatchEvent {
    type Error = Problem;

    fn try_from(response: v1::WatchResponse) -> Result<Self, Problem> {
        use v1::watch_response::Event;
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
