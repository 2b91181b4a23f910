//! Join codes.

use potluck_core::network::join_code::{JoinCode, MAX_CODE, MAX_URL};
use sha2::{Digest as _, Sha256};

/// A join code that is accepted is printed as it was typed. Bytes with a right checksum are
/// accepted if and only if they are a code.
///
/// The input is the text of a code, or its bytes.
pub fn join_code(input: &[u8]) -> bool {
    let typed = std::str::from_utf8(input).is_ok_and(check);
    let sum = Sha256::digest(input);
    let bytes = [input, &sum[..4]].concat();
    let text = format!("potluck1_{}", base32(&bytes));
    let accepted = check(&text);
    let url = input.get(32 + 16..).map(std::str::from_utf8);
    let is_code =
        url.is_some_and(|url| url.is_ok_and(|url| !url.is_empty() && url.len() <= MAX_URL));
    assert_eq!(accepted, is_code, "{text}");
    typed || accepted
}

fn check(text: &str) -> bool {
    match text.parse::<JoinCode>() {
        Ok(code) => {
            let shown = code.expose();
            assert_eq!(*shown, text.trim().to_ascii_lowercase());
            assert!(shown.len() <= MAX_CODE && code.index.len() <= MAX_URL);
            assert_eq!(shown.parse(), Ok(code));
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

/// RFC 4648, in lower case and without padding.
fn base32(bytes: &[u8]) -> String {
    let bit = |at: usize| bytes.get(at / 8).map_or(0, |byte| byte >> (7 - at % 8) & 1);
    let digit = |at: usize| (0..5).fold(0, |digit, i| digit << 1 | bit(5 * at + i));
    let digits = (0..(8 * bytes.len()).div_ceil(5)).map(digit);
    digits
        .map(|digit| char::from(b"abcdefghijklmnopqrstuvwxyz234567"[usize::from(digit)]))
        .collect()
}

/// Codes, whole and as bytes.
pub fn seeds() -> Vec<Vec<u8>> {
    let bytes = |url: &str| [&[7; 32], &[9; 16][..], url.as_bytes()].concat();
    let body = bytes("https://index.example:1313");
    let sum = Sha256::digest(&body);
    let code = format!("potluck1_{}", base32(&[&body, &sum[..4]].concat()));
    vec![
        format!(" {code}\n").into_bytes(),
        code.to_uppercase()
            .replacen("POTLUCK1", "potluck1", 1)
            .into_bytes(),
        body,
        bytes(&"x".repeat(MAX_URL)),
        b"potluck2_abc".to_vec(),
    ]
}

/// Prefixes of codes.
pub const WORDS: &[&[u8]] = &[b"potluck1_", b"potluck2_", b"potluck", b"_", b"=", b" "];
