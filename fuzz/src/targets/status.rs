//! Statuses of gRPC calls with the details of `google.rpc`.

use std::time::Duration;

use bytes::Bytes;
use potluck_core::{
    Problem, Reason,
    problem::{DOMAIN, MAX_MESSAGE_LEN, MAX_RETRY_AFTER},
};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Any status becomes a bounded problem that is safe to print, and a problem survives the way to a
/// status and back.
///
/// The input is a code (1 byte), the length of the message (1 byte), the message, and the details.
pub fn status(input: &[u8]) -> bool {
    let Some((&[code, len], rest)) = input.split_first_chunk() else {
        return false;
    };
    // Longer messages than one byte can tell.
    let len = usize::from(len) * 16;
    let (message, details) = rest.split_at(len.min(rest.len()));
    let message = String::from_utf8_lossy(message).into_owned();
    let code = Code::from_i32(i32::from(code % 17));
    let status = Status::with_details(code, message, Bytes::copy_from_slice(details));
    let has_info = status.get_details_error_info().is_some();
    let problem = Problem::from(status);
    check(&problem);
    let again = Problem::from(Status::from(problem.clone()));
    check(&again);
    assert_eq!(again.reason, problem.reason);
    assert_eq!(again.retry_after, problem.retry_after);
    assert_eq!(again.field, problem.field);
    assert_eq!(again.message, problem.message);
    has_info
}

fn check(problem: &Problem) {
    assert!(Reason::ALL.contains(&problem.reason));
    assert!(problem.retry_after.is_none_or(|delay| delay <= MAX_RETRY_AFTER));
    for text in [Some(&problem.message), problem.field.as_ref()]
        .into_iter()
        .flatten()
    {
        assert!(text.len() <= MAX_MESSAGE_LEN, "{} bytes", text.len());
        assert!(!text.contains(char::is_control));
    }
}

/// Statuses that Potluck sends, and others.
pub fn seeds() -> Vec<Vec<u8>> {
    let problem = Problem::new(Reason::Busy, "all slots are taken: try again")
        .field("files[3].file.root")
        .retry_after(Duration::from_millis(1500));
    let mut foreign = ErrorDetails::new();
    foreign.set_error_info("NOT_FOUND", "example.com", [("key".into(), "value".into())]);
    foreign.set_debug_info(vec!["frame".to_owned()], "detail");
    foreign.set_retry_info(Some(Duration::from_secs(1 << 40)));
    foreign.add_bad_request_violation("a\u{1b}[2Jfield", "described");
    let statuses = [
        Status::from(problem),
        Status::with_error_details(Code::Unavailable, "\u{7}down", foreign),
        Status::new(Code::Internal, "plain"),
    ];
    let seed = |status: Status| {
        let mut message = status.message().as_bytes().to_vec();
        let len = message.len().div_ceil(16);
        message.resize(16 * len, b' ');
        let head = [status.code() as u8, len as u8];
        [&head, &*message, status.details()].concat()
    };
    statuses.map(seed).into()
}

/// Types of details.
pub const WORDS: &[&[u8]] = &[
    DOMAIN.as_bytes(),
    b"type.googleapis.com/google.rpc.ErrorInfo",
    b"type.googleapis.com/google.rpc.RetryInfo",
    b"type.googleapis.com/google.rpc.BadRequest",
    b"NOT_FOUND",
    "\u{1b}".as_bytes(),
    "\u{202e}".as_bytes(),
];
