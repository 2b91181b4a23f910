//! A registry of container images, as the OCI distribution specification describes its pull side,
//! with the token authentication that registries use.
//!
//! A token is given for each repository, to everybody for a public one and for a private one to
//! [`USER`]. It can expire after some requests.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{any, get},
};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use serde_json::json;

use crate::{Shared, content::sha256_hex, fault::FaultQuery, serve};

/// The type of a manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// Who may read private repositories: `Basic` of `user:password`.
pub const USER: &str = "Basic dXNlcjpwYXNzd29yZA==";

/// A repository of images.
#[derive(Debug, Clone, Default)]
pub struct ImageRepository {
    /// Whether it is for [`USER`] only.
    pub is_private: bool,
    /// Manifests by digest.
    pub manifests: BTreeMap<String, Bytes>,
    /// Digests by tag.
    pub tags: BTreeMap<String, String>,
    /// Blobs by digest.
    pub blobs: BTreeMap<String, Bytes>,
}

impl ImageRepository {
    /// Adds an image of these layers with a tag, and returns the digest of its manifest.
    pub fn put_image(&mut self, tag: &str, layers: &[Bytes]) -> String {
        let config = Bytes::from(json!({ "architecture": "amd64", "os": "linux" }).to_string());
        let mut describe = |bytes: &Bytes, kind: &str| {
            let digest = format!("sha256:{}", sha256_hex(bytes));
            self.blobs.insert(digest.clone(), bytes.clone());
            json!({ "mediaType": kind, "digest": digest, "size": bytes.len() })
        };
        let config = describe(&config, "application/vnd.oci.image.config.v1+json");
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| describe(layer, "application/vnd.oci.image.layer.v1.tar"))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers,
        });
        let manifest = Bytes::from(manifest.to_string());
        let digest = format!("sha256:{}", sha256_hex(&manifest));
        self.manifests.insert(digest.clone(), manifest);
        self.tags.insert(tag.to_owned(), digest.clone());
        digest
    }
}

/// All repositories, and the tokens that were given.
#[derive(Debug, Default)]
pub struct ImageRegistry {
    repositories: RwLock<BTreeMap<String, ImageRepository>>,
    /// The repository and the requests so far of each token.
    tokens: Mutex<BTreeMap<String, (String, u64)>>,
    /// Whether repositories want a token.
    pub wants_tokens: AtomicBool,
    /// Requests after which a token expires; 0: never.
    pub token_uses: AtomicU64,
    /// Whether blobs are behind a redirect to another host.
    pub redirects: AtomicBool,
    /// Whether every request gets 503.
    pub is_down: AtomicBool,
}

impl ImageRegistry {
    /// Adds or replaces a repository.
    pub fn put(&self, name: &str, repository: ImageRepository) {
        self.repositories.write().insert(name.to_owned(), repository);
    }

    /// The number of tokens that were given.
    pub fn token_count(&self) -> usize {
        self.tokens.lock().len()
    }

    fn get(&self, name: &str) -> Option<ImageRepository> {
        self.repositories.read().get(name).cloned()
    }

    /// Whether a request with these headers may read this repository.
    fn allows(&self, name: &str, repository: &ImageRepository, headers: &HeaderMap) -> bool {
        if !repository.is_private && !self.wants_tokens.load(Ordering::Relaxed) {
            return true;
        }
        let header = headers.get(header::AUTHORIZATION);
        let token = header.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let max = self.token_uses.load(Ordering::Relaxed);
        let mut tokens = self.tokens.lock();
        let known = token.and_then(|token| tokens.get_mut(token));
        let Some((_, uses)) = known.filter(|(of, _)| of == name) else {
            return false;
        };
        *uses += 1;
        max == 0 || *uses <= max
    }
}

/// The routes of the registry.
pub(crate) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/v2/", get(|| async { Json(json!({})) }))
        .route("/v2/{*path}", any(answer))
        .route("/token", get(token))
}

#[derive(Deserialize)]
struct TokenQuery {
    scope: String,
}

async fn token(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<TokenQuery>,
    headers: HeaderMap,
) -> Response {
    let entry = shared.log.open("/token".to_owned(), &headers);
    let name = query.scope.split(':').nth(1).unwrap_or_default().to_owned();
    let registry = &shared.registry;
    let is_user = headers
        .get(header::AUTHORIZATION)
        .is_some_and(|value| value == USER);
    match registry.get(&name) {
        Some(repository) if is_user || !repository.is_private => {
            entry.set_status(200);
            let mut tokens = registry.tokens.lock();
            let token = format!("token-{}", tokens.len());
            tokens.insert(token.clone(), (name, 0));
            Json(json!({ "token": token, "expires_in": 300 })).into_response()
        }
        _ => serve::status(StatusCode::UNAUTHORIZED, entry),
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    Path(path): Path<String>,
    Query(query): Query<FaultQuery>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let entry = shared.log.open(format!("/v2/{path}"), &headers);
    let refuse = |status: StatusCode, code: &str| {
        entry.set_status(status.as_u16());
        let errors = json!({ "errors": [{ "code": code, "message": "refused" }] });
        (status, Json(errors)).into_response()
    };
    if shared.registry.is_down.load(Ordering::Relaxed) {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE");
    }
    let parts: Vec<&str> = path.rsplitn(3, '/').collect();
    let [last, kind, name] = parts[..] else {
        return refuse(StatusCode::NOT_FOUND, "NAME_UNKNOWN");
    };
    let Some(repository) = shared.registry.get(name) else {
        return refuse(StatusCode::NOT_FOUND, "NAME_UNKNOWN");
    };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.unwrap_or_default();
    if !shared.registry.allows(name, &repository, &headers) {
        let mut response = refuse(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
        let challenge = format!(
            "Bearer realm=\"http://{host}/token\",service=\"stand-in\",\
             scope=\"repository:{name}:pull\""
        );
        if let Ok(challenge) = HeaderValue::from_str(&challenge) {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        return response;
    }
    match kind {
        "manifests" => {
            let digest = repository.tags.get(last).map_or(last, |digest| digest);
            let Some(bytes) = repository.manifests.get(digest) else {
                return refuse(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN");
            };
            let query = shared.faults.choose(&path, query);
            let mut response = serve::respond(bytes, &headers, &query, entry.clone()).await;
            let own = response.headers_mut();
            own.insert(header::CONTENT_TYPE, HeaderValue::from_static(MANIFEST_TYPE));
            if let Ok(digest) = HeaderValue::from_str(digest) {
                own.insert("docker-content-digest", digest);
            }
            response
        }
        "tags" => {
            entry.set_status(200);
            let tags: Vec<_> = repository.tags.keys().collect();
            Json(json!({ "name": name, "tags": tags })).into_response()
        }
        "blobs" => {
            let Some(bytes) = repository.blobs.get(last) else {
                return refuse(StatusCode::NOT_FOUND, "BLOB_UNKNOWN");
            };
            if shared.registry.redirects.load(Ordering::Relaxed) {
                let sum = last.trim_start_matches("sha256:");
                shared.files.put(&format!("_storage/{sum}"), bytes.clone());
                let port = host.rsplit_once(':').map_or("80", |(_, port)| port);
                let target = format!("http://localhost:{port}/_storage/{sum}?X-Signature=secret");
                let mut response = serve::status(StatusCode::TEMPORARY_REDIRECT, entry);
                if let Ok(target) = HeaderValue::from_str(&target) {
                    response.headers_mut().insert(header::LOCATION, target);
                }
                return response;
            }
            if method == Method::HEAD {
                let mut response = serve::status(StatusCode::OK, entry);
                *response.body_mut() = Body::empty();
                response
                    .headers_mut()
                    .insert(header::CONTENT_LENGTH, bytes.len().into());
                return response;
            }
            let query = shared.faults.choose(&path, query);
            serve::respond(bytes, &headers, &query, entry).await
        }
        _ => refuse(StatusCode::NOT_FOUND, "UNSUPPORTED"),
    }
}
