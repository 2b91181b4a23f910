//! Responses with ranges, validators and faults.

use std::{ops::Range, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use bytes::Bytes;
use futures_util::StreamExt as _;

use crate::{
    content::sha256_hex,
    fault::{Fault, FaultQuery},
    log::OpenEntry,
};

/// Bytes of one chunk of a body.
const CHUNK: usize = 16 * 1024;

/// An empty response.
pub(crate) fn status(status: StatusCode, entry: OpenEntry) -> Response {
    entry.set_status(status.as_u16());
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// The response to a request for a file, with the fault of its query.
pub(crate) async fn respond(
    content: &Bytes,
    headers: &HeaderMap,
    query: &FaultQuery,
    entry: OpenEntry,
) -> Response {
    let plain = |code| status(code, entry.clone());
    match query.fault {
        Fault::Redirect => {
            let mut response = plain(StatusCode::FOUND);
            if let Ok(target) = HeaderValue::from_str(&query.at) {
                response.headers_mut().insert(header::LOCATION, target);
            }
            return response;
        }
        Fault::Busy => {
            let mut response = plain(StatusCode::TOO_MANY_REQUESTS);
            if let Ok(seconds) = HeaderValue::from_str(&query.at) {
                response.headers_mut().insert(header::RETRY_AFTER, seconds);
            }
            return response;
        }
        Fault::Broken => return plain(StatusCode::SERVICE_UNAVAILABLE),
        Fault::Denied => return plain(StatusCode::UNAUTHORIZED),
        Fault::Silent => std::future::pending::<()>().await,
        _ => {}
    }
    let content = match query.fault {
        Fault::Damaged => damaged(content, query.at.parse().unwrap_or(0)),
        _ => content.clone(),
    };
    let size = content.len() as u64;
    let tag = match query.fault {
        Fault::Changes => format!("\"{:?}\"", std::time::Instant::now()),
        _ => format!("\"{}\"", &sha256_hex(&content[..content.len().min(1024)])[..16]),
    };
    let if_range = headers
        .get(header::IF_RANGE)
        .and_then(|value| value.to_str().ok());
    let range = headers
        .get(header::RANGE)
        .and_then(|value| parse_range(value.to_str().ok()?, size))
        .filter(|_| query.fault != Fault::NoRanges && if_range.is_none_or(|wanted| wanted == tag));
    let Some(range) = range else {
        let asks_beyond = headers.contains_key(header::RANGE) && size == 0;
        if asks_beyond {
            let mut response = plain(StatusCode::RANGE_NOT_SATISFIABLE);
            response
                .headers_mut()
                .insert(header::CONTENT_RANGE, HeaderValue::from_static("bytes */0"));
            return response;
        }
        return body(StatusCode::OK, content, size, &tag, query, entry);
    };
    let range = match query.fault {
        Fault::OtherRange => range.start + 1..(range.end + 1).min(size),
        _ => range,
    };
    let told = if query.fault == Fault::OtherSize {
        size + 1
    } else {
        size
    };
    let sent = content.slice(range.start as usize..range.end as usize);
    let mut response = body(
        StatusCode::PARTIAL_CONTENT,
        sent,
        range.end - range.start,
        &tag,
        query,
        entry,
    );
    let value = format!("bytes {}-{}/{told}", range.start, range.end - 1);
    let value = HeaderValue::from_str(&value).expect("digits");
    response.headers_mut().insert(header::CONTENT_RANGE, value);
    response
}

fn body(
    code: StatusCode,
    bytes: Bytes,
    length: u64,
    tag: &str,
    query: &FaultQuery,
    entry: OpenEntry,
) -> Response {
    entry.set_status(code.as_u16());
    let bytes = match query.fault {
        Fault::TooMuch => [&bytes[..], b"more"].concat().into(),
        Fault::TooLittle => bytes.slice(..bytes.len() / 2),
        _ => bytes,
    };
    let pause = (query.rate > 0).then(|| Duration::from_secs_f64(CHUNK as f64 / query.rate as f64));
    let chunks = (0..bytes.len()).step_by(CHUNK);
    let chunks = chunks.map(move |at| bytes.slice(at..bytes.len().min(at + CHUNK)));
    let stream = futures_util::stream::iter(chunks).then(move |chunk| {
        let entry = entry.clone();
        async move {
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
            entry.add_bytes(chunk.len() as u64);
            Ok::<_, std::io::Error>(chunk)
        }
    });
    let mut response = Response::new(Body::from_stream(stream));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    // Without a length the body is chunked, so that it can be longer or shorter than announced.
    if !matches!(query.fault, Fault::TooMuch | Fault::TooLittle) {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    if query.fault == Fault::Gzip {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if let Ok(tag) = HeaderValue::from_str(tag) {
        headers.insert(header::ETAG, tag);
    }
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    response
}

fn parse_range(value: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    let first: u64 = first.parse().ok()?;
    let end = match last {
        "" => size,
        last => last.parse::<u64>().ok()?.saturating_add(1).min(size),
    };
    (first < end).then_some(first..end)
}

fn damaged(content: &Bytes, at: usize) -> Bytes {
    let mut bytes = content.to_vec();
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1;
    }
    bytes.into()
}
