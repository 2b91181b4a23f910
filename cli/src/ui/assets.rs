//! The files of the page, which are part of the program.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header::CONTENT_TYPE};

/// A file of the page.
#[derive(Debug)]
pub(super) struct Asset {
    /// Its path below the folder of the session.
    pub(super) path: &'static str,
    content_type: &'static str,
    text: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! assets {
    ($($path:literal, $file:literal, $content_type:ident;)*) => {
        &[$(Asset {
            path: $path,
            content_type: $content_type,
            text: include_str!(concat!("../../page/", $file)),
        }),*]
    };
}

/// All files of the page.
pub(super) const ASSETS: &[Asset] = assets! {
    "/", "index.html", HTML;
    "/style.css", "style.css", CSS;
    "/icon.svg", "icon.svg", SVG;
    "/main.js", "main.js", SCRIPT;
    "/calls.js", "calls.js", SCRIPT;
    "/dom.js", "dom.js", SCRIPT;
    "/format.js", "format.js", SCRIPT;
    "/downloads.js", "downloads.js", SCRIPT;
    "/card.js", "card.js", SCRIPT;
    "/map.js", "map.js", SCRIPT;
    "/overview.js", "overview.js", SCRIPT;
    "/find.js", "find.js", SCRIPT;
    "/library.js", "library.js", SCRIPT;
    "/network.js", "network.js", SCRIPT;
    "/peers.js", "peers.js", SCRIPT;
    "/limits.js", "limits.js", SCRIPT;
};

/// The page for a browser without a session. It has no script.
pub(super) const NO_SESSION: Asset = Asset {
    path: "/",
    content_type: HTML,
    text: include_str!("../../page/no-session.html"),
};

/// Opens the page from a link on another site: it loads the page again, this time from its own site, and
/// so with the cookie.
pub(super) const CONTINUE: Asset = Asset {
    path: "/",
    content_type: HTML,
    text: include_str!("../../page/continue.html"),
};

impl IntoResponse for &Asset {
    fn into_response(self) -> Response {
        let mut response = self.text.into_response();
        let content_type = HeaderValue::from_static(self.content_type);
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        response
    }
}
