//! Looks up a file at an origin: its size, its SHA-256, its name.
//!
//! Credentials are sent only if the origin refuses access without them. So what everybody may read
//! counts as public, and is shared like any other content, even if a token is set.

use std::sync::Arc;

use potluck_core::{Problem, Reason, Sha256};
use potluck_origins::{
    OriginClient, OriginError, OriginFile, OriginReference, OriginSettings, credentials,
    hub::{HubClient, HubCommit, HubHash},
    reference::{FileUrl, HubReference},
    secret::Secret,
};

use crate::error::CommandError;

/// A file at an origin.
#[derive(Debug)]
pub(crate) struct OriginContent {
    pub(crate) file: Arc<OriginFile>,
    pub(crate) sha256: Sha256,
    pub(crate) name: Option<String>,
}

/// Looks up a file.
///
/// # Errors
/// A usage error if nothing states its SHA-256, or the origin's failure.
pub(crate) async fn look_up(reference: &OriginReference) -> Result<OriginContent, CommandError> {
    let client = OriginClient::new(OriginSettings::default()).map_err(Problem::from)?;
    match reference {
        OriginReference::File(file) => look_up_url(&client, file).await,
        OriginReference::Hub(hub) => look_up_hub(&client, hub).await,
    }
}

/// Looks up a file of which nothing states the SHA-256.
///
/// # Errors
/// The origin's failure.
pub(crate) async fn look_up_unhashed(
    client: &OriginClient,
    url: &FileUrl,
) -> Result<OriginFile, CommandError> {
    let secret = || credentials::host_credentials(&url.url);
    let found = with_credentials(secret, |secret| client.look_up(url, secret)).await?;
    Ok(found)
}

async fn look_up_url(client: &OriginClient, url: &FileUrl) -> Result<OriginContent, CommandError> {
    let Some(sha256) = url.sha256 else {
        return Err(
            CommandError::usage(format!("nothing states the SHA-256 of {url}")).hint(
                "give it: https://HOST/PATH#sha256=HEX; servers often have a file with checksums",
            ),
        );
    };
    let secret = || credentials::host_credentials(&url.url);
    let found = with_credentials(secret, |secret| client.look_up(url, secret)).await?;
    if found.size == 0 {
        return Err(CommandError::new(
            Reason::OriginInvalid,
            format!("{url} is empty"),
        ));
    }
    Ok(OriginContent {
        file: Arc::new(found),
        sha256,
        name: url.file_name(),
    })
}

async fn look_up_hub(
    client: &OriginClient,
    reference: &HubReference,
) -> Result<OriginContent, CommandError> {
    let Some(path) = &reference.path else {
        return Err(CommandError::usage(format!("{reference} is a repository"))
            .hint("get it on its own, or give one of its files: hf://ORG/REPO/PATH"));
    };
    let (hub, commit) = open_hub(client, reference).await?;
    let Some(file) = commit.files.first() else {
        return Err(CommandError::new(
            Reason::NotFound,
            format!("{reference} is not there"),
        ));
    };
    let HubHash::Sha256(sha256) = file.hash else {
        return Err(CommandError::new(
            Reason::OriginInvalid,
            format!("the hub states no SHA-256 for {path}, only the SHA-1 of its Git blob"),
        )
        .hint(format!(
            "small files come from the hub alone: potluck get hf://{}{} --include '{path}'",
            reference.kind.prefix(),
            reference.repository
        )));
    };
    let source = hub.file(&commit, file).map_err(Problem::from)?;
    Ok(OriginContent {
        file: Arc::new(source),
        sha256,
        name: path.rsplit('/').next().map(ToOwned::to_owned),
    })
}

/// Looks up the commit of a reference, and its files.
///
/// # Errors
/// A usage error if `HF_ENDPOINT` is not a URL, or the hub's failure.
pub(crate) async fn open_hub(
    client: &OriginClient,
    reference: &HubReference,
) -> Result<(HubClient, HubCommit), CommandError> {
    let endpoint = credentials::hub_endpoint()
        .map_err(|error| CommandError::usage(format!("HF_ENDPOINT is not a URL: {error}")))?;
    let secret = || credentials::hub_token(&endpoint);
    let opened = with_credentials(secret, async |secret| {
        let hub = HubClient::new(client.clone(), endpoint.clone(), secret);
        let commit = hub.look_up(reference).await?;
        Ok((hub, commit))
    });
    Ok(opened.await?)
}

/// Tries without credentials first, and then with them if the origin denies access.
async fn with_credentials<T>(
    secret: impl FnOnce() -> Option<Secret>,
    look_up: impl AsyncFn(Option<Secret>) -> Result<T, OriginError>,
) -> Result<T, Problem> {
    let first = look_up(None).await;
    let denied = match first {
        Err(OriginError::Denied { .. }) => first,
        // Private repositories look as if they did not exist.
        Err(OriginError::NotFound { .. }) => first,
        other => return other.map_err(Into::into),
    };
    match secret() {
        Some(secret) => look_up(Some(secret)).await.map_err(Into::into),
        None => denied.map_err(Into::into),
    }
}
