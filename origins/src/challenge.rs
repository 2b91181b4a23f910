//! Challenges of registries: where to get a token (RFC 6750, and the token authentication of OCI
//! registries). Pure.

use http::{HeaderMap, header};
use url::Url;

/// Longest challenge that is read, in bytes.
const MAX_LEN: usize = 4096;

/// A server asks for a token, which another server gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BearerChallenge {
    /// Who gives tokens.
    pub(crate) realm: Url,
    /// For whom they are.
    pub(crate) service: Option<String>,
    /// What they allow.
    pub(crate) scope: Option<String>,
}

impl BearerChallenge {
    /// The first challenge of a response that names who gives tokens.
    pub(crate) fn find(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(header::WWW_AUTHENTICATE).iter();
        values
            .filter_map(|value| value.to_str().ok())
            .filter(|value| value.len() <= MAX_LEN)
            .find_map(parse)
    }

    /// The address of the request for a token.
    pub(crate) fn token_url(&self) -> Url {
        let mut url = self.realm.clone();
        let fields = [("service", &self.service), ("scope", &self.scope)];
        for (name, value) in fields {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(name, value);
            }
        }
        url
    }
}

fn parse(value: &str) -> Option<BearerChallenge> {
    let at = scheme(value, "bearer")?;
    let (mut realm, mut service, mut scope) = (None, None, None);
    let mut rest = &value[at..];
    while let Some((name, value, tail)) = parameter(rest) {
        match &*name.to_ascii_lowercase() {
            "realm" => realm = Url::parse(&value).ok(),
            "service" => service = Some(value),
            "scope" => scope = Some(value),
            _ => {}
        }
        rest = tail;
    }
    Some(BearerChallenge {
        realm: realm.filter(|url| url.has_host())?,
        service,
        scope,
    })
}

/// Where the parameters of a scheme begin.
fn scheme(value: &str, name: &str) -> Option<usize> {
    let lower = value.to_ascii_lowercase();
    let mut from = 0;
    while let Some(found) = lower[from..].find(name) {
        let (start, end) = (from + found, from + found + name.len());
        let before = lower[..start].trim_end();
        if (before.is_empty() || before.ends_with(',')) && lower[end..].starts_with(' ') {
            return Some(end);
        }
        from = end;
    }
    None
}

/// The first `NAME=VALUE` or `NAME="VALUE"`, and what follows its comma.
fn parameter(text: &str) -> Option<(&str, String, &str)> {
    let (name, rest) = text.trim_start_matches([' ', ',']).split_once('=')?;
    if name.is_empty() || name.contains([' ', '"']) {
        return None;
    }
    let Some(quoted) = rest.strip_prefix('"') else {
        let (value, rest) = rest.split_once(',').unwrap_or((rest, ""));
        return Some((name, value.trim().to_owned(), rest));
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((name, value, &quoted[at + 1..])),
            '\\' => value.push(letters.next()?.1),
            letter => value.push(letter),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_of_registries_are_read() {
        let hub = "Bearer realm=\"https://auth.example/token\",service=\"registry.example\",\
                   scope=\"repository:a/b:pull,push\"";
        let found = parse(hub).unwrap();
        assert_eq!(found.scope.as_deref(), Some("repository:a/b:pull,push"));
        assert_eq!(
            found.token_url().as_str(),
            "https://auth.example/token?service=registry.example&\
             scope=repository%3Aa%2Fb%3Apull%2Cpush"
        );
        let second = parse("Basic realm=\"x\", bearer realm=\"https://a.example/\\\"t\"").unwrap();
        assert_eq!(second.realm.as_str(), "https://a.example/%22t");
        assert_eq!(second.scope, None);
    }

    #[test]
    fn what_names_no_server_is_no_challenge() {
        for other in [
            "",
            "Basic realm=\"x\"",
            "Bearer",
            "Bearer realm=\"Authentication required\"",
            "Bearer realm=\"https://a.example",
            "Bearer realm=\"file:///etc/passwd\"",
            "Bearer error=\"x\"",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
