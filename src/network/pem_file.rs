//! Keys and certificates in PEM files.

use std::{
    fmt::Write as _,
    io::{self, ErrorKind},
    path::Path,
};

use data_encoding::BASE64;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use crate::files::read_own;

/// Maximum size of a PEM file, in bytes: many times that of a chain with a CA.
const MAX_FILE: u64 = 256 * 1024;

/// Reads a text file of the program.
///
/// # Errors
/// Those of the system; [`ErrorKind::InvalidData`] if it is not text.
pub(super) fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read_own(path, MAX_FILE)?).map_err(|_| ErrorKind::InvalidData.into())
}

/// The certificates in a PEM text, in their order.
///
/// # Errors
/// [`ErrorKind::InvalidData`] if there is none, or if the text is malformed.
pub(super) fn certificates(text: &str) -> io::Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(io::Error::new(
            ErrorKind::InvalidData,
            "it does not contain a certificate in PEM",
        )),
    }
}

/// Certificates as PEM text (RFC 7468).
pub(super) fn encode_certificates(chain: &[CertificateDer<'_>]) -> String {
    let mut text = String::new();
    for certificate in chain {
        let base64 = BASE64.encode(certificate);
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        for line in base64.as_bytes().chunks(64) {
            // Writing to a string cannot fail, and base64 is ASCII.
            let _ = writeln!(text, "{}", String::from_utf8_lossy(line));
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}
