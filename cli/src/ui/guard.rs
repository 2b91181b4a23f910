//! Refuses requests of other sites, and sets the headers of every answer.
//!
//! | attack | answer |
//! |---|---|
//! | another site whose name resolves to 127.0.0.1 (DNS rebinding) | `Host` must be the address of the page |
//! | another site that sends a form or a request (CSRF) | the cookie is `SameSite=Strict`, and a change needs the page's `Origin` |
//! | a name that is markup | the policy forbids inline scripts, and text is never parsed as HTML |
//! | a frame around the page | the policy forbids it |

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{
        CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, HeaderName, ORIGIN, REFERRER_POLICY,
        X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
    },
};

use super::{assets::CONTINUE, session::Session};

/// What the page may load and do: its own files, and calls to its own server.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

/// The headers of every answer.
const HEADERS: [(HeaderName, &str); 7] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (X_FRAME_OPTIONS, "DENY"),
    (REFERRER_POLICY, "no-referrer"),
    (CACHE_CONTROL, "no-store"),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
];

/// The names of the page's server in requests.
#[derive(Debug, Clone)]
pub(super) struct PageHosts(Arc<[String]>);

impl PageHosts {
    /// The names of a server at this address: the address and `localhost`, with its port.
    pub(super) fn new(address: SocketAddr) -> Self {
        let mut hosts = vec![address.to_string(), format!("localhost:{}", address.port())];
        // Browsers leave out the port of HTTP.
        if address.port() == 80 {
            let bare = hosts.iter().filter_map(|host| host.strip_suffix(":80"));
            hosts.extend(bare.map(ToOwned::to_owned).collect::<Vec<_>>());
        }
        Self(hosts.into())
    }

    /// Whether a request is for this server.
    fn is_host_of(&self, headers: &HeaderMap) -> bool {
        let host = the_only(headers, &HOST);
        host.is_some_and(|host| self.0.iter().any(|ours| ours.eq_ignore_ascii_case(host)))
    }

    /// Whether a request comes from a page of this server.
    fn is_origin_of(&self, headers: &HeaderMap) -> bool {
        let origin = the_only(headers, &ORIGIN);
        let host = origin.and_then(|origin| origin.strip_prefix("http://"));
        host.is_some_and(|host| self.0.iter().any(|ours| ours == host))
    }
}

/// The value of a header, if there is one and only one.
fn the_only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Refuses requests for other hosts, and sets the headers of every answer.
pub(super) async fn check_host(
    State(hosts): State<PageHosts>,
    request: Request,
    next: Next,
) -> Response {
    let authority = request.uri().authority();
    let is_ours =
        authority.is_none_or(|authority| hosts.0.iter().any(|ours| ours == authority.as_str()));
    let mut response = match is_ours && hosts.is_host_of(request.headers()) {
        true => next.run(request).await,
        false => refuse("this page answers only at the address that `potluck ui` printed\n"),
    };
    for (name, value) in HEADERS {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Refuses requests without the session's cookie, and changes that another page requests.
pub(super) async fn check_session(
    State((session, hosts)): State<(Arc<Session>, PageHosts)>,
    request: Request,
    next: Next,
) -> Response {
    if !session.admits(request.headers()) {
        let site = request.headers().get("sec-fetch-site");
        if request.uri().path() == "/" && site.is_some_and(|site| site == "cross-site") {
            return (&CONTINUE).into_response();
        }
        return (
            StatusCode::UNAUTHORIZED,
            "this browser has no session: run `potluck ui` and open the link that it prints\n",
        )
            .into_response();
    }
    let is_change = !matches!(*request.method(), Method::GET | Method::HEAD);
    if is_change && !hosts.is_origin_of(request.headers()) {
        return refuse("only the page itself may change anything\n");
    }
    next.run(request).await
}

fn refuse(why: &'static str) -> Response {
    (StatusCode::FORBIDDEN, why).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_the_own_address_is_a_host() {
        let hosts = PageHosts::new(SocketAddr::from(([127, 0, 0, 1], 4567)));
        let is_host = |values: &[&str]| hosts.is_host_of(&headers(HOST, values));
        assert!(is_host(&["127.0.0.1:4567"]) && is_host(&["LocalHost:4567"]));
        for other in [
            "127.0.0.1",
            "127.0.0.1:80",
            "evil.example:4567",
            "localhost.evil.example:4567",
            "",
        ] {
            assert!(!is_host(&[other]), "{other}");
        }
        assert!(!is_host(&["127.0.0.1:4567", "evil.example"]) && !is_host(&[]));
        let v6 = PageHosts::new(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 80)));
        for ours in ["[::1]:80", "[::1]", "localhost"] {
            assert!(v6.is_host_of(&headers(HOST, &[ours])), "{ours}");
        }
    }

    #[test]
    fn only_the_own_page_is_an_origin() {
        let hosts = PageHosts::new(SocketAddr::from(([127, 0, 0, 1], 4567)));
        let is_origin = |values: &[&str]| hosts.is_origin_of(&headers(ORIGIN, values));
        assert!(is_origin(&["http://127.0.0.1:4567"]));
        for other in [
            "null",
            "http://127.0.0.1:4568",
            "https://127.0.0.1:4567",
            "http://evil.example",
        ] {
            assert!(!is_origin(&[other]), "{other}");
        }
        assert!(!is_origin(&[]));
    }
}
