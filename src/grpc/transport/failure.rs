//! Classifies failed calls: the server is unreachable, too slow, or not Potluck.

use std::{error::Error, io};

use tonic::{Code, ConnectError, Status, TimeoutExpired};

use crate::{
    Problem, Reason,
    network::tls,
    problem::{RAISE_OPEN_FILES, is_from_potluck},
};

/// A failure below the gRPC layer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Failure {
    /// The connection failed or broke.
    Disconnected(String),
    /// No response before the deadline.
    TimedOut(String),
    /// The server does not speak HTTP/2, or its response is not gRPC.
    NotGrpc(String),
    /// TLS failed.
    Tls(Reason, String),
    /// This process has too many open files. Says nothing about the server.
    NoDescriptors,
}

const NOT_HTTP2: &str = "it does not speak HTTP/2";

/// The problem for a server at `endpoint` that does not speak HTTP/2.
pub(crate) fn not_http2(service: &str, endpoint: &dyn std::fmt::Display) -> Problem {
    Problem::new(Reason::NotPotluck, foreign(service, endpoint, NOT_HTTP2))
}

/// The problem for a server that wants TLS from a client without it.
pub(crate) fn needs_tls(service: &str, endpoint: &dyn std::fmt::Display) -> Problem {
    Problem::new(
        Reason::NotAMember,
        format!(
            "the {service} at {endpoint} belongs to a private network: join it with `potluck \
             network join CODE`, or give its credentials with --credentials"
        ),
    )
}

/// The problem for a server with which TLS failed.
pub(crate) fn tls_failed(reason: Reason, why: &str, endpoint: &dyn std::fmt::Display) -> Problem {
    Problem::new(
        reason,
        format!("no secure connection to the server at {endpoint}: {why}"),
    )
}

fn foreign(service: &str, endpoint: &dyn std::fmt::Display, why: &str) -> String {
    format!("the server at {endpoint} is not a Potluck {service}: {why}")
}

/// The problem for a failed call to `service` at `endpoint`.
pub(crate) fn problem(status: Status, service: &str, endpoint: &dyn std::fmt::Display) -> Problem {
    let failure = match is_from_potluck(&status) {
        true => None,
        false => below_grpc(&status).or_else(|| not_grpc(&status)),
    };
    let (reason, message) = match failure {
        None => return status.into(),
        Some(Failure::Disconnected(why)) => (
            Reason::Unreachable,
            format!("the {service} at {endpoint} cannot be reached: {why}"),
        ),
        Some(Failure::TimedOut(why)) => (
            Reason::TimedOut,
            format!("the {service} at {endpoint} does not answer: {why}"),
        ),
        Some(Failure::NotGrpc(why)) => (Reason::NotPotluck, foreign(service, endpoint, &why)),
        Some(Failure::NoDescriptors) => (Reason::TooManyOpenFiles, no_descriptors(endpoint)),
        Some(Failure::Tls(reason, why)) => return tls_failed(reason, &why, endpoint),
    };
    Problem {
        reason,
        message,
        ..status.into()
    }
}

/// The problem for a transport error without a status, such as a failed connection attempt.
pub(crate) fn connect_problem(
    error: &(dyn Error + 'static),
    endpoint: &dyn std::fmt::Display,
) -> Problem {
    let why = match in_chain(error) {
        Some(Failure::TimedOut(why)) => {
            return Problem::new(Reason::TimedOut, format!("no answer at {endpoint}: {why}"));
        }
        Some(Failure::NoDescriptors) => {
            return Problem::new(Reason::TooManyOpenFiles, no_descriptors(endpoint));
        }
        Some(Failure::Tls(reason, why)) => return tls_failed(reason, &why, endpoint),
        Some(Failure::Disconnected(why) | Failure::NotGrpc(why)) => why,
        None => root_cause(error),
    };
    Problem::new(
        Reason::Unreachable,
        format!("nothing answers at {endpoint}: {why}"),
    )
}

fn no_descriptors(endpoint: &dyn std::fmt::Display) -> String {
    format!("cannot connect to {endpoint}: {RAISE_OPEN_FILES}")
}

fn below_grpc(status: &Status) -> Option<Failure> {
    in_chain(Error::source(status)?)
}

fn in_chain(error: &(dyn Error + 'static)) -> Option<Failure> {
    let mut next = Some(error);
    let mut found = None;
    while let Some(error) = next {
        // The innermost recognised error is the most specific.
        found = failure(error).or(found);
        next = error.source();
    }
    found
}

fn failure(error: &(dyn Error + 'static)) -> Option<Failure> {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        let inner = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(error) = inner {
            let (reason, why) = tls::explain(error);
            return Some(Failure::Tls(reason, why));
        }
        return Some(match error.kind() {
            io::ErrorKind::TimedOut => Failure::TimedOut("the connection timed out".into()),
            // The text of rustls is a lecture.
            io::ErrorKind::UnexpectedEof => {
                Failure::Disconnected("the connection was closed".into())
            }
            _ if Reason::of_exhaustion(error) == Some(Reason::TooManyOpenFiles) => {
                Failure::NoDescriptors
            }
            _ => Failure::Disconnected(root_cause(error)),
        });
    }
    if let Some(error) = error.downcast_ref::<h2::Error>() {
        return Some(match error.is_library() {
            true => Failure::NotGrpc(NOT_HTTP2.into()),
            false => Failure::Disconnected(error.to_string()),
        });
    }
    if let Some(error) = error.downcast_ref::<hyper::Error>() {
        return Some(match error.is_timeout() {
            true => Failure::TimedOut("the connection went silent".into()),
            false => Failure::Disconnected("it closed the connection".into()),
        });
    }
    if error.is::<TimeoutExpired>() {
        return Some(Failure::TimedOut("the call took too long".into()));
    }
    error
        .is::<ConnectError>()
        .then(|| Failure::Disconnected(root_cause(error)))
}

/// Classifies a status without Potluck's details: another server sent it, or the response did not
/// decode.
fn not_grpc(status: &Status) -> Option<Failure> {
    match status.code() {
        Code::Unknown | Code::Internal => Some(Failure::NotGrpc("its answer is not gRPC".into())),
        Code::Unimplemented => Some(Failure::NotGrpc("it does not know the call".into())),
        _ => None,
    }
}

/// The message of the innermost cause, which is the most specific, without an error number.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let text = cause.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}
