//! Whether a response carries the requested range. Pure.
//!
//! Invariant: an accepted response says which bytes follow, and they include the requested ones.

use std::{ops::Range, time::Duration};

use http::{HeaderMap, StatusCode, header};

/// Longest accepted delay of `Retry-After`.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// What the head of a response promises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyHead {
    /// The body is exactly the requested range.
    Range {
        /// The size of the whole file, if the server told it.
        size: Option<u64>,
    },
    /// The body is the whole file: the server ignores ranges, or the content changed.
    Whole {
        /// The size of the whole file, if the server told it.
        size: Option<u64>,
    },
    /// The range is beyond the end.
    Unsatisfiable {
        /// The size of the whole file, if the server told it.
        size: Option<u64>,
    },
    /// Another status.
    Status(StatusCode),
    /// A response that contradicts the request.
    Invalid(String),
}

/// Examines the head of a response to a request for `range`.
pub fn examine(status: StatusCode, headers: &HeaderMap, range: &Range<u64>) -> ReplyHead {
    if status.is_success()
        && let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && encoding != "identity"
    {
        return ReplyHead::Invalid(
            "it compresses the content although that was not asked for".into(),
        );
    }
    match status {
        StatusCode::PARTIAL_CONTENT => partial(headers, range),
        StatusCode::OK => ReplyHead::Whole {
            size: number(headers, header::CONTENT_LENGTH),
        },
        StatusCode::RANGE_NOT_SATISFIABLE => ReplyHead::Unsatisfiable {
            size: headers
                .get(header::CONTENT_RANGE)
                .and_then(|value| value.to_str().ok()?.strip_prefix("bytes */")?.parse().ok()),
        },
        status => ReplyHead::Status(status),
    }
}

fn partial(headers: &HeaderMap, range: &Range<u64>) -> ReplyHead {
    let value = headers
        .get(header::CONTENT_RANGE)
        .and_then(|value| value.to_str().ok());
    let Some((sent, size)) = value.and_then(parse_content_range) else {
        return ReplyHead::Invalid("a part of the content without a valid Content-Range".into());
    };
    let is_short_end = sent.start == range.start && size == Some(sent.end) && sent.end < range.end;
    if sent != *range && !is_short_end {
        return ReplyHead::Invalid(format!(
            "bytes {}-{} instead of {}-{}",
            sent.start,
            sent.end - 1,
            range.start,
            range.end - 1
        ));
    }
    ReplyHead::Range { size }
}

/// Parses `bytes FIRST-LAST/SIZE`; the size may be `*`.
fn parse_content_range(value: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, size) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let end = last.checked_add(1).filter(|&end| end > first)?;
    let size = match size {
        "*" => None,
        size => Some(size.parse().ok().filter(|&size| size >= end)?),
    };
    Some((first..end, size))
}

/// The value of a header as a number.
pub fn number(headers: &HeaderMap, name: header::HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// The validator that says whether two responses have the same bytes: a strong `ETag` (RFC 9110,
/// section 8.8.1). A weak one does not say that, and a date has a resolution of a second.
pub fn strong_validator(headers: &HeaderMap) -> Option<String> {
    let tag = headers.get(header::ETAG)?.to_str().ok()?;
    (tag.len() > 2 && tag.starts_with('"') && tag.ends_with('"')).then(|| tag.to_owned())
}

/// The delay that a server asks for, in seconds; dates are ignored.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = number(headers, header::RETRY_AFTER)?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(status: u16, headers: &[(&'static str, &str)]) -> ReplyHead {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        examine(StatusCode::from_u16(status).unwrap(), &map, &(10..20))
    }

    #[test]
    fn only_the_requested_range_is_accepted() {
        let part = |value| head(206, &[("content-range", value)]);
        assert_eq!(part("bytes 10-19/100"), ReplyHead::Range { size: Some(100) });
        assert_eq!(part("bytes 10-19/*"), ReplyHead::Range { size: None });
        assert_eq!(part("bytes 10-14/15"), ReplyHead::Range { size: Some(15) });
        for bad in [
            "bytes 0-9/100",
            "bytes 10-14/100",
            "bytes 10-20/100",
            "bytes 19-10/100",
            "bytes 10-19/15",
            "bytes 10-18446744073709551615/*",
            "items 10-19/100",
            "",
        ] {
            assert!(matches!(part(bad), ReplyHead::Invalid(_)), "{bad}");
        }
        assert!(matches!(head(206, &[]), ReplyHead::Invalid(_)));
    }

    #[test]
    fn compressed_content_is_refused() {
        let headers = [("content-range", "bytes 10-19/100"), ("content-encoding", "gzip")];
        assert!(matches!(head(206, &headers), ReplyHead::Invalid(_)));
        assert!(matches!(head(200, &headers[1..]), ReplyHead::Invalid(_)));
    }

    #[test]
    fn other_answers_are_told_apart() {
        assert_eq!(
            head(200, &[("content-length", "7")]),
            ReplyHead::Whole { size: Some(7) }
        );
        let beyond = head(416, &[("content-range", "bytes */5")]);
        assert_eq!(beyond, ReplyHead::Unsatisfiable { size: Some(5) });
        assert_eq!(head(429, &[]), ReplyHead::Status(StatusCode::TOO_MANY_REQUESTS));
    }

    #[test]
    fn only_strong_validators_count() {
        let tag = |tag: &str| {
            strong_validator(&HeaderMap::from_iter([(header::ETAG, tag.parse().unwrap())]))
        };
        assert_eq!(tag("\"a\"").as_deref(), Some("\"a\""));
        assert_eq!(tag("W/\"a\""), None);
        assert_eq!(tag("\"\""), None);
    }
}
