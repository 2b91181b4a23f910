//! A file at an origin: plain data, and where its bytes were found last.

use std::time::Duration;

use parking_lot::Mutex;
use potluck_core::Sha256;
use tokio::time::Instant;
use url::Url;

use crate::{policy::host_of, secret::Secret};

/// How long the target of a redirect is used without asking again. Hubs sign such addresses for an
/// hour; a target that expires earlier is replaced when it fails.
const LOCATION_TTL: Duration = Duration::from_secs(300);

/// A file at an origin, as it was described when it was looked up.
#[derive(Debug)]
pub struct OriginFile {
    /// The address that the operator named, or that the hub's API leads to.
    pub url: Url,
    /// Size in bytes.
    pub size: u64,
    /// The SHA-256 that the origin or the user states.
    pub sha256: Option<Sha256>,
    /// A strong validator, if the origin has one.
    pub validator: Option<String>,
    /// Whether the origin serves ranges.
    pub has_ranges: bool,
    /// What to send as `Authorization` to the named host.
    pub authorization: Option<Secret>,
    /// Where a redirect led, and when.
    location: Mutex<Option<(Url, Instant)>>,
}

impl OriginFile {
    /// A file whose size is known, at a server that serves ranges.
    pub fn new(url: Url, size: u64, sha256: Option<Sha256>, authorization: Option<Secret>) -> Self {
        Self {
            url,
            size,
            sha256,
            validator: None,
            has_ranges: true,
            authorization,
            location: Mutex::default(),
        }
    }

    /// The host and port, for people.
    pub fn host(&self) -> String {
        host_of(&self.url)
    }

    /// Where a redirect led a short time ago.
    pub(crate) fn recent_location(&self) -> Option<Url> {
        let location = self.location.lock();
        let (url, at) = location.as_ref()?;
        (at.elapsed() < LOCATION_TTL).then(|| url.clone())
    }

    /// Remembers where a redirect led.
    pub(crate) fn set_location(&self, url: Url) {
        *self.location.lock() = Some((url, Instant::now()));
    }

    /// Forgets where a redirect led; whether there was one.
    pub(crate) fn forget_location(&self) -> bool {
        self.location.lock().take().is_some()
    }
}
