//! Parts of answers.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use potluck_core::{Problem, Reason};

/// Where the bytes of an answer come from: `cache`, `download` or `origin`; for kept metadata
/// `metadata`.
pub(crate) const SOURCE: HeaderName = HeaderName::from_static("x-potluck-source");

/// Says that the origin cannot be reached.
pub(crate) const OFFLINE: HeaderName = HeaderName::from_static("x-potluck-offline");

/// Sets a header, unless the value has characters that HTTP forbids.
pub(crate) fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// An answer with a body of this length.
pub(crate) fn sized(status: StatusCode, len: u64, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_LENGTH, len.into());
    response
}

/// The answer to a request for a range beyond the end.
pub(crate) fn unsatisfiable(size: u64) -> Response {
    let mut response = refusal(StatusCode::RANGE_NOT_SATISFIABLE, "the range is beyond the end");
    if let Ok(value) = HeaderValue::from_str(&format!("bytes */{size}")) {
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    response
}

/// A message as an answer.
pub(crate) fn refusal(status: StatusCode, message: &str) -> Response {
    let mut response = Response::new(Body::from(format!("{message}\n")));
    *response.status_mut() = status;
    response
}

/// The status for a problem.
pub(crate) const fn status_of(problem: &Problem) -> StatusCode {
    match problem.reason {
        Reason::NotFound => StatusCode::NOT_FOUND,
        Reason::OriginDenied => StatusCode::FORBIDDEN,
        Reason::Busy => StatusCode::SERVICE_UNAVAILABLE,
        Reason::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        Reason::DiskFull | Reason::TargetNotWritable => StatusCode::INSUFFICIENT_STORAGE,
        _ => StatusCode::BAD_GATEWAY,
    }
}

/// Says when to ask again.
pub(crate) fn set_retry_after(response: &mut Response, problem: &Problem) {
    if let Some(delay) = problem.retry_after {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, delay.as_secs().max(1).into());
    }
}
