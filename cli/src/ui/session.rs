//! Who may use the page: the one-time token of its link, and the session that replaces it.
//!
//! The link is `http://ADDRESS/?token=TOKEN`. The first request with the token gets the session: a
//! cookie, and the secret folder of the page, `/FOLDER/`. Everything but the exchange is below that
//! folder, and the cookie's path is the folder. Browsers send cookies to every port of a host; since
//! no other server knows the folder, none receives this cookie.
//!
//! Invariant: nothing below the folder answers without the cookie, and the token works once.

use std::sync::atomic::{AtomicBool, Ordering};

use http::{HeaderMap, header::COOKIE};
use rand::RngExt as _;
use sha2::{Digest as _, Sha256};

/// Name of the cookie.
const COOKIE_NAME: &str = "potluck_ui";

/// Random bytes of each secret: nobody guesses 128 bits.
const SECRET_BYTES: usize = 16;

/// The secrets of one run of the page.
#[derive(Debug)]
pub(super) struct Session {
    token: Secret,
    cookie: Secret,
    folder: Secret,
    is_token_used: AtomicBool,
}

/// The result of presenting a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exchange {
    /// It was the token, for the first time.
    Accepted,
    /// It was the token, which was used before.
    Used,
    /// It was not the token.
    Wrong,
}

impl Session {
    /// A session with new random secrets.
    pub(super) fn new() -> Self {
        Self {
            token: Secret::random(),
            cookie: Secret::random(),
            folder: Secret::random(),
            is_token_used: AtomicBool::new(false),
        }
    }

    /// The one-time token of the link.
    pub(super) fn token(&self) -> &str {
        &self.token.0
    }

    /// The path of the page: `/FOLDER`, without a slash at its end.
    pub(super) fn folder(&self) -> String {
        format!("/{}", self.folder.0)
    }

    /// Uses the token up, if this is it.
    pub(super) fn exchange(&self, token: &str) -> Exchange {
        if !self.token.matches(token) {
            return Exchange::Wrong;
        }
        match self.is_token_used.swap(true, Ordering::Relaxed) {
            false => Exchange::Accepted,
            true => Exchange::Used,
        }
    }

    /// The value of `Set-Cookie`.
    pub(super) fn set_cookie(&self) -> String {
        let (cookie, folder) = (&self.cookie.0, self.folder());
        format!("{COOKIE_NAME}={cookie}; Path={folder}/; HttpOnly; SameSite=Strict")
    }

    /// Whether a request has the cookie of this session.
    pub(super) fn admits(&self, headers: &HeaderMap) -> bool {
        headers
            .get_all(COOKIE)
            .iter()
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .any(|(name, value)| name == COOKIE_NAME && self.cookie.matches(value))
    }
}

/// Random hex digits.
struct Secret(String);

impl Secret {
    fn random() -> Self {
        let mut bytes = [0; SECRET_BYTES];
        rand::rng().fill(&mut bytes);
        Self(hex::encode(bytes))
    }

    /// Compares hashes, so that the time shows nothing about the secret.
    fn matches(&self, guess: &str) -> bool {
        Sha256::digest(&self.0) == Sha256::digest(guess)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cookies(line: &str) -> HeaderMap {
        HeaderMap::from_iter([(COOKIE, line.parse().unwrap())])
    }

    #[test]
    fn the_token_works_once() {
        let session = Session::new();
        assert_eq!(session.exchange(""), Exchange::Wrong);
        assert_eq!(session.exchange(Session::new().token()), Exchange::Wrong);
        assert_eq!(session.exchange(session.token()), Exchange::Accepted);
        assert_eq!(session.exchange(session.token()), Exchange::Used);
    }

    #[test]
    fn only_the_cookie_is_admitted() {
        let session = Session::new();
        let set = session.set_cookie();
        let pair = set.split(';').next().unwrap();
        assert!(session.admits(&cookies(pair)));
        assert!(session.admits(&cookies(&format!("a=b; {pair}; c=d"))));
        let token = session.token();
        for other in ["", "potluck_ui", "potluck_ui=", &format!("potluck_ui={token}")] {
            assert!(!session.admits(&cookies(other)), "{other}");
        }
        assert!(!session.admits(&HeaderMap::new()));
    }

    #[test]
    fn secrets_are_not_in_debug_output() {
        let session = Session::new();
        assert!(!format!("{session:?}").contains(session.token()));
    }
}
