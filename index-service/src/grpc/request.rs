//! Parses requests into the index's own types, field by field. No value that the contract forbids
//! gets past this file.

use std::time::Duration;

use bytes::Bytes;
use potluck_core::{
    FileId, Problem, Sha256, Token,
    collection::path::Label,
    convert,
    identity::id_prefix::IdPrefixError,
    index_client::{INSTANCE, MAX_BATCH},
    model::{Address, FileRecord, QueryKey, Registration},
    proto::v1,
};

use crate::{
    catalog::{self, MAX_NAMES, SearchTerms},
    options::{MAX_TTL, MIN_TTL},
    problem::{invalid_field, invalid_name, invalid_token},
};

/// Maximum files per page and maximum providers per file, as the contract defines it.
const MAX_PAGE_SIZE: u32 = 1_000;

/// Files per page if the caller gives no page size.
const DEFAULT_PAGE_SIZE: u32 = 100;

/// Providers per file if the caller gives no maximum.
const DEFAULT_PROVIDERS: u32 = 50;

/// A valid `Register` request.
#[derive(Debug)]
pub(crate) struct ParsedRegister {
    /// `None` if the caller asks for a new token, or its certificate identifies it.
    pub(crate) token: Option<Token>,
    /// The claimed address.
    pub(crate) address: Address,
    /// The registrations.
    pub(crate) files: Vec<Registration>,
    /// The requested lease; `None` for the default.
    pub(crate) ttl: Option<Duration>,
    /// Whether earlier registrations are dropped.
    pub(crate) replace: bool,
    /// Identifies this run of the peer; may be empty.
    pub(crate) instance: Bytes,
    /// The version of its program; empty if unknown.
    pub(crate) version: String,
}

impl TryFrom<v1::RegisterRequest> for ParsedRegister {
    type Error = Problem;

    fn try_from(request: v1::RegisterRequest) -> Result<Self, Problem> {
        let token = read_token(&request.token)?;
        check_batch(request.files.len(), "files")?;
        let ttl = match request.ttl_ms {
            0 => None,
            ms => Some(Duration::from_millis(ms.into())),
        };
        if ttl.is_some_and(|ttl| !(MIN_TTL..=MAX_TTL).contains(&ttl)) {
            return Err(invalid_field(
                "ttl_ms",
                "a lease lasts 1,000 to 3,600,000 milliseconds",
            ));
        }
        let address = read_address(request.address)?;
        let files = request.files.into_iter().enumerate();
        let files = files.map(|(at, file)| {
            registration(file).map_err(|problem| {
                let field = problem.field.as_deref().unwrap_or_default();
                let field = format!("files[{at}].{field}");
                problem.field(field)
            })
        });
        Ok(Self {
            token,
            address,
            files: files.collect::<Result<_, _>>()?,
            ttl,
            replace: request.replace,
            instance: check_instance(request.instance)?,
            version: read_version(request.version),
        })
    }
}

/// The version of a peer, or nothing if it is not one: it is only shown.
fn read_version(version: String) -> String {
    /// Maximum bytes of a version, as the contract defines it.
    const MAX_VERSION: usize = 32;
    let is_version = version.len() <= MAX_VERSION && version.bytes().all(|b| b.is_ascii_graphic());
    if is_version { version } else { String::new() }
}

fn registration(registration: v1::Registration) -> Result<Registration, Problem> {
    let v1::Registration {
        file,
        names,
        complete,
    } = registration;
    let file: FileRecord = file
        .ok_or_else(|| invalid_field("file", "the file is missing"))?
        .try_into()?;
    check_names(names.len())?;
    for (at, name) in names.iter().enumerate() {
        Label::parse(name).map_err(|error| invalid_name(&error).field(format!("names[{at}]")))?;
    }
    Ok(Registration {
        file,
        names,
        is_complete: complete.unwrap_or(true),
    })
}

/// A valid `Renew` request.
#[derive(Debug)]
pub(crate) struct ParsedRenew {
    /// The peer's secret token; `None` if it sent none.
    pub(crate) token: Option<Token>,
    /// The claimed address.
    pub(crate) address: Address,
    /// Identifies this run of the peer; may be empty.
    pub(crate) instance: Bytes,
    /// The version of its program; empty if unknown.
    pub(crate) version: String,
}

impl TryFrom<v1::RenewRequest> for ParsedRenew {
    type Error = Problem;

    fn try_from(request: v1::RenewRequest) -> Result<Self, Problem> {
        Ok(Self {
            token: read_token(&request.token)?,
            address: read_address(request.address)?,
            instance: check_instance(request.instance)?,
            version: read_version(request.version),
        })
    }
}

/// A valid `Unregister` request.
#[derive(Debug)]
pub(crate) struct ParsedUnregister {
    /// The peer's secret token; `None` if it sent none.
    pub(crate) token: Option<Token>,
    /// `None` for all files and the lease.
    pub(crate) files: Option<Vec<FileId>>,
    /// Identifies this run of the peer; may be empty.
    pub(crate) instance: Bytes,
}

impl TryFrom<v1::UnregisterRequest> for ParsedUnregister {
    type Error = Problem;

    fn try_from(request: v1::UnregisterRequest) -> Result<Self, Problem> {
        let token = read_token(&request.token)?;
        check_batch(request.file_ids.len(), "file_ids")?;
        if request.all && !request.file_ids.is_empty() {
            return Err(invalid_field(
                "file_ids",
                "`file_ids` and `all` exclude each other",
            ));
        }
        let ids = request.file_ids.iter().enumerate();
        let ids = ids.map(|(at, id)| convert::file_id(id, &format!("file_ids[{at}]")));
        let files = ids.collect::<Result<_, _>>()?;
        Ok(Self {
            token,
            files: (!request.all).then_some(files),
            instance: check_instance(request.instance)?,
        })
    }
}

/// A valid `Query` request, apart from its page token, which only [`crate::grpc::page_tokens`] can
/// check.
#[derive(Debug)]
pub(crate) struct ParsedQuery {
    /// The id, SHA-256 or name to find.
    pub(crate) key: QueryKey,
    /// Maximum providers per file.
    pub(crate) max_providers: usize,
    /// Maximum files.
    pub(crate) page_size: usize,
    /// Not checked yet.
    pub(crate) page_token: String,
}

impl TryFrom<v1::QueryRequest> for ParsedQuery {
    type Error = Problem;

    fn try_from(request: v1::QueryRequest) -> Result<Self, Problem> {
        use v1::query_request::Key;
        let key = match request.key {
            None => {
                return Err(invalid_field(
                    "key",
                    "one of `file_id`, `file_id_prefix`, `sha256` and `name` is required",
                ));
            }
            Some(Key::FileId(id)) => QueryKey::Id(convert::file_id(&id, "file_id")?),
            Some(Key::Sha256(sum)) => {
                QueryKey::Sha256(Sha256::try_from(&*sum).map_err(|error| {
                    Problem::new(potluck_core::Reason::InvalidId, error.to_string()).field("sha256")
                })?)
            }
            Some(Key::FileIdPrefix(digits)) => {
                QueryKey::IdPrefix(digits.parse().map_err(|error: IdPrefixError| {
                    Problem::new(potluck_core::Reason::InvalidId, error.to_string())
                        .field("file_id_prefix")
                })?)
            }
            Some(Key::Name(name)) => {
                Label::parse(&name).map_err(|error| invalid_name(&error).field("name"))?;
                QueryKey::Name(name)
            }
        };
        Ok(Self {
            key,
            max_providers: coerce_page_size(request.max_providers, DEFAULT_PROVIDERS),
            page_size: coerce_page_size(request.page_size, DEFAULT_PAGE_SIZE),
            page_token: request.page_token,
        })
    }
}

/// A valid `ListPeers` request, apart from its page token.
#[derive(Debug)]
pub(crate) struct ParsedListPeers {
    /// Maximum peers.
    pub(crate) page_size: usize,
    /// Not checked yet.
    pub(crate) page_token: String,
}

impl From<v1::ListPeersRequest> for ParsedListPeers {
    fn from(request: v1::ListPeersRequest) -> Self {
        Self {
            page_size: coerce_page_size(request.page_size, DEFAULT_PAGE_SIZE),
            page_token: request.page_token,
        }
    }
}

/// A valid `Search` request, apart from its page token.
#[derive(Debug)]
pub(crate) struct ParsedSearch {
    /// From [`catalog::terms`].
    pub(crate) terms: SearchTerms,
    /// Maximum files.
    pub(crate) page_size: usize,
    /// Not checked yet.
    pub(crate) page_token: String,
}

impl TryFrom<v1::SearchRequest> for ParsedSearch {
    type Error = Problem;

    fn try_from(request: v1::SearchRequest) -> Result<Self, Problem> {
        Ok(Self {
            terms: catalog::terms(&request.query)?,
            page_size: coerce_page_size(request.page_size, DEFAULT_PAGE_SIZE),
            page_token: request.page_token,
        })
    }
}

/// A valid `WatchProviders` request.
#[derive(Debug)]
pub(crate) struct ParsedWatch {
    /// The file.
    pub(crate) file: FileId,
    /// Maximum providers in the snapshot.
    pub(crate) max_providers: usize,
}

impl TryFrom<v1::WatchProvidersRequest> for ParsedWatch {
    type Error = Problem;

    fn try_from(request: v1::WatchProvidersRequest) -> Result<Self, Problem> {
        Ok(Self {
            file: convert::file_id(&request.file_id, "file_id")?,
            max_providers: coerce_page_size(request.max_providers, DEFAULT_PROVIDERS),
        })
    }
}

/// The token of a request; `None` if it is empty.
pub(crate) fn read_token(bytes: &[u8]) -> Result<Option<Token>, Problem> {
    match bytes.is_empty() {
        true => Ok(None),
        false => Token::try_from(bytes)
            .map(Some)
            .map_err(|error| invalid_token(&error)),
    }
}

/// Checks that every file has a name, by which it is found outside a private network.
pub(crate) fn require_names(files: &[Registration]) -> Result<(), Problem> {
    match files.iter().position(|file| file.names.is_empty()) {
        None => Ok(()),
        Some(at) => Err(invalid_name_count(0).field(format!("files[{at}].names"))),
    }
}

fn check_instance(instance: Bytes) -> Result<Bytes, Problem> {
    match instance.len() <= INSTANCE {
        true => Ok(instance),
        false => Err(invalid_field(
            "instance",
            format!(
                "an instance has at most {INSTANCE} bytes, but this one has {}",
                instance.len()
            ),
        )),
    }
}

fn read_address(address: Option<v1::Address>) -> Result<Address, Problem> {
    address.unwrap_or_default().try_into()
}

/// Checks the number of names of a file against its maximum.
pub(crate) fn check_names(count: usize) -> Result<(), Problem> {
    match count <= MAX_NAMES {
        true => Ok(()),
        false => Err(invalid_name_count(count)),
    }
}

fn invalid_name_count(names: usize) -> Problem {
    let message = format!("a file has 1 to {MAX_NAMES} names, this file has {names}");
    Problem::new(potluck_core::Reason::InvalidName, message).field("names")
}

/// Checks the number of files in a request against its maximum.
pub(crate) fn check_batch(count: usize, field: &str) -> Result<(), Problem> {
    match count <= MAX_BATCH {
        true => Ok(()),
        false => Err(invalid_field(
            field,
            format!("a request takes at most {MAX_BATCH} files, this request has {count}"),
        )),
    }
}

/// The size of a page: the default for 0, and at most [`MAX_PAGE_SIZE`] (AIP-158).
fn coerce_page_size(requested: u32, default: u32) -> usize {
    let size = if requested == 0 { default } else { requested };
    size.min(MAX_PAGE_SIZE) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_the_default_size_and_sizes_over_the_maximum_are_reduced() {
        let sizes = [0, 1, 999, 1_000, 1_001, u32::MAX];
        assert_eq!(
            sizes.map(|size| coerce_page_size(size, DEFAULT_PAGE_SIZE)),
            [100, 1, 999, 1_000, 1_000, 1_000]
        );
        assert_eq!(coerce_page_size(0, DEFAULT_PROVIDERS), 50);
    }
}
