//! Checks the list lengths of `Register` and `Unregister` requests before they are decoded.
//!
//! All other calls go to the generated service. [`potluck_core::grpc::counting_codec`] explains the
//! reason. Non-goal: validation of the list items.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use potluck_core::{
    Problem,
    grpc::{
        counting_codec::{CountingCodec, list_items},
        transport::MAX_MESSAGE,
    },
    proto::v1::{self, index_service_server::IndexService},
};
use prost::Message;
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen,
    server::{Grpc, NamedService, UnaryService},
};

use crate::grpc::{
    api::IndexApi,
    request::{check_batch, check_names},
};

/// Request paths (`Path` in the gRPC over HTTP/2 specification).
pub(crate) const REGISTER: &str = "/potluck.v1.IndexService/Register";
pub(crate) const UNREGISTER: &str = "/potluck.v1.IndexService/Unregister";
pub(crate) const WATCH: &str = "/potluck.v1.IndexService/WatchProviders";

/// Field number of `RegisterRequest.files`.
const FILES: u32 = 3;

/// Field number of `Registration.names`.
const NAMES: u32 = 2;

/// Field number of `UnregisterRequest.file_ids`.
const FILE_IDS: u32 = 2;

/// The index's service with checked decoding of requests that contain lists.
#[derive(Debug, Clone)]
pub(crate) struct PrecheckedService<S> {
    service: Arc<IndexApi>,
    generated: S,
}

impl<S> PrecheckedService<S> {
    /// Serves checked requests from `service` and all others from `generated`.
    pub(crate) const fn new(service: Arc<IndexApi>, generated: S) -> Self {
        Self { service, generated }
    }
}

impl<S: NamedService> NamedService for PrecheckedService<S> {
    const NAME: &'static str = S::NAME;
}

type BoxedFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type ResponseFuture = BoxedFuture<Result<http::Response<Body>, Infallible>>;

impl<S> codegen::Service<http::Request<Body>> for PrecheckedService<S>
where
    S: codegen::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.generated.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> ResponseFuture {
        let service = Arc::clone(&self.service);
        match request.uri().path() {
            REGISTER => Box::pin(handle::<v1::RegisterRequest>(service, request)),
            UNREGISTER => Box::pin(handle::<v1::UnregisterRequest>(service, request)),
            _ => Box::pin(self.generated.call(request)),
        }
    }
}

async fn handle<Q: PrecheckedMessage>(
    service: Arc<IndexApi>,
    request: http::Request<Body>,
) -> Result<http::Response<Body>, Infallible>
where
    ServiceCall: UnaryService<Q, Response: Message + 'static>,
{
    let codec =
        CountingCodec::<<ServiceCall as UnaryService<Q>>::Response, Q>::new(Q::check_counts);
    let mut grpc = Grpc::new(codec)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    Ok(grpc.unary(ServiceCall(service), request).await)
}

/// Calls the method that belongs to the request type.
struct ServiceCall(Arc<IndexApi>);

impl UnaryService<v1::RegisterRequest> for ServiceCall {
    type Response = v1::RegisterResponse;
    type Future = BoxedFuture<Result<Response<v1::RegisterResponse>, Status>>;

    fn call(&mut self, request: Request<v1::RegisterRequest>) -> Self::Future {
        let service = Arc::clone(&self.0);
        Box::pin(async move { service.register(request).await })
    }
}

impl UnaryService<v1::UnregisterRequest> for ServiceCall {
    type Response = v1::UnregisterResponse;
    type Future = BoxedFuture<Result<Response<v1::UnregisterResponse>, Status>>;

    fn call(&mut self, request: Request<v1::UnregisterRequest>) -> Self::Future {
        let service = Arc::clone(&self.0);
        Box::pin(async move { service.unregister(request).await })
    }
}

/// A request that contains lists.
trait PrecheckedMessage: Message + Default + 'static {
    /// Checks the list lengths in an encoded message.
    fn check_counts(message: &[u8]) -> Result<(), Problem>;
}

impl PrecheckedMessage for v1::RegisterRequest {
    fn check_counts(message: &[u8]) -> Result<(), Problem> {
        check_batch(list_items(message, FILES).count(), "files")?;
        for (at, file) in list_items(message, FILES).enumerate() {
            check_names(list_items(file, NAMES).count())
                .map_err(|problem| problem.field(format!("files[{at}].names")))?;
        }
        Ok(())
    }
}

impl PrecheckedMessage for v1::UnregisterRequest {
    fn check_counts(message: &[u8]) -> Result<(), Problem> {
        check_batch(list_items(message, FILE_IDS).count(), "file_ids")
    }
}

#[cfg(test)]
mod tests {
    use potluck_core::{
        Reason, index_client::MAX_BATCH, proto::v1::index_service_server::IndexServiceServer,
    };
    use tonic::codegen::Service as _;

    use super::*;
    use crate::{grpc::api::tests::service, registry::RestoredPeers};

    /// The problem that the service returns for a request. Its bytes must be ASCII, because the
    /// test's body is a string.
    async fn problem_of(path: &str, message: &[u8]) -> Problem {
        let length = (message.len() as u32).to_be_bytes();
        let body = [&[0], &length[..], message].concat();
        let body = String::from_utf8(body).unwrap();
        assert!(body.is_ascii());
        let service = Arc::new(service(RestoredPeers::default(), 0));
        let mut prechecked =
            PrecheckedService::new(Arc::clone(&service), IndexServiceServer::from_arc(service));
        let request = http::Request::post(path).body(Body::new(body)).unwrap();
        let response = prechecked.call(request).await.unwrap();
        Status::from_header_map(response.headers()).unwrap().into()
    }

    #[tokio::test]
    async fn lists_over_the_maximum_are_not_decoded() {
        // A field with an invalid wire type, which would fail to decode.
        let undecodable = [0x0f];
        for (path, message, reason, field) in [
            (
                REGISTER,
                [&[0x1a, 1][..], &undecodable].concat().repeat(MAX_BATCH + 1),
                Reason::InvalidArgument,
                "files",
            ),
            (
                REGISTER,
                [&[0x1a, 35][..], &[0x12, 0].repeat(17), &undecodable].concat(),
                Reason::InvalidName,
                "files[0].names",
            ),
            (
                UNREGISTER,
                [&[0x12, 0].repeat(16_300)[..], &undecodable].concat(),
                Reason::InvalidArgument,
                "file_ids",
            ),
        ] {
            let problem = problem_of(path, &message).await;
            assert_eq!(
                (problem.reason, problem.field.as_deref()),
                (reason, Some(field)),
                "{problem}"
            );
        }
    }

    #[test]
    fn the_field_numbers_are_those_of_the_contract() {
        let names = |count| v1::Registration {
            names: vec!["x".to_owned(); count],
            ..Default::default()
        };
        let register = |count, names: v1::Registration| {
            let files = vec![names; count];
            let request = v1::RegisterRequest {
                files,
                ttl_ms: 1,
                replace: true,
                ..Default::default()
            };
            v1::RegisterRequest::check_counts(&request.encode_to_vec())
                .map_err(|problem| problem.field)
        };
        assert_eq!(register(MAX_BATCH, names(16)), Ok(()));
        assert_eq!(register(MAX_BATCH + 1, names(1)), Err(Some("files".to_owned())));
        assert_eq!(register(2, names(17)), Err(Some("files[0].names".to_owned())));
        let unregister = |count| {
            let request = v1::UnregisterRequest {
                token: vec![1; 32].into(),
                file_ids: vec![vec![2; 32].into(); count],
                all: true,
                ..Default::default()
            };
            v1::UnregisterRequest::check_counts(&request.encode_to_vec())
                .map_err(|problem| problem.field)
        };
        assert_eq!(unregister(MAX_BATCH), Ok(()));
        assert_eq!(unregister(MAX_BATCH + 1), Err(Some("file_ids".to_owned())));
    }
}
