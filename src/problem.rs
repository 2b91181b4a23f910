//! Failures with a stable reason, and their encoding as a gRPC status.
//!
//! A reason, the field at fault and a retry delay travel as `google.rpc` details, through
//! `tonic-types`. Only this module knows that encoding. Each service converts its own errors into
//! a [`Problem`] in one file; a client decodes the status into the same [`Problem`].

use std::{borrow::Cow, fmt, io, time::Duration};

use rustix::io::Errno;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// `domain` of every `google.rpc.ErrorInfo` that Potluck sends.
pub const DOMAIN: &str = "potluck";

/// Maximum length of a message on the wire, in bytes. A status carries it twice in its headers,
/// and a client accepts 16 KiB of headers.
pub const MAX_MESSAGE_LEN: usize = 1024;

/// Maximum retry delay that is sent or accepted; no caller waits indefinitely.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $wire:literal, $word:literal, $code:ident;)*) => {
        /// The reason why a call failed. The set is closed, and stable on the wire and in `--json`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// All reasons.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The value of `google.rpc.ErrorInfo.reason`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $wire,)* }
            }

            /// The value in the command line's JSON output.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// The gRPC status code for this reason.
            pub const fn code(self) -> Code {
                match self { $(Self::$name => Code::$code,)* }
            }

            /// The reason with this `google.rpc.ErrorInfo.reason`, if it is known.
            pub fn from_wire(text: &str) -> Option<Self> {
                match text { $($wire => Some(Self::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    /// A field has an invalid value and no more specific reason applies.
    InvalidArgument = "INVALID_ARGUMENT", "invalid_argument", InvalidArgument;
    /// Text or bytes that are not a valid id.
    InvalidId = "INVALID_ID", "invalid_id", InvalidArgument;
    /// A name that is empty, too long, or contains forbidden characters.
    InvalidName = "INVALID_NAME", "invalid_name", InvalidArgument;
    /// A token that is not 32 bytes.
    InvalidToken = "INVALID_TOKEN", "invalid_token", InvalidArgument;
    /// A host or port that is not valid.
    InvalidAddress = "INVALID_ADDRESS", "invalid_address", InvalidArgument;
    /// A search query that is too long or has too many words.
    InvalidQuery = "INVALID_QUERY", "invalid_query", InvalidArgument;
    /// A page token that this service did not issue.
    InvalidPageToken = "INVALID_PAGE_TOKEN", "invalid_page_token", InvalidArgument;
    /// The id does not match the size and the root.
    IdMismatch = "ID_MISMATCH", "id_mismatch", InvalidArgument;
    /// A piece or range beyond the end of the file.
    OutOfRange = "OUT_OF_RANGE", "out_of_range", InvalidArgument;
    /// A path that leads out of its folder, or that cannot name a file.
    UnsafePath = "UNSAFE_PATH", "unsafe_path", InvalidArgument;
    /// A file whose reported length is not its real length, as in `/proc`, so that changes cannot
    /// be detected.
    UnsizedFile = "UNSIZED_FILE", "unsized_file", FailedPrecondition;
    /// The peer only downloads, and serves nobody.
    DownloadOnly = "DOWNLOAD_ONLY", "download_only", FailedPrecondition;
    /// A host that this caller may not register.
    AddressRefused = "ADDRESS_REFUSED", "address_refused", PermissionDenied;
    /// The caller did not prove that it is the owner.
    Unauthenticated = "UNAUTHENTICATED", "unauthenticated", Unauthenticated;
    /// The connection has no certificate of this private network.
    NotAMember = "NOT_A_MEMBER", "not_a_member", Unauthenticated;
    /// The caller's certificate has expired; it can still be renewed for a while.
    CertificateExpired = "CERTIFICATE_EXPIRED", "certificate_expired", Unauthenticated;
    /// The member was revoked, or left the network.
    Revoked = "REVOKED", "revoked", PermissionDenied;
    /// The role of the member lacks the right for this call.
    RoleRequired = "ROLE_REQUIRED", "role_required", PermissionDenied;
    /// A join code that is unknown, expired, used up or voided.
    InvalidCode = "INVALID_CODE", "invalid_code", PermissionDenied;
    /// Bytes that are not a signing request of a key that this network accepts.
    InvalidSigningRequest = "INVALID_SIGNING_REQUEST", "invalid_signing_request", InvalidArgument;
    /// The operating system denied access.
    PermissionDenied = "PERMISSION_DENIED", "permission_denied", PermissionDenied;
    /// The index holds no lease for this peer; the peer must register all its files again.
    LeaseUnknown = "LEASE_UNKNOWN", "lease_unknown", NotFound;
    /// No such file, path, transfer or name.
    NotFound = "NOT_FOUND", "not_found", NotFound;
    /// Several files have this name.
    AmbiguousName = "AMBIGUOUS_NAME", "ambiguous_name", FailedPrecondition;
    /// No peer provides the file now.
    NoProviders = "NO_PROVIDERS", "no_providers", NotFound;
    /// The peer has not verified the piece yet.
    PieceNotAvailable = "PIECE_NOT_AVAILABLE", "piece_not_available", NotFound;
    /// A shared file changed after it was hashed.
    FileChanged = "FILE_CHANGED", "file_changed", FailedPrecondition;
    /// The received bytes do not match the expected hash.
    VerificationFailed = "VERIFICATION_FAILED", "verification_failed", DataLoss;
    /// The target path already holds another file.
    TargetExists = "TARGET_EXISTS", "target_exists", AlreadyExists;
    /// The target is not writable.
    TargetNotWritable = "TARGET_NOT_WRITABLE", "target_not_writable", PermissionDenied;
    /// The file system at the target does not support the download's file names or path lengths.
    TargetUnsuitable = "TARGET_UNSUITABLE", "target_unsuitable", FailedPrecondition;
    /// The collection writes many times its distinct content, and the user has not agreed to that.
    ExpansionRefused = "EXPANSION_REFUSED", "expansion_refused", FailedPrecondition;
    /// The disk is full.
    DiskFull = "DISK_FULL", "disk_full", ResourceExhausted;
    /// The process or the system has reached its limit of open files.
    TooManyOpenFiles = "TOO_MANY_OPEN_FILES", "too_many_open_files", ResourceExhausted;
    /// The caller exceeds its quota.
    QuotaExceeded = "QUOTA_EXCEEDED", "quota_exceeded", ResourceExhausted;
    /// The caller sends too many calls.
    RateLimited = "RATE_LIMITED", "rate_limited", ResourceExhausted;
    /// The service is overloaded; try again later.
    Busy = "BUSY", "busy", ResourceExhausted;
    /// Nothing answers at the address.
    Unreachable = "UNREACHABLE", "unreachable", Unavailable;
    /// The server at the address is not the expected Potluck service.
    NotPotluck = "NOT_POTLUCK", "not_potluck", Unavailable;
    /// The indexes of a list do not share a store.
    IndexesDiffer = "INDEXES_DIFFER", "indexes_differ", FailedPrecondition;
    /// No response before the deadline.
    TimedOut = "TIMED_OUT", "timed_out", DeadlineExceeded;
    /// The store does not accept writes now.
    StoreUnavailable = "STORE_UNAVAILABLE", "store_unavailable", Unavailable;
    /// The origin redirects to where it must not lead, or its settings cannot be used.
    OriginRefused = "ORIGIN_REFUSED", "origin_refused", FailedPrecondition;
    /// The origin denies access with these credentials, or without any.
    OriginDenied = "ORIGIN_DENIED", "origin_denied", PermissionDenied;
    /// The content at the origin changed while it was downloaded.
    OriginChanged = "ORIGIN_CHANGED", "origin_changed", FailedPrecondition;
    /// The origin does not answer as HTTP demands, or its bytes do not have the stated hash.
    OriginInvalid = "ORIGIN_INVALID", "origin_invalid", FailedPrecondition;
    /// The service is shutting down.
    ShuttingDown = "SHUTTING_DOWN", "shutting_down", Unavailable;
    /// Another live process uses the same token.
    IdentityInUse = "IDENTITY_IN_USE", "identity_in_use", FailedPrecondition;
    /// Another process uses the peer's folder.
    HomeLocked = "HOME_LOCKED", "home_locked", FailedPrecondition;
    /// Another process listens on the port.
    AddressInUse = "ADDRESS_IN_USE", "address_in_use", FailedPrecondition;
    /// The transfer is finished or cancelled, so it cannot be paused, resumed or cancelled.
    AlreadyEnded = "ALREADY_ENDED", "already_ended", FailedPrecondition;
    /// Cancelled by the owner.
    Cancelled = "CANCELLED", "cancelled", Cancelled;
    /// A bug in Potluck, or a system failure that no other reason describes.
    Internal = "INTERNAL", "internal", Internal;
}

impl Reason {
    /// The reason if this error means that a resource of this machine is exhausted, rather than
    /// that the file or peer is at fault. A file at its size limit counts as a full disk.
    pub fn of_exhaustion(error: &io::Error) -> Option<Self> {
        match error.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Some(Self::DiskFull),
            _ => lacks_descriptors(error).then_some(Self::TooManyOpenFiles),
        }
    }

    /// Whether a resource of this machine is exhausted, so that a retry can succeed once some of
    /// it is free again.
    pub const fn is_exhaustion(self) -> bool {
        matches!(self, Self::DiskFull | Self::TooManyOpenFiles)
    }
}

/// Advice for [`Reason::TooManyOpenFiles`], as the end of a message.
pub const RAISE_OPEN_FILES: &str =
    "too many files are open: raise the limit (`ulimit -n`), or stop some of the work";

/// Whether the system refused a file descriptor (`EMFILE`, `ENFILE`). An error that wraps another
/// has no number of its own, so the wrapped error is checked too.
fn lacks_descriptors(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(number, Some(Errno::MFILE | Errno::NFILE))
        || error.get_ref().is_some_and(|cause| is_lack_of_descriptors(cause))
}

fn is_lack_of_descriptors(error: &(dyn std::error::Error + 'static)) -> bool {
    match error.downcast_ref() {
        // `source` would skip the wrapped error.
        Some(error) => lacks_descriptors(error),
        None => error.source().is_some_and(is_lack_of_descriptors),
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure that crosses a process boundary: a reason for programs and a message for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// Stable reason.
    pub reason: Reason,
    /// What happened and what to do next: lower case, no full stop, no internal details.
    pub message: String,
    /// Path of the request's invalid field, such as `files[3].file.root`.
    pub field: Option<String>,
    /// How long to wait before a retry, if waiting helps.
    pub retry_after: Option<Duration>,
}

impl Problem {
    /// A problem with a reason and a message only.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            field: None,
            retry_after: None,
        }
    }

    /// Names the request's invalid field.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Sets how long to wait before a retry.
    #[must_use]
    pub const fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }
}

impl From<Problem> for Status {
    fn from(problem: Problem) -> Self {
        let message = truncate(&problem.message);
        let mut details = ErrorDetails::new();
        details.set_error_info(problem.reason.as_str(), DOMAIN, std::collections::HashMap::new());
        if let Some(field) = problem.field {
            details.add_bad_request_violation(truncate(&field), message);
        }
        if let Some(delay) = problem.retry_after {
            details.set_retry_info(Some(delay.min(MAX_RETRY_AFTER)));
        }
        Self::with_error_details(problem.reason.code(), message, details)
    }
}

impl From<Status> for Problem {
    /// Decodes a status. A status that Potluck did not make gets the nearest reason for its code.
    ///
    /// The sender is not trusted: texts are truncated and stripped of control characters, and
    /// delays are bounded.
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let reason = details
            .error_info()
            .filter(|info| info.domain == DOMAIN)
            .and_then(|info| Reason::from_wire(&info.reason))
            .unwrap_or_else(|| reason_of_foreign(&status));
        Self {
            reason,
            message: sanitize(status.message()).into_owned(),
            field: details
                .bad_request()
                .and_then(|bad| bad.field_violations.first())
                .map(|violation| sanitize(&violation.field).into_owned()),
            retry_after: details
                .retry_info()
                .and_then(|info| info.retry_delay)
                .map(|delay| delay.min(MAX_RETRY_AFTER)),
        }
    }
}

/// Whether a Potluck service made this status.
pub(crate) fn is_from_potluck(status: &Status) -> bool {
    status
        .get_error_details()
        .error_info()
        .is_some_and(|info| info.domain == DOMAIN)
}

fn truncate(text: &str) -> &str {
    let mut end = text.len().min(MAX_MESSAGE_LEN);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn sanitize(text: &str) -> Cow<'_, str> {
    let text = truncate(text);
    match text.contains(char::is_control) {
        // The replacement is longer than what it replaces.
        true => truncate(&text.replace(char::is_control, "\u{fffd}"))
            .to_owned()
            .into(),
        false => text.into(),
    }
}

fn reason_of_foreign(status: &Status) -> Reason {
    match status.code() {
        Code::InvalidArgument => Reason::InvalidArgument,
        Code::OutOfRange => Reason::OutOfRange,
        Code::NotFound => Reason::NotFound,
        Code::PermissionDenied => Reason::PermissionDenied,
        Code::Unauthenticated => Reason::Unauthenticated,
        Code::ResourceExhausted => Reason::Busy,
        Code::DeadlineExceeded => Reason::TimedOut,
        Code::Unavailable => Reason::Unreachable,
        Code::Unimplemented => Reason::NotPotluck,
        Code::Cancelled => Reason::Cancelled,
        Code::DataLoss => Reason::VerificationFailed,
        _ => Reason::Internal,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn problems() -> impl Strategy<Value = Problem> {
        let reason = proptest::sample::select(Reason::ALL);
        let delay = proptest::option::of((0..3600_u64, 0..1_000_000_000_u32));
        (
            reason,
            "\\PC{0,300}",
            proptest::option::of("[a-z_.\\[\\]0-9]{1,30}"),
            delay,
        )
            .prop_map(|(reason, message, field, delay)| Problem {
                reason,
                message,
                field,
                retry_after: delay.map(|(seconds, nanos)| Duration::new(seconds, nanos)),
            })
    }

    proptest! {
        #[test]
        fn a_problem_survives_the_wire(problem in problems()) {
            let sent = Status::from(problem.clone());
            prop_assert_eq!(sent.code(), problem.reason.code());
            let headers = sent.into_http::<()>().into_parts().0.headers;
            let size: usize = headers.values().map(|value| value.len()).sum();
            prop_assert!(size < 14 * 1024, "{} bytes do not fit the headers that a client accepts", size);
            let received = Status::from_header_map(&headers).unwrap();
            prop_assert_eq!(Problem::from(received), problem);
        }

        #[test]
        fn details_from_strangers_do_no_harm(
            code in 0..20_i32,
            message in any::<String>(),
            details in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let problem = Problem::from(Status::with_details(Code::from(code), message, details.into()));
            prop_assert!(!problem.message.contains(char::is_control));
        }
    }

    #[test]
    fn strangers_texts_and_delays_are_bounded() {
        let mut details = ErrorDetails::new();
        details.set_retry_info(Some(Duration::from_secs(100_000_000_000)));
        details.add_bad_request_violation("f\n".repeat(10_000), "");
        let status =
            Status::with_error_details(Code::Unavailable, "\u{1b}[2J€".repeat(10_000), details);
        let problem = Problem::from(status);
        assert_eq!(problem.reason, Reason::Unreachable);
        assert_eq!(problem.retry_after, Some(MAX_RETRY_AFTER));
        let field = problem.field.unwrap();
        for text in [problem.message, field] {
            assert!(text.len() <= MAX_MESSAGE_LEN && !text.contains(char::is_control));
        }
    }

    #[test]
    fn a_reason_of_another_domain_is_ignored() {
        let mut details = ErrorDetails::new();
        details.set_error_info("NOT_FOUND", "example.com", std::collections::HashMap::new());
        let status = Status::with_error_details(Code::Unavailable, "", details);
        assert!(!is_from_potluck(&status));
        assert_eq!(Problem::from(status).reason, Reason::Unreachable);
    }

    #[test]
    fn wrapped_errors_are_recognized_as_too_many_open_files() {
        for number in [Errno::MFILE, Errno::NFILE] {
            let bare = || io::Error::from(number);
            assert_eq!(Reason::of_exhaustion(&bare()), Some(Reason::TooManyOpenFiles));
            let wrapped = io::Error::other(io::Error::other(bare()));
            assert_eq!(Reason::of_exhaustion(&wrapped), Some(Reason::TooManyOpenFiles));
        }
        let full = io::Error::from(Errno::NOSPC);
        assert_eq!(Reason::of_exhaustion(&full), Some(Reason::DiskFull));
        for other in [Errno::ACCESS, Errno::NOENT] {
            assert_eq!(Reason::of_exhaustion(&other.into()), None);
        }
    }

    #[test]
    fn reasons_have_distinct_texts() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_wire(reason.as_str()), Some(*reason));
            assert_eq!(reason.word(), reason.as_str().to_lowercase());
        }
        let words: std::collections::HashSet<_> =
            Reason::ALL.iter().map(|reason| reason.word()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
    }
}
