//! Which call needs which right.
//!
//! The table names every call of the index. A call that is missing, such as one of a later version,
//! needs a member, so that a stranger learns nothing of the services behind it.
#![deny(
    clippy::disallowed_methods,
    reason = "pure: time, randomness and I/O come in from outside"
)]

use potluck_core::network::identity::Role;

/// Who may make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Anyone: the request itself proves the right.
    Anyone,
    /// A member with at least this role.
    Member(Role),
}

/// Who may call the method with this path (gRPC over HTTP/2, "Path").
pub(crate) fn required(path: &str) -> Access {
    match path {
        "/potluck.v1.NetworkService/Enroll" | "/potluck.v1.NetworkService/RenewCertificate" => {
            Access::Anyone
        }
        "/potluck.v1.NetworkService/CreateInvite"
        | "/potluck.v1.NetworkService/RevokeMember"
        | "/potluck.v1.NetworkService/RemoveRegistrations" => Access::Member(Role::Admin),
        "/potluck.v1.NetworkService/RemoveBindings" => Access::Member(Role::Publisher),
        _ => Access::Member(Role::Reader),
    }
}

/// The name of a method for people: `Service/Method` without the package.
pub(crate) fn method_name(path: &str) -> &str {
    /// Longer paths are not of this index.
    const MAX_NAME: usize = 64;
    let name = path.rsplit_once('.').map_or(path, |(_, name)| name);
    match name.len() <= MAX_NAME && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '/') {
        true => name,
        false => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_may_only_enroll_and_renew() {
        for path in [
            "/potluck.v1.IndexService/Query",
            "/potluck.v1.NetworkService/ListMembers",
            "/potluck.v1.NetworkService/enroll",
            "/potluck.v1.NetworkService/Enroll/",
            "/grpc.health.v1.Health/Check",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/",
            "",
        ] {
            assert_eq!(required(path), Access::Member(Role::Reader), "{path}");
        }
        assert_eq!(required("/potluck.v1.NetworkService/Enroll"), Access::Anyone);
    }

    #[test]
    fn a_name_is_safe_to_log() {
        assert_eq!(
            method_name("/potluck.v1.IndexService/Query"),
            "IndexService/Query"
        );
        assert_eq!(method_name("/a.b\n\"c"), "unknown");
        assert_eq!(method_name(&"x".repeat(1000)), "unknown");
    }
}
