//! The answer to each request.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::Response,
};
use potluck_core::{Problem, Reason};
use potluck_origins::{OriginError, client::ApiAnswer, secret::Secret};

use crate::{
    config::GatewayConfig,
    host,
    objects::{Object, SmallObject},
    oci::{self, Oci},
    range::wanted,
    reply::{OFFLINE, SOURCE, refusal, set, set_retry_after, sized, status_of},
    route::{self, FileRoute, Route},
    send::{Sender, small_response},
    upstream::{FileFacts, Passed, Upstream},
};

/// Largest body of a request, in bytes: a list of paths.
const MAX_REQUEST: usize = 1 << 20;

/// What all requests share.
#[derive(Debug)]
pub(crate) struct Gateway {
    config: GatewayConfig,
    address: SocketAddr,
    upstream: Upstream,
    sender: Sender,
    oci: Oci,
}

impl Gateway {
    pub(crate) fn new(
        config: GatewayConfig,
        address: SocketAddr,
        upstream: Upstream,
        sender: Sender,
        oci: Oci,
    ) -> Self {
        Self {
            config,
            address,
            upstream,
            sender,
            oci,
        }
    }
}

/// Answers a request.
pub(crate) async fn answer(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    if !host::is_own(host, gateway.address, &gateway.config.hosts) {
        let message = "this host is not a name of the gateway: start it with --host NAME";
        return refusal(StatusCode::FORBIDDEN, message);
    }
    let authorization = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .map(|value| Secret::header(value.to_owned()));
    if oci::route::is_meant(request.uri().path()) {
        return gateway
            .oci
            .answer(request.method(), request.uri(), request.headers(), authorization)
            .await;
    }
    match (request.method().clone(), route::parse(request.uri().path())) {
        (Method::GET | Method::HEAD | Method::POST, Route::Api { is_immutable }) => {
            gateway.api(request, is_immutable, authorization).await
        }
        (method @ (Method::GET | Method::HEAD), Route::File(file)) => {
            gateway
                .file(&method, request.headers(), &file, authorization)
                .await
        }
        (_, Route::Hidden | Route::Unknown) => refusal(StatusCode::NOT_FOUND, "not found"),
        _ => refusal(StatusCode::METHOD_NOT_ALLOWED, "the gateway only reads"),
    }
}

impl Gateway {
    async fn api(
        &self,
        request: Request,
        is_immutable: bool,
        authorization: Option<Secret>,
    ) -> Response {
        let (head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let kind = head
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .unwrap_or("application/octet-stream");
        let Ok(bytes) = axum::body::to_bytes(body, MAX_REQUEST).await else {
            return refusal(StatusCode::PAYLOAD_TOO_LARGE, "the request is too large");
        };
        let body = (!bytes.is_empty()).then_some((kind, bytes));
        let authorization = authorization.as_ref();
        let asked = self
            .upstream
            .api(head.method, path, is_immutable, authorization, body)
            .await;
        match asked {
            Ok((answer, is_kept)) => {
                let mut response = self.pass(answer);
                if is_kept {
                    response
                        .headers_mut()
                        .insert(SOURCE, HeaderValue::from_static("metadata"));
                }
                response
            }
            Err(error) => of_origin(&error),
        }
    }

    /// The hub's answer, without what leads past the gateway.
    fn pass(&self, answer: ApiAnswer) -> Response {
        let headers = self.upstream.visible_headers(&answer.headers);
        // A redirect would lead past the gateway.
        let status = match answer.status.is_redirection() {
            true => StatusCode::BAD_GATEWAY,
            false => answer.status,
        };
        let mut response = Response::new(Body::from(answer.bytes));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    async fn file(
        &self,
        method: &Method,
        headers: &HeaderMap,
        route: &FileRoute,
        authorization: Option<Secret>,
    ) -> Response {
        let (facts, is_offline) = match self.upstream.file(route, authorization.as_ref()).await {
            Ok((Passed::Fine(facts), is_offline)) => (facts, is_offline),
            Ok((Passed::Refused(answer), _)) => return self.pass(answer),
            Err(error) => return of_origin(&error),
        };
        let mut response = match *method {
            Method::HEAD => sized(StatusCode::OK, facts.size, Body::empty()),
            _ => {
                let authorization = authorization.filter(|_| facts.is_gated);
                match self.content(headers, &facts, authorization).await {
                    Ok(response) => response,
                    Err(problem) => return of_problem(&problem),
                }
            }
        };
        let tag = format!("\"{}\"", facts.etag);
        let own = response.headers_mut();
        let size = facts.size.to_string();
        for (name, value) in [
            (header::ETAG, tag.as_str()),
            (HeaderName::from_static("x-linked-etag"), tag.as_str()),
            (HeaderName::from_static("x-linked-size"), &size),
            (HeaderName::from_static("x-repo-commit"), facts.commit.as_str()),
            (header::ACCEPT_RANGES, "bytes"),
        ] {
            set(own, name, value);
        }
        if is_offline {
            own.insert(OFFLINE, HeaderValue::from_static("1"));
        }
        response
    }

    async fn content(
        &self,
        headers: &HeaderMap,
        facts: &FileFacts,
        authorization: Option<Secret>,
    ) -> Result<Response, Problem> {
        let tag = format!("\"{}\"", facts.etag);
        let mut blob = [0; 20];
        if hex::decode_to_slice(&facts.etag, &mut blob).is_ok() {
            let object = SmallObject {
                url: facts.url.clone(),
                size: facts.size,
                blob,
                authorization,
            };
            let (bytes, is_kept) = self.sender.objects().small(&object).await?;
            return Ok(small_response(bytes, is_kept, &wanted(headers, facts.size, &tag)));
        }
        let invalid = || Problem::new(Reason::OriginInvalid, "the hub states no SHA-256");
        let object = Object {
            url: facts.url.clone(),
            size: facts.size,
            sha256: facts.etag.parse().map_err(|_| invalid())?,
            authorization,
        };
        self.sender.send(headers, object, &tag).await
    }
}

fn of_origin(error: &OriginError) -> Response {
    of_problem(&Problem::from(error.clone()))
}

fn of_problem(problem: &Problem) -> Response {
    let mut response = refusal(status_of(problem), &problem.message);
    set_retry_after(&mut response, problem);
    response
}
