//! What the page asks for and changes, as JSON.

use std::str::FromStr as _;

use axum::{
    extract::{Path, RawQuery, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderValue, StatusCode, header::CONTENT_TYPE};
use potluck_core::{FileId, Problem, Reason, index_client::IndexClient, units::parse_rate};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;

use super::{ApiError, ApiResult, PageSources};
use crate::{
    control::{
        DownloadRequest,
        model::{LimitsUpdate, Transfer},
    },
    error::ExitStatus,
    output::json_line,
    views::{indexed_files::SearchObject, library_items, peers, status, transfers},
};

/// Results of one search. The page asks for more as its user does.
const SEARCH_PAGE: u32 = 100;

/// Peers on one page of their list.
const PEERS_PAGE: u32 = 100;

/// Maximum pages of the index for one search: a page is empty if no name among those that were
/// examined matches.
const MAX_SEARCH_PAGES: u32 = 50;

/// An object as the body of an answer.
#[derive(Debug)]
pub(super) struct Json(String);

impl Json {
    fn new(object: &impl Serialize) -> Self {
        Self(json_line(object))
    }
}

impl IntoResponse for Json {
    fn into_response(self) -> Response {
        let mut response = self.0.into_response();
        let content_type = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self(problem) = self;
        let status = match ExitStatus::of(problem.reason) {
            ExitStatus::Usage => StatusCode::BAD_REQUEST,
            ExitStatus::NotFound => StatusCode::NOT_FOUND,
            ExitStatus::Unreachable => StatusCode::BAD_GATEWAY,
            ExitStatus::Failed | ExitStatus::Verification | ExitStatus::Interrupted => {
                StatusCode::CONFLICT
            }
        };
        let object = json!({ "error": problem.reason.word(), "message": problem.message });
        (status, Json::new(&object)).into_response()
    }
}

/// A page of the peer's library: `?page=TOKEN`.
pub(super) async fn library(
    State(sources): State<PageSources>,
    RawQuery(query): RawQuery,
) -> ApiResult<Json> {
    let (items, next) = sources.peer.library(parameter(query.as_deref(), "page")).await?;
    Ok(Json::new(&json!({
        "items": items.iter().map(library_items::object).collect::<Vec<_>>(),
        "next_page": next,
    })))
}

/// Files of the index: `?words=WORDS&page=TOKEN`.
pub(super) async fn search(
    State(sources): State<PageSources>,
    RawQuery(query): RawQuery,
) -> ApiResult<Json> {
    let index = index_of(&sources)?;
    let words = parameter(query.as_deref(), "words").unwrap_or_default();
    let mut page = parameter(query.as_deref(), "page");
    let mut files = Vec::new();
    for _ in 0..MAX_SEARCH_PAGES {
        let answer = index.search(&words, SEARCH_PAGE, page.take()).await?;
        files.extend(answer.files);
        page = answer.next;
        if !files.is_empty() || page.is_none() {
            break;
        }
    }
    Ok(Json::new(&SearchObject {
        files: &files,
        next_page: page.as_deref(),
    }))
}

/// Peers of the index: `?page=TOKEN`.
pub(super) async fn peers(
    State(sources): State<PageSources>,
    RawQuery(query): RawQuery,
) -> ApiResult<Json> {
    let page = parameter(query.as_deref(), "page");
    let page = index_of(&sources)?.list_peers(PEERS_PAGE, page).await?;
    Ok(Json::new(&peers::page_object(&page)))
}

fn index_of(sources: &PageSources) -> Result<&IndexClient, Problem> {
    sources.index.as_ref().ok_or_else(|| {
        Problem::new(
            Reason::NotFound,
            "the peer runs without an index: start it with --index",
        )
    })
}

/// What to download.
#[derive(Debug, Deserialize)]
struct StartRequest {
    id: String,
    name: Option<String>,
}

/// Starts a download that goes on without the page.
pub(super) async fn start(State(sources): State<PageSources>, body: Bytes) -> ApiResult<Json> {
    let StartRequest { id, name } = parse(&body)?;
    let file = FileId::from_str(&id).map_err(|_| {
        Problem::new(
            Reason::InvalidId,
            format!("`{id}` is not an id: give all its 64 digits"),
        )
    })?;
    let request = DownloadRequest {
        file,
        name,
        target: sources.target.clone(),
        sha256: None,
        providers: Vec::new(),
        origin: None,
        detach: true,
        allow_expansion: false,
        include: Vec::new(),
        exclude: Vec::new(),
        seed: None,
        limit: None,
        priority: None,
    };
    let mut states = std::pin::pin!(sources.peer.download(&request).await?);
    match states.next().await {
        Some(transfer) => Ok(transfer_json(&transfer?)),
        None => Err(Problem::new(Reason::NotPotluck, "the peer did not start the download").into()),
    }
}

/// A transfer with all its peers and its picture.
pub(super) async fn explain(
    State(sources): State<PageSources>,
    Path(number): Path<u64>,
) -> ApiResult<Json> {
    let explanation = sources.peer.explain(number).await?;
    Ok(Json::new(&transfers::pictured_object(&explanation)))
}

/// New limits of a transfer; what is absent stays.
#[derive(Debug, Deserialize)]
struct AdjustRequest {
    /// A rate such as `10MiB/s`; `0`: no limit.
    limit: Option<String>,
    priority: Option<u32>,
}

/// Pauses, resumes, cancels or adjusts a transfer.
pub(super) async fn change(
    State(sources): State<PageSources>,
    Path((number, action)): Path<(u64, String)>,
    body: Bytes,
) -> ApiResult<Json> {
    let peer = &sources.peer;
    let transfer = match action.as_str() {
        "pause" => peer.pause(number).await?,
        "resume" => peer.resume(number).await?,
        "cancel" => peer.cancel(number).await?,
        "adjust" => {
            let AdjustRequest { limit, priority } = parse(&body)?;
            peer.adjust(number, rate(limit.as_deref())?, priority).await?
        }
        _ => {
            return Err(Problem::new(
                Reason::NotFound,
                "a transfer can be paused, resumed, cancelled and adjusted",
            )
            .into());
        }
    };
    Ok(transfer_json(&transfer))
}

/// New limits of the peer; what is absent stays.
#[derive(Debug, Deserialize)]
struct LimitsRequest {
    /// A rate such as `10MiB/s`; `0`: no limit.
    upload: Option<String>,
    /// As `upload`.
    download: Option<String>,
    slots: Option<u32>,
}

/// Changes the limits of the peer.
pub(super) async fn set_limits(State(sources): State<PageSources>, body: Bytes) -> ApiResult<Json> {
    let request: LimitsRequest = parse(&body)?;
    let update = LimitsUpdate {
        upload: rate(request.upload.as_deref())?,
        download: rate(request.download.as_deref())?,
        slots: request.slots,
    };
    let limits = sources.peer.set_limits(update).await?;
    Ok(Json::new(&status::limits_object(limits)))
}

fn transfer_json(transfer: &Transfer) -> Json {
    Json::new(&transfers::object(transfer))
}

/// The value of a parameter, unless it is absent or empty.
fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let value = pairs.find(|(key, _)| key == name).map(|(_, value)| value);
    value.filter(|value| !value.is_empty()).map(Into::into)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        Problem::new(
            Reason::InvalidArgument,
            format!("the request is not valid: {error}"),
        )
    })
}

/// A rate that a person wrote, in bytes per second.
fn rate(text: Option<&str>) -> Result<Option<u64>, Problem> {
    let parse = |text: &str| {
        parse_rate(text).map_err(|why| {
            Problem::new(Reason::InvalidArgument, format!("`{text}` is not a rate: {why}"))
        })
    };
    text.map(parse).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let query = Some("words=a%20b+%3Cc%3E&page=");
        assert_eq!(parameter(query, "words").as_deref(), Some("a b <c>"));
        assert_eq!(parameter(query, "page"), None);
        assert_eq!(parameter(None, "words"), None);
    }

    #[test]
    fn a_rate_says_what_is_wrong_with_it() {
        assert_eq!(rate(Some("2MiB/s")).unwrap(), Some(2 << 20));
        assert_eq!(rate(Some("0")).unwrap(), Some(0));
        assert_eq!(rate(None).unwrap(), None);
        assert_eq!(rate(Some("fast")).unwrap_err().reason, Reason::InvalidArgument);
    }
}
