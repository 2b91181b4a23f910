//! Waits for responses and reads them, with time limits and bounds.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::header;
use reqwest::Response;
use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer};
use tokio::time::timeout;

use crate::{error::OriginError, secret::Secret};

/// Longest silence of an origin: storage that wakes up takes some seconds.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest answer that is read into memory, in bytes.
pub const MAX_DOCUMENT: usize = 32 << 20;

/// The response to a request, once its head arrived.
pub(crate) async fn answered(
    host: &str,
    request: reqwest::RequestBuilder,
) -> Result<Response, OriginError> {
    match timeout(IDLE_TIMEOUT, request.send()).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(unreachable(host, &error)),
        Err(_) => Err(OriginError::TimedOut {
            host: host.to_owned(),
            after: IDLE_TIMEOUT,
        }),
    }
}

pub(crate) async fn read_document(
    response: &mut Response,
    host: &str,
) -> Result<Vec<u8>, OriginError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = next_chunk(response, host).await? {
        if bytes.len() + chunk.len() > MAX_DOCUMENT {
            return Err(OriginError::Invalid {
                host: host.to_owned(),
                what: format!("an answer of more than {MAX_DOCUMENT} bytes"),
            });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

pub(crate) fn sensitive(authorization: &Secret) -> Result<header::HeaderValue, OriginError> {
    let value = header::HeaderValue::from_str(authorization.expose());
    let mut value = value
        .map_err(|_| OriginError::Refused("the token has characters that HTTP forbids".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

pub(crate) async fn next_chunk(
    response: &mut Response,
    host: &str,
) -> Result<Option<Bytes>, OriginError> {
    match timeout(IDLE_TIMEOUT, response.chunk()).await {
        Ok(Ok(chunk)) => Ok(chunk),
        Ok(Err(error)) => Err(unreachable(host, &error)),
        Err(_) => Err(OriginError::TimedOut {
            host: host.to_owned(),
            after: IDLE_TIMEOUT,
        }),
    }
}

/// The innermost cause, without the URL, which can hold a signature.
pub(crate) fn unreachable(host: &str, error: &reqwest::Error) -> OriginError {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let cause = match std::ptr::addr_eq(cause, error) {
        true => "the request failed".to_owned(),
        false => cause.to_string(),
    };
    OriginError::Unreachable {
        host: host.to_owned(),
        cause,
    }
}

/// TLS with the roots of the system, and further ones.
pub(crate) fn tls_config(extra_roots: &[Vec<u8>]) -> Result<ClientConfig, OriginError> {
    let mut roots = RootCertStore::empty();
    // A system without certificates still reaches origins on loopback.
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "could not read certificates of the system");
    }
    roots.add_parsable_certificates(found.certs);
    for root in extra_roots {
        roots.add(CertificateDer::from(root.clone())).map_err(|error| {
            OriginError::Refused(format!("a trusted certificate is not valid: {error}"))
        })?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| OriginError::Refused(format!("TLS cannot be set up: {error}")))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
