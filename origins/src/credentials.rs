//! Credentials from where the ecosystem keeps them: `HF_TOKEN`, the token file of
//! `huggingface_hub`, and netrc.
//!
//! Invariant: a token is looked up by the host that it is for, and is kept as a [`Secret`].

use std::{env, fs, path::PathBuf};

use url::Url;

use crate::{client::may_carry_credentials, hub::DEFAULT_ENDPOINT, secret::Secret};

/// Largest file of credentials, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The endpoint of the hub: `HF_ENDPOINT`, or the public one.
///
/// # Errors
/// If `HF_ENDPOINT` is not a web address.
pub fn hub_endpoint() -> Result<Url, url::ParseError> {
    let endpoint = env::var("HF_ENDPOINT")
        .ok()
        .filter(|endpoint| !endpoint.is_empty());
    Url::parse(endpoint.as_deref().unwrap_or(DEFAULT_ENDPOINT))
}

/// The token for the hub, in the order of `huggingface_hub`: `HF_TOKEN`, the file that
/// `HF_TOKEN_PATH` names, `$HF_HOME/token`, `~/.cache/huggingface/token`; then netrc.
pub fn hub_token(endpoint: &Url) -> Option<Secret> {
    if !may_carry_credentials(endpoint) {
        return None;
    }
    let from_variable = env::var("HF_TOKEN").ok();
    let token = from_variable.or_else(|| read(token_path()?));
    match token.as_deref().map(str::trim) {
        Some(token) if !token.is_empty() => Some(Secret::bearer(token)),
        _ => host_credentials(endpoint),
    }
}

/// The credentials for the host of a URL from the file that `NETRC` names, or `~/.netrc`.
pub fn host_credentials(url: &Url) -> Option<Secret> {
    if !may_carry_credentials(url) {
        return None;
    }
    let path = env::var_os("NETRC")
        .map(PathBuf::from)
        .or_else(|| Some(home()?.join(".netrc")))?;
    let (login, password) = parse_netrc(&read(path)?, url.host_str()?)?;
    Some(Secret::header(format!(
        "Basic {}",
        base64(format!("{login}:{password}").as_bytes())
    )))
}

fn token_path() -> Option<PathBuf> {
    if let Some(path) = env::var_os("HF_TOKEN_PATH") {
        return Some(path.into());
    }
    let folder = match (env::var_os("HF_HOME"), env::var_os("XDG_CACHE_HOME")) {
        (Some(folder), _) => PathBuf::from(folder),
        (None, Some(cache)) => PathBuf::from(cache).join("huggingface"),
        (None, None) => home()?.join(".cache/huggingface"),
    };
    Some(folder.join("token"))
}

fn home() -> Option<PathBuf> {
    env::var_os("HOME").map(PathBuf::from)
}

fn read(path: PathBuf) -> Option<String> {
    let is_small = fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= MAX_FILE);
    is_small.then(|| fs::read_to_string(&path).ok()).flatten()
}

/// The login and the password of a host. Macros are ignored.
fn parse_netrc(text: &str, host: &str) -> Option<(String, String)> {
    let lines = text
        .lines()
        .map(|line| line.split(" #").next().unwrap_or_default());
    let mut words = lines.flat_map(str::split_whitespace);
    let (mut is_match, mut login, mut password) = (false, None, None);
    while let Some(word) = words.next() {
        match word {
            "machine" | "default" => {
                if is_match && password.is_some() {
                    break;
                }
                is_match = word == "default" || words.next() == Some(host);
                (login, password) = (None, None);
            }
            "login" => login = words.next().filter(|_| is_match),
            "password" => password = words.next().filter(|_| is_match),
            "account" => _ = words.next(),
            "macdef" => break,
            _ => {}
        }
    }
    Some((
        login.unwrap_or_default().to_owned(),
        password.filter(|_| is_match)?.to_owned(),
    ))
}

/// Base64 with padding, as Basic authentication wants it (RFC 7617).
fn base64(bytes: &[u8]) -> String {
    data_encoding::BASE64.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netrc_is_read_by_host() {
        let text = "machine a.example login ann password one\n\
                    machine b.example\n  login bob\n  password two # comment\n\
                    default login x password y";
        let found = |host| parse_netrc(text, host);
        assert_eq!(found("a.example"), Some(("ann".into(), "one".into())));
        assert_eq!(found("b.example"), Some(("bob".into(), "two".into())));
        assert_eq!(found("c.example"), Some(("x".into(), "y".into())));
        assert_eq!(parse_netrc("machine a.example login x", "a.example"), None);
        assert_eq!(parse_netrc("machine other login x password y", "a.example"), None);
    }

    #[test]
    fn a_secret_does_not_show() {
        assert_eq!(format!("{:?}", Secret::bearer("hf_x")), "Secret(…)");
    }
}
