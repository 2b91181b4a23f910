//! The paths of the page.
//!
//! `/` exchanges the token for the session. Everything else is below the session's folder.

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, RawQuery, State},
    middleware,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use http::{
    HeaderValue, StatusCode,
    header::{LOCATION, SET_COOKIE},
};

use super::{
    PageSources, api,
    assets::{ASSETS, NO_SESSION},
    events,
    guard::{self, PageHosts},
    session::{Exchange, Session},
};

/// Maximum bytes of a request's body: a few fields.
const MAX_BODY: usize = 16 * 1024;

/// All paths.
pub(super) fn router(session: Arc<Session>, hosts: PageHosts, sources: PageSources) -> Router {
    let mut page = Router::new();
    for asset in ASSETS {
        page = page.route(asset.path, get(async move || asset.into_response()));
    }
    let page = page
        .route("/events", get(events::stream))
        .route("/api/library", get(api::library))
        .route("/api/peers", get(api::peers))
        .route("/api/search", get(api::search))
        .route("/api/transfers", post(api::start))
        .route("/api/transfers/{number}", get(api::explain))
        .route("/api/transfers/{number}/{action}", post(api::change))
        .route("/api/limits", post(api::set_limits))
        .with_state(sources)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(
            (Arc::clone(&session), hosts.clone()),
            guard::check_session,
        ));
    let folder = session.folder();
    Router::new()
        .route("/", get(open))
        .with_state(session)
        // `nest` leaves out the path with a slash at its end.
        .nest_service(&folder, page)
        .layer(middleware::from_fn_with_state(hosts, guard::check_host))
}

/// Exchanges the token for the session.
async fn open(State(session): State<Arc<Session>>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    let token = pairs.find(|(name, _)| name == "token").map(|(_, token)| token);
    if session.exchange(&token.unwrap_or_default()) != Exchange::Accepted {
        return (StatusCode::UNAUTHORIZED, &NO_SESSION).into_response();
    }
    let mut response = StatusCode::SEE_OTHER.into_response();
    for (name, value) in [
        (LOCATION, format!("{}/", session.folder())),
        (SET_COOKIE, session.set_cookie()),
    ] {
        let value = HeaderValue::try_from(value).expect("hex digits are valid in a header");
        response.headers_mut().insert(name, value);
    }
    response
}
