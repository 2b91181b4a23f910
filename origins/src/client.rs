//! Requests to an origin: ranges, redirects, limits.
//!
//! Invariants:
//!
//! - An [`OriginBody`] yields exactly the requested bytes, or an error.
//! - Each hop of a redirect passes the policy, and credentials stay with the named host.
//! - At most [`OriginSettings::max_requests`] requests run at a time; a body counts until it is read
//!   or dropped.
//!
//! Non-goal: retries. A caller that has other providers decides when to ask again.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use reqwest::{Client, RequestBuilder, Response, redirect};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::Url;

use crate::{
    challenge::BearerChallenge,
    error::OriginError,
    policy::{self, Reach, check_hop, host_of, shown},
    reference::FileUrl,
    reply::{self, ReplyHead, examine},
    resolver::PublicResolver,
    secret::Secret,
    tokens::{TokenKey, TokenStore},
    transport::{answered, read_document, sensitive, tls_config},
};

pub use crate::{
    body::OriginBody,
    file::OriginFile,
    transport::{IDLE_TIMEOUT, MAX_DOCUMENT},
};

/// Longest chain of redirects. Hubs need one or two.
const MAX_REDIRECTS: usize = 8;

/// Time limit for a connection, including TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// How long an idle connection is kept.
const POOL_TIMEOUT: Duration = Duration::from_secs(60);

/// Requests at a time unless set otherwise: what browsers use for one server. An origin that limits
/// each connection is then used well, and a hub does not take the peer for an attack.
pub const DEFAULT_MAX_REQUESTS: usize = 6;

/// Maximum tokens that one request asks for: several requests at once share a token, and a registry may
/// accept each only a few times.
const MAX_TOKENS: u32 = 4;

/// Bytes before a requested range that are read and dropped if an origin ignores ranges. Small
/// files can so be had from any server.
const MAX_SKIPPED: u64 = 16 << 20;

/// Settings of a client.
#[derive(Debug, Clone)]
pub struct OriginSettings {
    /// Certificates that are trusted in addition to those of the system, as DER.
    pub extra_roots: Vec<Vec<u8>>,
    /// Hosts that redirects may lead to although they are in a private network.
    pub trusted_hosts: Vec<String>,
    /// Maximum number of requests at a time.
    pub max_requests: usize,
}

impl Default for OriginSettings {
    fn default() -> Self {
        Self {
            extra_roots: Vec::new(),
            trusted_hosts: Vec::new(),
            max_requests: DEFAULT_MAX_REQUESTS,
        }
    }
}

/// Sends requests to origins. Cheap to clone; clones share connections and limits.
#[derive(Debug, Clone)]
pub struct OriginClient {
    shared: Arc<ClientShared>,
}

#[derive(Debug)]
struct ClientShared {
    /// For hosts that the operator named.
    named: Client,
    /// For hosts of this machine.
    loopback: Client,
    /// For hosts that a redirect led to.
    public: Client,
    trusted_hosts: Vec<String>,
    permits: Arc<Semaphore>,
    tokens: TokenStore,
}

/// A request to an API.
#[derive(Debug)]
pub struct ApiRequest<'a> {
    /// The method.
    pub method: Method,
    /// The address.
    pub url: &'a Url,
    /// What to send as `Authorization`.
    pub authorization: Option<&'a Secret>,
    /// Which types of answers are wanted.
    pub accept: Option<&'a str>,
    /// The type and the bytes of a body.
    pub body: Option<(&'a str, Bytes)>,
}

impl<'a> ApiRequest<'a> {
    /// A request without a body, for any type of answer.
    pub const fn new(method: Method, url: &'a Url, authorization: Option<&'a Secret>) -> Self {
        Self {
            method,
            url,
            authorization,
            accept: None,
            body: None,
        }
    }
}

/// The answer of an API.
#[derive(Debug, Clone)]
pub struct ApiAnswer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub bytes: Vec<u8>,
}

/// What the requests of one chain of redirects have in common.
struct Chain<'a> {
    request: ApiRequest<'a>,
    range: Option<&'a Range<u64>>,
    validator: Option<&'a str>,
}

impl<'a> Chain<'a> {
    /// Requests for a range of a file, or for all of it.
    fn of_file(file: &'a OriginFile, range: Option<&'a Range<u64>>) -> Self {
        Self {
            request: ApiRequest::new(Method::GET, &file.url, file.authorization.as_ref()),
            range,
            validator: file.validator.as_deref(),
        }
    }

    const fn of_api(request: ApiRequest<'a>) -> Self {
        Self {
            request,
            range: None,
            validator: None,
        }
    }
}

/// A response, and where it came from.
struct Answer {
    response: Response,
    /// Whether a redirect was followed.
    is_redirected: bool,
    url: Url,
}

impl OriginClient {
    /// A client with these settings.
    ///
    /// # Errors
    /// [`OriginError::Refused`] if a certificate cannot be used.
    pub fn new(settings: OriginSettings) -> Result<Self, OriginError> {
        let tls = tls_config(&settings.extra_roots)?;
        let builder = || {
            Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .user_agent(concat!("potluck/", env!("CARGO_PKG_VERSION")))
                .redirect(redirect::Policy::none())
                .connect_timeout(CONNECT_TIMEOUT)
                .pool_idle_timeout(POOL_TIMEOUT)
                .referer(false)
        };
        let build = |builder: reqwest::ClientBuilder| {
            builder.build().map_err(|error| {
                OriginError::Refused(format!("cannot set up the HTTP client: {error}"))
            })
        };
        Ok(Self {
            shared: Arc::new(ClientShared {
                named: build(builder())?,
                loopback: build(builder().no_proxy())?,
                public: build(builder().dns_resolver(Arc::new(PublicResolver)))?,
                trusted_hosts: settings.trusted_hosts,
                permits: Arc::new(Semaphore::new(settings.max_requests.max(1))),
                tokens: TokenStore::default(),
            }),
        })
    }

    /// Looks a file up: its size, its validator, and whether ranges are served.
    ///
    /// # Errors
    /// As [`OriginClient::open`]; [`OriginError::Invalid`] if the origin does not tell the size.
    pub async fn look_up(
        &self,
        file: &FileUrl,
        authorization: Option<Secret>,
    ) -> Result<OriginFile, OriginError> {
        let mut found = OriginFile::new(file.url.clone(), 0, file.sha256, authorization);
        let (range, host) = (0..1, found.host());
        let _permit = self.acquire().await;
        let Answer { response, .. } =
            self.send(&Chain::of_file(&found, Some(&range)), None).await?;
        found.validator = reply::strong_validator(response.headers());
        let size = match examine(response.status(), response.headers(), &range) {
            ReplyHead::Range { size } => size,
            ReplyHead::Whole { size } => {
                found.has_ranges = false;
                size
            }
            // A range of an empty file is never satisfiable.
            ReplyHead::Unsatisfiable { size: Some(0) } => Some(0),
            other => return Err(failure(&found, other, response.headers())),
        };
        found.size = size.ok_or_else(|| OriginError::Invalid {
            host,
            what: "it does not tell the size of the file".into(),
        })?;
        Ok(found)
    }

    /// Opens a range of a file, which must not be empty and must lie inside it. Waits for a permit.
    ///
    /// # Errors
    /// Any of [`OriginError`]; [`OriginError::Changed`] if the content is not what was looked up.
    pub async fn open(
        &self,
        file: &OriginFile,
        range: Range<u64>,
    ) -> Result<OriginBody, OriginError> {
        let permit = self.acquire().await;
        let chain = Chain::of_file(file, Some(&range));
        let mut answer = self.send(&chain, file.recent_location()).await?;
        let may_have_expired =
            matches!(answer.response.status().as_u16(), 400 | 401 | 403 | 404 | 410);
        if may_have_expired && file.forget_location() && answer.url != file.url {
            answer = self.send(&chain, None).await?;
        }
        let Answer {
            response,
            is_redirected,
            url,
        } = answer;
        let head = examine(response.status(), response.headers(), &range);
        let skip = match &head {
            ReplyHead::Range { size } if size.is_none_or(|size| size == file.size) => 0,
            ReplyHead::Whole { size } if size.is_none_or(|size| size == file.size) => range.start,
            ReplyHead::Range { .. } | ReplyHead::Whole { .. } | ReplyHead::Unsatisfiable { .. } => {
                return Err(changed(file));
            }
            _ => return Err(failure(file, head, response.headers())),
        };
        let validator = reply::strong_validator(response.headers());
        // A redirect leads to storage with validators of its own.
        if !is_redirected
            && let (Some(before), Some(now)) = (&file.validator, &validator)
            && before != now
        {
            return Err(changed(file));
        }
        if skip > MAX_SKIPPED {
            return Err(OriginError::Invalid {
                host: file.host(),
                what: "it ignores ranges, which a file of this size needs".into(),
            });
        }
        if is_redirected {
            file.set_location(url);
        }
        Ok(OriginBody {
            response,
            host: file.host(),
            skip,
            left: range.end - range.start,
            is_whole: matches!(head, ReplyHead::Whole { .. }),
            _permit: permit,
        })
    }

    /// Reads a document, such as an answer of an API, of at most [`MAX_DOCUMENT`] bytes.
    ///
    /// # Errors
    /// Any of [`OriginError`].
    pub(crate) async fn document(
        &self,
        url: &Url,
        authorization: Option<&Secret>,
    ) -> Result<(Vec<u8>, HeaderMap), OriginError> {
        let file = OriginFile::new(url.clone(), 0, None, authorization.cloned());
        let _permit = self.acquire().await;
        let Answer { mut response, .. } = self.send(&Chain::of_file(&file, None), None).await?;
        if response.status() != StatusCode::OK {
            let head = ReplyHead::Status(response.status());
            return Err(failure(&file, head, response.headers()));
        }
        let bytes = read_document(&mut response, &file.host()).await?;
        Ok((bytes, response.headers().clone()))
    }

    /// Sends a request to an API and returns the answer as it is, without following redirects.
    ///
    /// # Errors
    /// [`OriginError::Unreachable`], [`OriginError::TimedOut`] and [`OriginError::Refused`];
    /// [`OriginError::Invalid`] for an answer of more than [`MAX_DOCUMENT`] bytes.
    pub async fn exchange(&self, request: ApiRequest<'_>) -> Result<ApiAnswer, OriginError> {
        let (url, host) = (request.url, host_of(request.url));
        let _permit = self.acquire().await;
        let response = self.send_once(&Chain::of_api(request), url).await?;
        read_answer(response, &host).await
    }

    /// Sends a request to an API, follows redirects, and returns the last answer as it is.
    ///
    /// # Errors
    /// As [`Self::exchange`].
    pub(crate) async fn follow(&self, request: ApiRequest<'_>) -> Result<ApiAnswer, OriginError> {
        let host = host_of(request.url);
        let _permit = self.acquire().await;
        let Answer { response, .. } = self.send(&Chain::of_api(request), None).await?;
        read_answer(response, &host).await
    }

    fn client_for(&self, origin: &Url, url: &Url) -> Result<&Client, OriginError> {
        Ok(match check_hop(origin, url, &self.shared.trusted_hosts)? {
            Reach::Named => &self.shared.named,
            Reach::Loopback => &self.shared.loopback,
            Reach::Public => &self.shared.public,
        })
    }

    async fn acquire(&self) -> OwnedSemaphorePermit {
        let permits = Arc::clone(&self.shared.permits);
        permits
            .acquire_owned()
            .await
            .expect("the semaphore is never closed")
    }

    /// Sends a request and follows redirects. `location`: start where an earlier redirect led.
    async fn send(&self, chain: &Chain<'_>, location: Option<Url>) -> Result<Answer, OriginError> {
        let origin = chain.request.url;
        let mut is_redirected = location.is_some();
        let mut url = location.unwrap_or_else(|| origin.clone());
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send_once(chain, &url).await?;
            if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED
            {
                return Ok(Answer {
                    response,
                    is_redirected,
                    url,
                });
            }
            url =
                redirect_target(&url, response.headers()).ok_or_else(|| OriginError::Invalid {
                    host: host_of(&url),
                    what: "a redirect without a valid target".into(),
                })?;
            is_redirected = true;
        }
        Err(OriginError::Refused(format!(
            "{} redirects more than {MAX_REDIRECTS} times",
            host_of(origin)
        )))
    }

    /// Sends one request. If the named host asks for a token of its token server, it is sent again
    /// with one, and with another if that has expired meanwhile.
    async fn send_once(&self, chain: &Chain<'_>, url: &Url) -> Result<Response, OriginError> {
        let origin = chain.request.url;
        let is_named_host = (url.scheme(), url.host(), url.port_or_known_default())
            == (origin.scheme(), origin.host(), origin.port_or_known_default());
        let credentials = chain.request.authorization.filter(|_| is_named_host);
        let key = TokenKey::new(url, credentials);
        let mut token = self.shared.tokens.get(&key).filter(|_| is_named_host);
        let host = host_of(url);
        let may_ask = is_named_host && credentials.is_none_or(|secret| !secret.is_bearer());
        let mut left = MAX_TOKENS;
        loop {
            let request = self.request(chain, url, token.as_ref().or(credentials))?;
            let response = answered(&host, request).await?;
            if response.status() != StatusCode::UNAUTHORIZED || !may_ask || left == 0 {
                return Ok(response);
            }
            let Some(challenge) = BearerChallenge::find(response.headers()) else {
                return Ok(response);
            };
            let granted = self.token(origin, key, &challenge, credentials, token);
            match granted.await? {
                Some(granted) => token = Some(granted),
                None => return Ok(response),
            }
            left -= 1;
        }
    }

    fn request(
        &self,
        chain: &Chain<'_>,
        url: &Url,
        authorization: Option<&Secret>,
    ) -> Result<RequestBuilder, OriginError> {
        let ApiRequest {
            method,
            url: origin,
            accept,
            body,
            ..
        } = &chain.request;
        let mut request = self
            .client_for(origin, url)?
            .request(method.clone(), url.clone())
            .header(header::ACCEPT_ENCODING, "identity");
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, sensitive(authorization)?);
        }
        if let Some(accept) = accept {
            request = request.header(header::ACCEPT, *accept);
        }
        if let Some((kind, bytes)) = body {
            request = request.header(header::CONTENT_TYPE, *kind).body(bytes.clone());
        }
        if let Some(range) = chain.range {
            request =
                request.header(header::RANGE, format!("bytes={}-{}", range.start, range.end - 1));
            // Storage behind a redirect has other validators.
            if let Some(validator) = chain.validator.filter(|_| url == *origin) {
                request = request.header(header::IF_RANGE, validator);
            }
        }
        Ok(request)
    }

    /// A token for this challenge, from its token server or from another request; `None` if the
    /// server refuses. `refused`: the token that the origin did not take.
    async fn token(
        &self,
        origin: &Url,
        key: TokenKey,
        challenge: &BearerChallenge,
        credentials: Option<&Secret>,
        refused: Option<Secret>,
    ) -> Result<Option<Secret>, OriginError> {
        let tokens = &self.shared.tokens;
        let _turn = tokens.turn(&key).await;
        if let Some(token) = tokens.get(&key).filter(|token| Some(token) != refused.as_ref()) {
            return Ok(Some(token));
        }
        let url = challenge.token_url();
        let request = ApiRequest::new(Method::GET, origin, None);
        let request = self.request(&Chain::of_api(request), &url, credentials)?;
        let host = host_of(&url);
        let mut response = answered(&host, request).await?;
        let status = response.status();
        if status.as_u16() == 429 || status.is_server_error() {
            let retry_after = reply::retry_after(response.headers());
            return Err(OriginError::Busy {
                host,
                status: status.as_u16(),
                retry_after,
            });
        }
        if !status.is_success() {
            return Ok(None);
        }
        let bytes = read_document(&mut response, &host).await?;
        let invalid = || OriginError::Invalid {
            host: host.clone(),
            what: "its token server sends no token".into(),
        };
        let answer = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
        tokens.put(key, &answer).map(Some).ok_or_else(invalid)
    }
}

async fn read_answer(mut response: Response, host: &str) -> Result<ApiAnswer, OriginError> {
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = read_document(&mut response, host).await?;
    Ok(ApiAnswer {
        status,
        headers,
        bytes,
    })
}

fn redirect_target(from: &Url, headers: &HeaderMap) -> Option<Url> {
    let location = headers.get(header::LOCATION)?.to_str().ok()?;
    let mut url = from.join(location).ok()?;
    url.set_fragment(None);
    (url.username().is_empty() && url.password().is_none()).then_some(url)
}

fn changed(file: &OriginFile) -> OriginError {
    OriginError::Changed {
        host: file.host(),
        what: shown(&file.url),
    }
}

/// The error for a response that has none of the expected forms.
fn failure(file: &OriginFile, head: ReplyHead, headers: &HeaderMap) -> OriginError {
    let (host, what) = (file.host(), file.url.path().to_owned());
    match head {
        ReplyHead::Status(status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)) => {
            let advice = match &file.authorization {
                Some(_) => "the token may be expired, or lack access to this file",
                None => "give credentials in HF_TOKEN or ~/.netrc",
            };
            OriginError::Denied {
                host,
                what,
                status: status.as_u16(),
                advice: advice.into(),
            }
        }
        ReplyHead::Status(status) if status.as_u16() == 429 || status.is_server_error() => {
            OriginError::Busy {
                host,
                status: status.as_u16(),
                retry_after: reply::retry_after(headers),
            }
        }
        ReplyHead::Status(status @ (StatusCode::NOT_FOUND | StatusCode::GONE)) => {
            OriginError::NotFound {
                host,
                what,
                status: status.as_u16(),
            }
        }
        ReplyHead::Invalid(what) => OriginError::Invalid { host, what },
        ReplyHead::Status(status) => OriginError::Invalid {
            host,
            what: format!("HTTP {}", status.as_u16()),
        },
        ReplyHead::Range { .. } | ReplyHead::Whole { .. } | ReplyHead::Unsatisfiable { .. } => {
            changed(file)
        }
    }
}

/// Whether credentials for this URL may be sent: over TLS, or to loopback.
pub fn may_carry_credentials(url: &Url) -> bool {
    policy::check_origin(url).is_ok()
}
