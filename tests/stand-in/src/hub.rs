//! The endpoints of the Hugging Face Hub that clients use, with its headers: `X-Repo-Commit`,
//! `X-Linked-Etag`, `X-Linked-Size`, `X-Xet-Hash`, and content of Git LFS behind a redirect to
//! another host.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{any, get},
};
use bytes::Bytes;
use parking_lot::RwLock;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    Shared,
    content::{git_blob_hex, sha256_hex},
    fault::FaultQuery,
    serve,
};

/// Files of at least this many bytes are in Git LFS.
const LFS_SIZE: usize = 64 * 1024;

/// The token that opens gated repositories.
pub const TOKEN: &str = "hf_stand_in";

/// A repository with one commit.
#[derive(Debug, Clone)]
pub struct Repository {
    /// The commit, 40 hex digits.
    pub commit: String,
    /// Whether it wants [`TOKEN`].
    pub is_gated: bool,
    /// Its files by path.
    pub files: BTreeMap<String, Bytes>,
}

/// All repositories, by `models/ORG/NAME`.
#[derive(Debug, Default)]
pub struct Hub {
    repositories: RwLock<BTreeMap<String, Repository>>,
    /// Entries of a page of a listing; 0: all.
    pub page_size: std::sync::atomic::AtomicUsize,
    /// Whether every request gets 503.
    pub is_down: std::sync::atomic::AtomicBool,
}

impl Hub {
    /// Adds a repository. `kind` is `models` or `datasets`.
    pub fn put(&self, kind: &str, name: &str, repository: Repository) {
        self.repositories
            .write()
            .insert(format!("{kind}/{name}"), repository);
    }

    fn get(&self, kind: &str, name: &str) -> Option<Repository> {
        self.repositories.read().get(&format!("{kind}/{name}")).cloned()
    }
}

#[derive(Deserialize)]
struct PageQuery {
    #[serde(default)]
    cursor: usize,
}

/// The routes of the hub.
pub(crate) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/api/{kind}/{org}/{name}/revision/{revision}", get(revision))
        .route("/api/{kind}/{org}/{name}/tree/{revision}", get(tree))
        .route("/{org}/{name}/resolve/{revision}/{*path}", any(resolve_model))
        .route(
            "/datasets/{org}/{name}/resolve/{revision}/{*path}",
            any(resolve_dataset),
        )
        .route("/_storage/{sum}", any(storage))
}

/// The repository, if the revision is one of it and the caller may see it.
fn open(
    shared: &Shared,
    (kind, name, revision): (&str, &str, &str),
    headers: &HeaderMap,
) -> Result<Repository, Box<Response>> {
    let refuse = |status: StatusCode, code: &'static str| {
        let mut response = status.into_response();
        response
            .headers_mut()
            .insert("x-error-code", HeaderValue::from_static(code));
        Box::new(response)
    };
    if shared.hub.is_down.load(std::sync::atomic::Ordering::Relaxed) {
        return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, "Down"));
    }
    let repository = shared
        .hub
        .get(kind, name)
        .ok_or_else(|| refuse(StatusCode::NOT_FOUND, "RepoNotFound"))?;
    if revision != "main" && revision != repository.commit {
        return Err(refuse(StatusCode::NOT_FOUND, "RevisionNotFound"));
    }
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    if repository.is_gated && token != Some(&format!("Bearer {TOKEN}")) {
        return Err(refuse(StatusCode::UNAUTHORIZED, "GatedRepo"));
    }
    Ok(repository)
}

async fn revision(
    State(shared): State<Arc<Shared>>,
    Path((kind, org, name, revision)): Path<(String, String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let entry = shared
        .log
        .open(format!("/api/{kind}/{org}/{name}/revision"), &headers);
    let id = format!("{org}/{name}");
    match open(&shared, (&kind, &id, &revision), &headers) {
        Ok(repository) => {
            entry.set_status(200);
            let siblings: Vec<Value> = repository
                .files
                .keys()
                .map(|path| json!({ "rfilename": path }))
                .collect();
            Json(json!({
                "id": id, "modelId": id, "sha": repository.commit, "private": false,
                "gated": repository.is_gated, "siblings": siblings,
            }))
            .into_response()
        }
        Err(response) => *response,
    }
}

async fn tree(
    State(shared): State<Arc<Shared>>,
    Path((kind, org, name, revision)): Path<(String, String, String, String)>,
    Query(page): Query<PageQuery>,
    headers: HeaderMap,
) -> Response {
    let entry = shared
        .log
        .open(format!("/api/{kind}/{org}/{name}/tree"), &headers);
    let repository = match open(&shared, (&kind, &format!("{org}/{name}"), &revision), &headers) {
        Ok(repository) => repository,
        Err(response) => return *response,
    };
    entry.set_status(200);
    let size = match shared.hub.page_size.load(std::sync::atomic::Ordering::Relaxed) {
        0 => usize::MAX,
        size => size,
    };
    let entries: Vec<Value> = repository
        .files
        .iter()
        .skip(page.cursor)
        .take(size)
        .map(|(path, bytes)| tree_entry(path, bytes))
        .collect();
    let next = page.cursor + entries.len();
    let mut response = Json(entries).into_response();
    if next < repository.files.len() {
        let link = format!(
            "</api/{kind}/{org}/{name}/tree/{revision}?recursive=true&cursor={next}>; rel=\"next\""
        );
        if let Ok(link) = HeaderValue::from_str(&link) {
            response.headers_mut().insert(header::LINK, link);
        }
    }
    response
}

fn tree_entry(path: &str, bytes: &Bytes) -> Value {
    let oid = git_blob_hex(bytes);
    match bytes.len() >= LFS_SIZE {
        true => json!({
            "type": "file", "path": path, "size": bytes.len(), "oid": oid,
            "lfs": { "oid": sha256_hex(bytes), "size": bytes.len(), "pointerSize": 134 },
            "xetHash": sha256_hex(path.as_bytes()),
        }),
        false => json!({ "type": "file", "path": path, "size": bytes.len(), "oid": oid }),
    }
}

async fn resolve_model(
    shared: State<Arc<Shared>>,
    Path((org, name, revision, path)): Path<(String, String, String, String)>,
    query: Query<FaultQuery>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let target = ("models", format!("{org}/{name}"), revision, path);
    resolve(shared, target, query, method, headers).await
}

async fn resolve_dataset(
    shared: State<Arc<Shared>>,
    Path((org, name, revision, path)): Path<(String, String, String, String)>,
    query: Query<FaultQuery>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let target = ("datasets", format!("{org}/{name}"), revision, path);
    resolve(shared, target, query, method, headers).await
}

async fn resolve(
    State(shared): State<Arc<Shared>>,
    (kind, name, revision, path): (&str, String, String, String),
    Query(query): Query<FaultQuery>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let entry = shared.log.open(format!("/{name}/resolve/{path}"), &headers);
    let repository = match open(&shared, (kind, &name, &revision), &headers) {
        Ok(repository) => repository,
        Err(response) => return *response,
    };
    let Some(bytes) = repository.files.get(&path) else {
        let mut response = serve::status(StatusCode::NOT_FOUND, entry);
        response
            .headers_mut()
            .insert("x-error-code", HeaderValue::from_static("EntryNotFound"));
        return response;
    };
    let sum = sha256_hex(bytes);
    let is_lfs = bytes.len() >= LFS_SIZE;
    let mut response = match (is_lfs, &method) {
        (true, _) => {
            // A test may have put damaged bytes there.
            let stored = format!("_storage/{sum}");
            if shared.files.get(&stored).is_none() {
                shared.files.put(&stored, bytes.clone());
            }
            let port = headers
                .get(header::HOST)
                .and_then(|host| host.to_str().ok()?.rsplit_once(':'))
                .map_or("80", |(_, port)| port);
            let mut response = serve::status(StatusCode::FOUND, entry);
            // Another host, as with the real hub.
            let location = format!("http://localhost:{port}/_storage/{sum}?X-Signature=secret");
            if let Ok(location) = HeaderValue::from_str(&location) {
                response.headers_mut().insert(header::LOCATION, location);
            }
            response
        }
        (false, &Method::HEAD) => {
            let mut response = serve::status(StatusCode::OK, entry);
            response
                .headers_mut()
                .insert(header::CONTENT_LENGTH, bytes.len().into());
            response
        }
        (false, _) => serve::respond(bytes, &headers, &query, entry).await,
    };
    let tag = match is_lfs {
        true => format!("\"{sum}\""),
        false => format!("\"{}\"", git_blob_hex(bytes)),
    };
    let mut set = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    };
    set("x-repo-commit", &repository.commit);
    if is_lfs {
        set("x-linked-etag", &tag);
        set("x-linked-size", &bytes.len().to_string());
        set("x-xet-hash", &sha256_hex(path.as_bytes()));
    } else {
        set("etag", &tag);
    }
    response
}

/// The storage that redirects lead to. It refuses the hub's tokens.
async fn storage(
    State(shared): State<Arc<Shared>>,
    Path(sum): Path<String>,
    Query(query): Query<FaultQuery>,
    headers: HeaderMap,
) -> Response {
    let entry = shared.log.open(format!("/_storage/{sum}"), &headers);
    if headers.contains_key(header::AUTHORIZATION) {
        entry.set_status(400);
        let mut response = Response::new(Body::from("only one auth mechanism allowed"));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    }
    match shared.files.get(&format!("_storage/{sum}")) {
        Some(bytes) => {
            let query = shared.faults.choose(&sum, query);
            serve::respond(&bytes, &headers, &query, entry).await
        }
        None => serve::status(StatusCode::NOT_FOUND, entry),
    }
}
