//! The text that lets a machine join a network.
//!
//! `potluck1_` and base32 (RFC 4648, without padding, either case) of:
//!
//! ```text
//! 32 bytes   SHA-256 of the public key of the network's CA
//! 16 bytes   one-time secret
//! rest       URL of the index; URLs separated by commas if there are several
//!  4 bytes   start of the SHA-256 of all bytes before, against typing errors
//! ```
//!
//! Base32, because a double click selects all of it and it survives a change of case. The digit in the
//! prefix is the version.

use std::{fmt, str::FromStr};

use data_encoding::BASE32_NOPAD;
use rand::Rng as _;
use sha2::Digest as _;
use zeroize::{Zeroize, Zeroizing};

use crate::network::authority::CaHash;

const PREFIX: &str = "potluck1_";
const HASH: usize = 32;
const SECRET: usize = 16;
const CHECKSUM: usize = 4;

/// Maximum length of the index's URL in a join code, in bytes.
pub const MAX_URL: usize = 512;

/// Maximum length of a join code, in characters.
pub const MAX_CODE: usize = PREFIX.len() + (HASH + SECRET + MAX_URL + CHECKSUM) * 8 / 5 + 8;

/// The secret in a join code. `Debug` prints a placeholder.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinSecret([u8; SECRET]);

impl JoinSecret {
    /// Generates a secret with a cryptographic generator that the operating system seeds.
    pub fn generate() -> Self {
        let mut bytes = [0; SECRET];
        rand::rng().fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// The secret bytes, only for the request that enrols.
    pub const fn expose(&self) -> &[u8; SECRET] {
        &self.0
    }

    /// What the index keeps of the secret: `SHA-256("potluck/join/v1\0" || secret)`.
    pub fn hash(&self) -> JoinSecretHash {
        let mut hash = sha2::Sha256::new();
        hash.update(b"potluck/join/v1\0");
        hash.update(self.0);
        JoinSecretHash(hash.finalize().into())
    }
}

impl TryFrom<&[u8]> for JoinSecret {
    type Error = JoinCodeError;

    fn try_from(bytes: &[u8]) -> Result<Self, JoinCodeError> {
        bytes.try_into().map(Self).map_err(|_| JoinCodeError::Malformed)
    }
}

impl Drop for JoinSecret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for JoinSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinSecret(secret)")
    }
}

/// The hash of a [`JoinSecret`], from which the secret cannot be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JoinSecretHash(pub [u8; 32]);

/// The reason why a text is not a join code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinCodeError {
    /// It does not start as a join code does.
    #[error(
        "a join code starts with `{PREFIX}`: paste the last word that `potluck network create` \
             or `potluck network invite` printed"
    )]
    Prefix,
    /// It has a newer version.
    #[error("the join code is of a newer version of potluck: update potluck on this machine")]
    Version,
    /// It is too short, too long, or has other characters.
    #[error("the join code is incomplete or has a character that does not belong: paste it again")]
    Malformed,
    /// Its checksum does not match.
    #[error("the join code has a typing error: paste it again")]
    Checksum,
}

/// A join code. Its text is secret; `Debug` does not show the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinCode {
    /// The URL of the index; with several indexes their URLs, separated by commas.
    pub index: String,
    /// The hash of the public key of the network's CA.
    pub ca: CaHash,
    /// The one-time secret.
    pub secret: JoinSecret,
}

impl JoinCode {
    /// A code with a new secret. `None` if the URL is longer than [`MAX_URL`].
    pub fn generate(index: &str, ca: CaHash) -> Option<Self> {
        (index.len() <= MAX_URL).then(|| Self {
            index: index.to_owned(),
            ca,
            secret: JoinSecret::generate(),
        })
    }

    /// The text of the code, which is secret.
    pub fn expose(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_CODE));
        bytes.extend(self.ca.0);
        bytes.extend(self.secret.0);
        bytes.extend(self.index.as_bytes());
        let checksum = checksum(&bytes);
        bytes.extend(checksum);
        let mut text = Zeroizing::new(BASE32_NOPAD.encode(&bytes));
        text.make_ascii_lowercase();
        Zeroizing::new(format!("{PREFIX}{}", *text))
    }
}

impl FromStr for JoinCode {
    type Err = JoinCodeError;

    /// Parses a code; white space around it is ignored.
    fn from_str(text: &str) -> Result<Self, JoinCodeError> {
        let text = text.trim();
        let Some(body) = text.strip_prefix(PREFIX) else {
            let other_version = text
                .strip_prefix("potluck")
                .and_then(|rest| rest.split_once('_'))
                .is_some_and(|(version, _)| {
                    version.parse::<u32>().is_ok_and(|version| version > 1)
                });
            return Err(match other_version {
                true => JoinCodeError::Version,
                false => JoinCodeError::Prefix,
            });
        };
        if text.len() > MAX_CODE {
            return Err(JoinCodeError::Malformed);
        }
        let body = Zeroizing::new(body.to_ascii_uppercase());
        let bytes = BASE32_NOPAD
            .decode(body.as_bytes())
            .map(Zeroizing::new)
            .map_err(|_| JoinCodeError::Malformed)?;
        let (content, sum) = bytes
            .split_last_chunk::<CHECKSUM>()
            .ok_or(JoinCodeError::Malformed)?;
        if checksum(content) != *sum {
            return Err(JoinCodeError::Checksum);
        }
        let (ca, rest) = content.split_first_chunk().ok_or(JoinCodeError::Malformed)?;
        let (secret, url) = rest.split_first_chunk().ok_or(JoinCodeError::Malformed)?;
        let index = std::str::from_utf8(url).map_err(|_| JoinCodeError::Malformed)?;
        if index.is_empty() || index.len() > MAX_URL {
            return Err(JoinCodeError::Malformed);
        }
        Ok(Self {
            index: index.to_owned(),
            ca: CaHash(*ca),
            secret: JoinSecret(*secret),
        })
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let hash: [u8; 32] = sha2::Sha256::digest(bytes).into();
    let (first, _) = hash.split_at(CHECKSUM);
    first.try_into().expect("a hash has more than 4 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn code() -> JoinCode {
        JoinCode::generate("https://index.example:1313", CaHash([7; 32])).unwrap()
    }

    #[test]
    fn a_code_is_one_word_that_comes_back_in_either_case() {
        let code = code();
        let text = code.expose();
        assert!(
            text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'),
            "{}",
            *text
        );
        assert_eq!(text.parse(), Ok(code.clone()));
        let upper = format!(" {}{}\n", PREFIX, text[PREFIX.len()..].to_uppercase());
        assert_eq!(upper.parse(), Ok(code));
    }

    #[test]
    fn the_secret_is_not_shown() {
        let code = code();
        let shown = format!("{code:?}");
        assert!(shown.contains("index.example"));
        assert!(!shown.contains(&hex::encode(code.secret.expose())), "{shown}");
        assert!(!shown.contains(&format!("{:?}", code.secret.expose())), "{shown}");
    }

    #[test]
    fn errors_say_what_is_wrong_with_a_code() {
        let text = code().expose();
        let parse = |text: &str| text.parse::<JoinCode>().unwrap_err();
        assert_eq!(parse(""), JoinCodeError::Prefix);
        assert_eq!(parse("https://index.example:1313"), JoinCodeError::Prefix);
        assert_eq!(parse("potluck2_abc"), JoinCodeError::Version);
        assert_eq!(parse("potluck1_"), JoinCodeError::Malformed);
        assert_eq!(parse("potluck1_!!"), JoinCodeError::Malformed);
        let (at, typed) = (20, if text.as_bytes()[20] == b'a' { "b" } else { "a" });
        let wrong = [&text[..at], typed, &text[at + 1..]].concat();
        assert_eq!(parse(&wrong), JoinCodeError::Checksum);
        let long = format!("{PREFIX}{}", "a".repeat(MAX_CODE));
        assert_eq!(parse(&long), JoinCodeError::Malformed);
        assert_eq!(
            JoinCode::generate(&"x".repeat(MAX_URL + 1), CaHash([0; 32])),
            None
        );
        let longest = JoinCode::generate(&"x".repeat(MAX_URL), CaHash([0; 32])).unwrap();
        assert_eq!(longest.expose().parse(), Ok(longest));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text: String, bytes: Vec<u8>) {
            let _ = text.parse::<JoinCode>();
            let _ = format!("{PREFIX}{text}").parse::<JoinCode>();
            let sum = checksum(&bytes);
            let encoded = BASE32_NOPAD.encode(&[&bytes[..], &sum].concat());
            let _ = format!("{PREFIX}{encoded}").parse::<JoinCode>();
        }
    }
}
