//! The pull side of the OCI distribution specification, as containerd, Docker and skopeo use it.
//!
//! | module | purpose |
//! |---|---|
//! | `route` | what a path asks for; pure |
//! | `upstream` | questions to registries, and what they answered |
//! | `manifests` | manifests in the cache |
//! | `errors` | refusals as registries send them |
//!
//! A request names its registry with `?ns=NAME`, as containerd does, or as the first component of the
//! repository; without either it goes to the first registry.
//!
//! Invariant: a manifest and a blob are sent only if the registry says so now, or said so a short
//! time ago and cannot be reached.

mod errors;
mod manifests;
pub(crate) mod route;
mod upstream;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header},
    response::Response,
};
use potluck_core::{Problem, Reason, Sha256};
use potluck_origins::{
    OriginClient,
    client::ApiAnswer,
    registry::{ManifestReference, Registry, RepositoryName},
    secret::Secret,
};
use potluck_peer::cache::Cache;

use self::{
    errors::{VERSION, of_problem, of_registry, refusal},
    manifests::{MAX_MANIFEST, Manifest, Manifests},
    route::{Item, OciRoute},
    upstream::{Fact, KeptFacts, Question, Told, type_of},
};
use crate::{
    config::GatewayConfig,
    objects::Object,
    reply::{OFFLINE, SOURCE, set, sized},
    send::Sender,
};

/// The registry whose images without an organisation have the organisation `library`.
const DOCKER_HUB: &str = "docker.io";

/// Longest list of accepted types that is passed on, in bytes.
const MAX_ACCEPT: usize = 4096;

/// The digest of a manifest or a blob.
const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// The registries.
#[derive(Debug)]
pub(crate) struct Oci {
    registries: Vec<(String, Registry)>,
    facts: KeptFacts,
    manifests: Manifests,
    sender: Sender,
}

impl Oci {
    pub(crate) fn new(
        config: &GatewayConfig,
        client: &OriginClient,
        cache: Cache,
        sender: Sender,
    ) -> Result<Self, Problem> {
        let registries = config.registries.iter().map(|registry| {
            let asked = Registry::new(client.clone(), registry.url.clone())?;
            Ok((registry.name.clone(), asked))
        });
        Ok(Self {
            registries: registries.collect::<Result<_, Problem>>()?,
            facts: KeptFacts::new(config.auth_grace),
            manifests: Manifests::new(cache),
            sender,
        })
    }

    /// Answers a request below `/v2/`.
    pub(crate) async fn answer(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        authorization: Option<Secret>,
    ) -> Response {
        if !matches!(*method, Method::GET | Method::HEAD) {
            let message = "the gateway only reads: push to the registry itself";
            return refusal(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message);
        }
        let invalid = |code, message| refusal(StatusCode::BAD_REQUEST, code, message);
        let (asked, item) = match route::parse(uri.path()) {
            OciRoute::Root => return root(),
            OciRoute::Repository(name, item) => (name, item),
            OciRoute::InvalidName => return invalid("NAME_INVALID", "no repository has this name"),
            OciRoute::InvalidDigest => {
                return invalid("DIGEST_INVALID", "give sha256: and 64 lower-case hex digits");
            }
            OciRoute::InvalidTag => return invalid("MANIFEST_INVALID", "no image has this tag"),
            OciRoute::Unknown => {
                return refusal(
                    StatusCode::NOT_FOUND,
                    "UNSUPPORTED",
                    "the gateway does not have this",
                );
            }
        };
        let namespace = route::namespace(uri.query());
        let Some((name, registry, repository)) = self.choose(namespace.as_deref(), &asked) else {
            let message = match namespace {
                Some(name) => format!("start the gateway with --oci {name}=URL"),
                None => "start the gateway with --oci NAME=URL".to_owned(),
            };
            return refusal(StatusCode::NOT_FOUND, "NAME_UNKNOWN", &message);
        };
        let question = Question {
            registry,
            repository: &repository,
            authorization: authorization.as_ref(),
        };
        match item {
            Item::Manifest(reference) => {
                let accept = accepted(headers);
                let answered = self.manifest(method, name, question, &reference, &accept);
                answered.await.unwrap_or_else(|response| *response)
            }
            Item::Blob(digest) => {
                let answered = self.blob(method, headers, name, question, digest);
                answered.await.unwrap_or_else(|response| *response)
            }
            Item::Tags => self.list(question, &asked, &["tags", "list"], uri).await,
            Item::Referrers(digest) => {
                let digest = format!("sha256:{digest}");
                self.list(question, &asked, &["referrers", &digest], uri).await
            }
        }
    }

    /// The registry of a request, its name, and the repository there.
    fn choose(
        &self,
        namespace: Option<&str>,
        asked: &RepositoryName,
    ) -> Option<(&str, &Registry, RepositoryName)> {
        let find = |wanted: &str| self.registries.iter().find(|(name, _)| name == wanted);
        let by_path = || {
            let (first, rest) = asked.as_str().split_once('/')?;
            Some((find(first)?, rest))
        };
        let ((name, registry), repository) = match namespace {
            Some(namespace) => (find(namespace)?, asked.as_str()),
            None => by_path().or_else(|| Some((self.registries.first()?, asked.as_str())))?,
        };
        let repository = match repository.contains('/') || name != DOCKER_HUB {
            true => RepositoryName::parse(repository)?,
            false => RepositoryName::parse(&format!("library/{repository}"))?,
        };
        Some((name, registry, repository))
    }

    async fn manifest(
        &self,
        method: &Method,
        registry: &str,
        question: Question<'_>,
        reference: &ManifestReference,
        accept: &str,
    ) -> Result<Response, Box<Response>> {
        const UNKNOWN: &str = "MANIFEST_UNKNOWN";
        let failed = |problem: Problem| Box::new(of_problem(&problem, UNKNOWN));
        let refused = |answer: &ApiAnswer| {
            let challenge = question.authorization.is_none();
            Box::new(of_registry(answer, registry, UNKNOWN, challenge))
        };
        let told = self.facts.manifest(question, reference, accept).await;
        let is_offline = match told.map_err(|error| failed(error.into()))? {
            Told::Refused(answer) => return Err(refused(&answer)),
            Told::Granted => false,
            Told::Fact(fact, is_offline) => {
                if let (Method::HEAD, Some(size)) = (method.clone(), fact.size) {
                    let mut response = sized(StatusCode::OK, size, Body::empty());
                    describe(&mut response, &fact.content_type, fact.digest, is_offline);
                    return Ok(response);
                }
                if let Some(manifest) = self.manifests.get(fact.digest).await {
                    let mut response = of_manifest(method, manifest, is_offline);
                    set(response.headers_mut(), SOURCE, "metadata");
                    return Ok(response);
                }
                is_offline
            }
        };
        if is_offline {
            let message = format!("{registry} cannot be reached, and the manifest is not here");
            return Err(failed(Problem::new(Reason::Unreachable, message)));
        }
        let asked = question.manifest(Method::GET, reference, accept).await;
        let (answer, is_gated) = asked.map_err(|error| failed(error.into()))?;
        if answer.status != StatusCode::OK {
            return Err(refused(&answer));
        }
        let manifest = Manifest {
            content_type: type_of(&answer).unwrap_or_else(|| "application/json".to_owned()),
            bytes: answer.bytes,
        };
        let digest = manifest.digest();
        let stated = match reference {
            ManifestReference::Digest(sum) => Some(format!("sha256:{sum}")),
            ManifestReference::Tag(_) => answer
                .headers
                .get(DIGEST)
                .and_then(|value| value.to_str().ok().map(ToOwned::to_owned)),
        };
        if manifest.bytes.len() > MAX_MANIFEST
            || stated.is_some_and(|stated| stated != format!("sha256:{digest}"))
        {
            let message = format!("{registry} sends another manifest than it states");
            return Err(failed(Problem::new(Reason::OriginInvalid, message)));
        }
        self.manifests.put(&manifest).await;
        let fact = Fact {
            digest,
            content_type: manifest.content_type.clone(),
            size: Some(manifest.bytes.len() as u64),
            url: None,
            is_gated,
        };
        self.facts.keep_manifest(question, reference, accept, fact);
        let mut response = of_manifest(method, manifest, false);
        set(response.headers_mut(), SOURCE, "origin");
        Ok(response)
    }

    async fn blob(
        &self,
        method: &Method,
        headers: &HeaderMap,
        registry: &str,
        question: Question<'_>,
        digest: Sha256,
    ) -> Result<Response, Box<Response>> {
        const UNKNOWN: &str = "BLOB_UNKNOWN";
        let failed = |problem: Problem| Box::new(of_problem(&problem, UNKNOWN));
        let told = self.facts.blob(question, digest).await;
        let (fact, is_offline) = match told.map_err(|error| failed(error.into()))? {
            Told::Fact(fact, is_offline) => (fact, is_offline),
            Told::Refused(answer) => {
                let challenge = question.authorization.is_none();
                return Err(Box::new(of_registry(&answer, registry, UNKNOWN, challenge)));
            }
            Told::Granted => unreachable!("a blob has a size"),
        };
        let (Some(size), Some(url)) = (fact.size, fact.url) else {
            unreachable!("facts of blobs have both");
        };
        let mut response = match *method {
            Method::HEAD => sized(StatusCode::OK, size, Body::empty()),
            _ => {
                let object = Object {
                    url,
                    size,
                    sha256: digest,
                    authorization: question.authorization.filter(|_| fact.is_gated).cloned(),
                };
                let tag = format!("\"sha256:{digest}\"");
                let sent = self.sender.send(headers, object, &tag).await;
                sent.map_err(failed)?
            }
        };
        describe(&mut response, &fact.content_type, digest, is_offline);
        set(response.headers_mut(), header::ACCEPT_RANGES, "bytes");
        Ok(response)
    }

    /// A list, as the registry sends it.
    async fn list(
        &self,
        question: Question<'_>,
        asked: &RepositoryName,
        path: &[&str],
        uri: &Uri,
    ) -> Response {
        let ask = |credentials| {
            question
                .registry
                .list(question.repository, path, uri.query(), credentials)
        };
        let first = match (ask(None).await, question.authorization) {
            (Ok(answer), Some(credentials)) if answer.status.is_client_error() => {
                ask(Some(credentials)).await
            }
            (first, _) => first,
        };
        let answer = match first {
            Ok(answer) => answer,
            Err(error) => return of_problem(&error.into(), "NAME_UNKNOWN"),
        };
        if answer.status != StatusCode::OK {
            let challenge = question.authorization.is_none();
            let host = question.registry.host();
            return of_registry(&answer, &host, "NAME_UNKNOWN", challenge);
        }
        let mut response = sized(StatusCode::OK, answer.bytes.len() as u64, Body::empty());
        let own = response.headers_mut();
        for name in [
            header::CONTENT_TYPE,
            HeaderName::from_static("oci-filters-applied"),
        ] {
            if let Some(value) = answer.headers.get(&name) {
                own.insert(name, value.clone());
            }
        }
        // The next page, at this gateway.
        let link = answer
            .headers
            .get(header::LINK)
            .and_then(|link| link.to_str().ok());
        if let Some(link) = link {
            let there = format!("/v2/{}/", question.repository.as_str());
            let here = format!("/v2/{}/", asked.as_str());
            let link = link.replace(question.registry.base(), "").replace(&there, &here);
            set(own, header::LINK, &link);
        }
        own.insert(VERSION, HeaderValue::from_static("registry/2.0"));
        *response.body_mut() = Body::from(answer.bytes);
        response
    }
}

/// The types that a client accepts, which may be in several headers.
fn accepted(headers: &HeaderMap) -> String {
    let values = headers.get_all(header::ACCEPT).iter();
    let values: Vec<&str> = values.filter_map(|value| value.to_str().ok()).collect();
    let mut accepted = values.join(", ");
    if accepted.len() > MAX_ACCEPT {
        accepted.clear();
    }
    accepted
}

fn root() -> Response {
    let mut response = sized(StatusCode::OK, 2, Body::from("{}"));
    let headers = response.headers_mut();
    set(headers, header::CONTENT_TYPE, "application/json");
    set(headers, VERSION, "registry/2.0");
    response
}

fn of_manifest(method: &Method, manifest: Manifest, is_offline: bool) -> Response {
    let digest = manifest.digest();
    let len = manifest.bytes.len() as u64;
    let body = match *method {
        Method::HEAD => Body::empty(),
        _ => Body::from(manifest.bytes),
    };
    let mut response = sized(StatusCode::OK, len, body);
    describe(&mut response, &manifest.content_type, digest, is_offline);
    response
}

fn describe(response: &mut Response, content_type: &str, digest: Sha256, is_offline: bool) {
    let headers = response.headers_mut();
    let digest = format!("sha256:{digest}");
    set(headers, header::CONTENT_TYPE, content_type);
    set(headers, header::ETAG, &format!("\"{digest}\""));
    set(headers, DIGEST, &digest);
    set(headers, VERSION, "registry/2.0");
    if is_offline {
        set(headers, OFFLINE, "1");
    }
}
