//! The origin in a request for a download: plain data.

use potluck_core::{FileId, Problem, Reason, Sha256, model::Address};
use potluck_origins::{policy, secret::Secret};
use url::Url;

/// Where a download gets bytes that no peer has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginSpec {
    /// The address of the file.
    pub url: Url,
    /// Its size in bytes.
    pub size: u64,
    /// The SHA-256 of its bytes.
    pub sha256: Sha256,
    /// A strong validator, if the origin has one.
    pub validator: Option<String>,
    /// What to send as `Authorization`. Never stored.
    pub authorization: Option<Secret>,
    /// Whether content that was fetched with credentials is announced like any other.
    pub share_gated: bool,
}

impl OriginSpec {
    /// Parses the address of an origin.
    ///
    /// # Errors
    /// [`Reason::InvalidArgument`] if it is not one.
    pub fn parse_url(text: &str) -> Result<Url, Problem> {
        let invalid =
            |message: String| Problem::new(Reason::InvalidArgument, message).field("origin.url");
        let url = Url::parse(text)
            .map_err(|error| invalid(format!("the origin is not a URL: {error}")))?;
        policy::check_origin(&url).map_err(|error| invalid(error.to_string()))?;
        Ok(url)
    }

    /// The id under which peers meet before the root is known.
    pub fn provisional_id(&self) -> FileId {
        FileId::provisional(self.size, &self.sha256)
    }

    /// Whether peers may learn that this machine has the content.
    pub const fn may_be_shared(&self) -> bool {
        self.authorization.is_none() || self.share_gated
    }

    /// The host and port.
    pub fn address(&self) -> Address {
        Address {
            host: self
                .url
                .host_str()
                .unwrap_or_default()
                .trim_matches(['[', ']'])
                .to_owned(),
            port: self.url.port_or_known_default().unwrap_or(443),
        }
    }

    /// The address without what it may hold of signatures.
    pub fn shown(&self) -> String {
        policy::shown(&self.url)
    }
}
