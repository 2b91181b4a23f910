//! What a failed handshake means, for people.

use rustls::{AlertDescription, CertificateError, Error};

use crate::Reason;

/// The reason why TLS with a server failed, and words for people that complete "no secure connection
/// to the server at ADDRESS: ".
pub fn explain(error: &Error) -> (Reason, String) {
    match error {
        Error::InvalidMessage(_) => (
            Reason::NotPotluck,
            "it does not use encryption; this machine is a member of a private network: give \
             --no-network for a server outside it"
                .to_owned(),
        ),
        Error::InvalidCertificate(certificate) => {
            let (reason, text) = invalid(certificate);
            (reason, text.to_owned())
        }
        Error::AlertReceived(alert) => {
            let (reason, text) = alerted(*alert);
            (reason, text.to_owned())
        }
        Error::PeerIncompatible(_) => (Reason::NotPotluck, NO_TLS13.to_owned()),
        other => (Reason::Unreachable, format!("TLS failed: {other}")),
    }
}

const NO_TLS13: &str = "it does not support TLS 1.3: update potluck there";

const OTHER_NETWORK: &str =
    "it is of another network: use the credentials of that network (--credentials)";

/// The meaning of a defect in the server's certificate.
const fn invalid(error: &CertificateError) -> (Reason, &'static str) {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
            Reason::Unauthenticated,
            "its certificate has expired: start it where it can reach the index, and check the \
             clocks of both machines",
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
            Reason::Unauthenticated,
            "its certificate is not valid yet: set the clocks of both machines",
        ),
        CertificateError::Revoked => (Reason::Unauthenticated, "its member was revoked"),
        // The signature is wrong if the CAs of both networks have the same name.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            (Reason::Unauthenticated, OTHER_NETWORK)
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            Reason::Unauthenticated,
            "its certificate is not that of the expected server: another peer has this address now, \
             or the URL of the index is wrong (`potluck network set-index URL`)",
        ),
        _ => (
            Reason::Unauthenticated,
            "its certificate is not valid in this network",
        ),
    }
}

/// The meaning of the server's refusal (RFC 8446, section 6.2).
const fn alerted(alert: AlertDescription) -> (Reason, &'static str) {
    match alert {
        AlertDescription::CertificateRequired => (
            Reason::NotAMember,
            "it requires a certificate of its network: join it with `potluck network join CODE`",
        ),
        AlertDescription::CertificateExpired => (
            Reason::CertificateExpired,
            "it refused this machine's certificate, which has expired or is not valid yet: check \
             this machine's clock, or join again with a new code",
        ),
        AlertDescription::CertificateRevoked => (
            Reason::Revoked,
            "this machine was revoked: run `potluck network leave`, and join again with a new code if \
             an admin gives one",
        ),
        // Wrong signatures, as above, end with the second.
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            (Reason::NotAMember, OTHER_NETWORK)
        }
        AlertDescription::BadCertificate
        | AlertDescription::AccessDenied
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate => (
            Reason::NotAMember,
            "it refused this machine's certificate: check this machine's clock, or join again with \
             a new code",
        ),
        AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => {
            (Reason::NotPotluck, NO_TLS13)
        }
        _ => (Reason::Unreachable, "it ended the TLS handshake"),
    }
}
