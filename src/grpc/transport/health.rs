//! Health and reflection services of every gRPC endpoint.

use tonic::{
    body::Body,
    codegen::{Service, http::Request, http::Response},
    server::NamedService,
    service::Routes,
};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{grpc::transport::admission::SMALL_REQUEST, proto::DESCRIPTORS};

/// The service name that stands for the whole server (`grpc.health.v1`).
const WHOLE_SERVER: &str = "";

/// Reports an endpoint's health. Initially `SERVING`.
#[derive(Debug, Clone)]
pub struct Health {
    reporter: HealthReporter,
    service: &'static str,
}

impl Health {
    /// Reports `NOT_SERVING` to all clients, before the endpoint shuts down.
    pub async fn set_not_serving(&self) {
        self.set_serving(false).await;
    }

    /// Reports whether the endpoint can do its work.
    pub async fn set_serving(&self, serving: bool) {
        let status = if serving {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        for name in [self.service, WHOLE_SERVER] {
            self.reporter.set_service_status(name, status).await;
        }
    }
}

/// Adds health (`grpc.health.v1`) to a service and, if `reflects` is set, reflection (v1 and
/// v1alpha). Reflection lists only the services of this endpoint.
///
/// # Errors
/// The embedded descriptors are invalid, which is a bug.
pub async fn with_health_and_reflection<S>(
    service: S,
    reflects: bool,
) -> Result<(Health, Routes), tonic_reflection::server::Error>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = std::convert::Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status(S::NAME, ServingStatus::Serving).await;
    let mut routes =
        Routes::new(service).add_service(health.max_decoding_message_size(SMALL_REQUEST));
    if reflects {
        let v1 = reflection(S::NAME).build_v1()?;
        let v1alpha = reflection(S::NAME).build_v1alpha()?;
        routes = routes
            .add_service(v1.max_decoding_message_size(SMALL_REQUEST))
            .add_service(v1alpha.max_decoding_message_size(SMALL_REQUEST));
    }
    let health = Health {
        reporter,
        service: S::NAME,
    };
    Ok((health, routes))
}

fn reflection(service: &str) -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name(service)
        .with_service_name("grpc.health.v1.Health")
}
