//! Refusals as registries send them.

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use potluck_core::{Problem, Reason};
use potluck_origins::client::ApiAnswer;

use crate::reply::{set, set_retry_after, status_of};

/// Says that this is a registry.
pub(crate) const VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// Longest refusal of a registry that is passed on, in bytes.
const MAX_REFUSAL: usize = 64 * 1024;

/// A refusal with an error code of the specification.
pub(crate) fn refusal(status: StatusCode, code: &str, message: &str) -> Response {
    let error = serde_json::json!({ "errors": [{ "code": code, "message": message }] });
    let mut response = Response::new(Body::from(error.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(VERSION, HeaderValue::from_static("registry/2.0"));
    response
}

/// A problem as a refusal; `unknown`: the code for something that is not there.
pub(crate) fn of_problem(problem: &Problem, unknown: &str) -> Response {
    let code = match problem.reason {
        Reason::NotFound => unknown,
        Reason::OriginDenied => "DENIED",
        Reason::Busy => "TOOMANYREQUESTS",
        _ => "UNKNOWN",
    };
    let mut response = refusal(status_of(problem), code, &problem.message);
    set_retry_after(&mut response, problem);
    response
}

/// The registry's refusal, passed on. `challenge`: ask the client for the credentials that it has for
/// this registry.
pub(crate) fn of_registry(
    answer: &ApiAnswer,
    registry: &str,
    unknown: &str,
    challenge: bool,
) -> Response {
    let status = match answer.status {
        // A redirect would lead past the gateway.
        status if status.is_client_error() => status,
        _ => StatusCode::BAD_GATEWAY,
    };
    let code = match status {
        StatusCode::UNAUTHORIZED => "UNAUTHORIZED",
        StatusCode::FORBIDDEN => "DENIED",
        StatusCode::NOT_FOUND => unknown,
        StatusCode::TOO_MANY_REQUESTS => "TOOMANYREQUESTS",
        _ => "UNKNOWN",
    };
    let message = format!("{registry} answers HTTP {}", answer.status.as_u16());
    let mut response = refusal(status, code, &message);
    let is_list = answer.bytes.len() <= MAX_REFUSAL
        && serde_json::from_slice(&answer.bytes)
            .is_ok_and(|value: serde_json::Value| value["errors"].is_array());
    if is_list {
        *response.body_mut() = Body::from(answer.bytes.clone());
    }
    let headers = response.headers_mut();
    if let Some(delay) = answer.headers.get(header::RETRY_AFTER) {
        headers.insert(header::RETRY_AFTER, delay.clone());
    }
    if challenge && status == StatusCode::UNAUTHORIZED {
        let realm = format!("Basic realm=\"credentials for {registry}\"");
        set(headers, header::WWW_AUTHENTICATE, &realm);
    }
    response
}
