//! A download as the store keeps it, so that it continues after a restart.
//!
//! The format is JSON: small, readable for diagnosis, and open to new fields.

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use potluck_core::model::Address;
use potluck_origins::secret::Secret;
use serde::{Deserialize, Serialize};

use crate::{
    download::{
        origin::spec::OriginSpec,
        seeding::{SeedLimit, Seeding},
        selection::PathFilter,
        status::{DownloadSpec, LimitsUpdate},
    },
    limits::Priority,
};

/// A stored download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PersistedDownload {
    /// The request.
    pub(crate) spec: DownloadSpec,
    /// Whether the download was running, and not paused or failed.
    pub(crate) running: bool,
    /// The name, once known; otherwise empty.
    pub(crate) name: String,
    /// The final path, once known.
    pub(crate) path: Option<PathBuf>,
    /// For a finished download that is served until a limit is reached: how far it is.
    pub(crate) seeding: Option<Seeding>,
    /// When it was requested, to the second; `None` if an earlier version stored it.
    pub(crate) created_at: Option<SystemTime>,
}

#[derive(Serialize, Deserialize)]
struct PersistedJson {
    id: String,
    name: Option<String>,
    /// Paths are bytes, in hex.
    target: Option<String>,
    sha256: Option<String>,
    #[serde(default)]
    providers: Vec<(String, u16)>,
    #[serde(default)]
    origin: Option<OriginJson>,
    #[serde(default)]
    in_order: bool,
    #[serde(default)]
    detach: bool,
    #[serde(default)]
    allow_expansion: bool,
    #[serde(default)]
    seed: Option<SeedJson>,
    #[serde(default)]
    seeding: Option<SeedingJson>,
    #[serde(default)]
    include: Vec<String>,
    #[serde(default)]
    exclude: Vec<String>,
    #[serde(default)]
    max_bytes_per_second: u64,
    /// 0 or any invalid value means the default priority.
    #[serde(default)]
    priority: u32,
    #[serde(default)]
    running: bool,
    #[serde(default)]
    label: String,
    path: Option<String>,
    /// Seconds since 1970; 0 if unknown.
    #[serde(default)]
    created_at: u64,
}

/// An origin without its credentials: they are never stored.
#[derive(Serialize, Deserialize)]
struct OriginJson {
    url: String,
    size: u64,
    sha256: String,
    #[serde(default)]
    validator: Option<String>,
    /// Whether it needs credentials: the content is then not shared after a restart, either.
    #[serde(default)]
    is_gated: bool,
    #[serde(default)]
    share_gated: bool,
}

impl From<&OriginSpec> for OriginJson {
    fn from(origin: &OriginSpec) -> Self {
        Self {
            url: origin.url.to_string(),
            size: origin.size,
            sha256: origin.sha256.to_string(),
            validator: origin.validator.clone(),
            is_gated: origin.authorization.is_some(),
            share_gated: origin.share_gated,
        }
    }
}

impl OriginJson {
    fn into_spec(self) -> Option<OriginSpec> {
        Some(OriginSpec {
            url: OriginSpec::parse_url(&self.url).ok()?,
            size: self.size,
            sha256: self.sha256.parse().ok()?,
            validator: self.validator,
            // The origin then answers that it wants credentials.
            authorization: self.is_gated.then(|| Secret::header(String::new())),
            share_gated: self.share_gated,
        })
    }
}

#[derive(Serialize, Deserialize)]
enum SeedJson {
    Never,
    Milliseconds(u64),
    Thousandths(u64),
}

#[derive(Serialize, Deserialize)]
struct SeedingJson {
    /// Seconds since 1970.
    since: u64,
    size: u64,
    uploaded: u64,
}

impl From<SeedLimit> for SeedJson {
    fn from(limit: SeedLimit) -> Self {
        match limit {
            SeedLimit::Never => Self::Never,
            SeedLimit::For(time) => {
                Self::Milliseconds(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
            }
            SeedLimit::Ratio(thousandths) => Self::Thousandths(thousandths),
        }
    }
}

impl From<SeedJson> for SeedLimit {
    fn from(limit: SeedJson) -> Self {
        match limit {
            SeedJson::Never => Self::Never,
            SeedJson::Milliseconds(time) => Self::For(Duration::from_millis(time)),
            SeedJson::Thousandths(thousandths) => Self::Ratio(thousandths),
        }
    }
}

impl PersistedDownload {
    /// Encodes the download for the store.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let spec = &self.spec;
        let record = PersistedJson {
            id: spec.id.to_string(),
            name: spec.name.clone(),
            target: spec.target.as_deref().map(path_to_hex),
            sha256: spec.sha256.map(|sum| sum.to_string()),
            providers: spec
                .providers
                .iter()
                .map(|address| (address.host.clone(), address.port))
                .collect(),
            origin: spec.origin.as_ref().map(Into::into),
            in_order: spec.in_order,
            detach: spec.detach,
            allow_expansion: spec.allow_expansion,
            seed: spec.seed.map(Into::into),
            seeding: self.seeding.map(|seeding| SeedingJson {
                since: unix_seconds(seeding.since),
                size: seeding.size,
                uploaded: seeding.uploaded,
            }),
            include: spec.filter.include().to_vec(),
            exclude: spec.filter.exclude().to_vec(),
            max_bytes_per_second: spec.limits.max_bytes_per_second.unwrap_or_default(),
            priority: spec.limits.priority.unwrap_or_default().get(),
            running: self.running,
            label: self.name.clone(),
            path: self.path.as_deref().map(path_to_hex),
            created_at: self.created_at.map_or(0, unix_seconds),
        };
        serde_json::to_vec(&record).expect("strings and numbers always serialise")
    }

    /// Decodes a stored download; `None` if the bytes are not what [`PersistedDownload::encode`]
    /// writes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let record: PersistedJson = serde_json::from_slice(bytes).ok()?;
        let path = |hex: Option<String>| {
            hex.map(|hex| path_from_hex(&hex))
                .map_or(Some(None), |path| path.map(Some))
        };
        Some(Self {
            spec: DownloadSpec {
                id: record.id.parse().ok()?,
                name: record.name,
                target: path(record.target)?,
                sha256: match record.sha256 {
                    Some(sum) => Some(sum.parse().ok()?),
                    None => None,
                },
                providers: record
                    .providers
                    .into_iter()
                    .map(|(host, port)| Address { host, port })
                    .collect(),
                origin: match record.origin {
                    Some(origin) => Some(origin.into_spec()?),
                    None => None,
                },
                in_order: record.in_order,
                detach: record.detach,
                allow_expansion: record.allow_expansion,
                seed: record.seed.map(Into::into),
                filter: PathFilter::new(record.include, record.exclude).ok()?,
                limits: LimitsUpdate {
                    max_bytes_per_second: Some(record.max_bytes_per_second),
                    priority: Priority::new(record.priority),
                },
            },
            running: record.running,
            name: record.label,
            path: path(record.path)?,
            seeding: record.seeding.and_then(|seeding| {
                Some(Seeding {
                    since: UNIX_EPOCH.checked_add(Duration::from_secs(seeding.since))?,
                    size: seeding.size,
                    uploaded: seeding.uploaded,
                })
            }),
            created_at: match record.created_at {
                0 => None,
                seconds => UNIX_EPOCH.checked_add(Duration::from_secs(seconds)),
            },
        })
    }
}

/// The whole seconds since 1970; 0 for an earlier time.
fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn path_to_hex(path: &Path) -> String {
    hex::encode(path.as_os_str().as_bytes())
}

fn path_from_hex(text: &str) -> Option<PathBuf> {
    Some(OsString::from_vec(hex::decode(text).ok()?).into())
}

#[cfg(test)]
mod tests {
    use potluck_core::{FileId, Sha256};

    use super::*;
    use crate::download::status::DownloadLimits;

    #[test]
    fn round_trips() {
        let saved = PersistedDownload {
            spec: DownloadSpec {
                name: Some("a b".into()),
                target: Some(OsString::from_vec(b"/x/\xff".to_vec()).into()),
                sha256: Some(Sha256([4; 32])),
                providers: vec![Address {
                    host: "::1".into(),
                    port: 7,
                }],
                detach: true,
                allow_expansion: true,
                seed: Some(SeedLimit::Ratio(1500)),
                filter: PathFilter::new(vec!["*.json".into()], vec!["a/**".into()]).unwrap(),
                limits: LimitsUpdate {
                    max_bytes_per_second: Some(u64::MAX),
                    priority: Priority::new(3),
                },
                ..DownloadSpec::new(FileId([1; 32]))
            },
            running: true,
            name: "label".into(),
            path: None,
            seeding: Some(Seeding {
                since: UNIX_EPOCH + Duration::from_secs(1_796_000_001),
                size: 7,
                uploaded: 8,
            }),
            created_at: Some(UNIX_EPOCH + Duration::from_secs(1_796_000_000)),
        };
        assert_eq!(PersistedDownload::decode(&saved.encode()), Some(saved));
        assert_eq!(PersistedDownload::decode(b"nonsense"), None);
    }

    #[test]
    fn rows_of_earlier_versions_are_decoded() {
        let id = FileId([1; 32]);
        for priority in ["", r#","priority":0"#, r#","priority":101"#] {
            let record = format!(r#"{{"id":"{id}","max_bytes_per_second":7{priority}}}"#);
            let saved = PersistedDownload::decode(record.as_bytes()).unwrap();
            assert_eq!(saved.created_at, None);
            let limits = saved.spec.limits.applied_to(DownloadLimits::default());
            assert_eq!(
                (limits.max_bytes_per_second, limits.priority.get()),
                (7, 10),
                "{record}"
            );
        }
    }
}
