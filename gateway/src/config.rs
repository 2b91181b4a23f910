//! Settings of a gateway.

use std::{path::PathBuf, str::FromStr, time::Duration};

use potluck_origins::policy;
use url::Url;

/// Settings of a gateway.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// The hub.
    pub hub: Url,
    /// The registries of container images. The first is asked if a request names none.
    pub registries: Vec<RegistryConfig>,
    /// How long cached metadata is served while the hub cannot be reached.
    pub auth_grace: Duration,
    /// Further names that clients use for this gateway in `Host`.
    pub hosts: Vec<String>,
    /// The certificate for clients; `None`: plain HTTP.
    pub tls: Option<TlsFiles>,
    /// Whether to listen beyond this machine without encryption.
    pub plaintext: bool,
    /// Whether content that needs credentials is announced and shared.
    pub share_gated: bool,
}

/// A certificate and its key, as files in PEM.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The certificate, followed by intermediate ones.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// A registry of container images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryConfig {
    /// Its name in references to images, such as `docker.io`.
    pub name: String,
    /// Where it is.
    pub url: Url,
}

impl FromStr for RegistryConfig {
    type Err = String;

    /// Parses `NAME=URL`.
    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || "give NAME=URL, such as docker.io=https://registry-1.docker.io".to_owned();
        let (name, url) = text.split_once('=').ok_or_else(invalid)?;
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
        if name.is_empty() || !name.bytes().all(fits) {
            return Err(invalid());
        }
        let url: Url = url.parse().map_err(|_| invalid())?;
        policy::check_origin(&url).map_err(|error| error.to_string())?;
        Ok(Self {
            name: name.to_ascii_lowercase(),
            url,
        })
    }
}
