//! What every gRPC endpoint tells about itself: its health, and its services by reflection.

use tonic::{
    body::Body,
    codegen::{Service, http::Request, http::Response},
    server::NamedService,
    service::Routes,
};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{grpc::transport::admission::SMALL_REQUEST, proto::DESCRIPTORS};

/// Under this name a health service tells of the whole server.
const WHOLE_SERVER: &str = "";

/// What an endpoint says of its health. Serving until told otherwise.
#[derive(Debug, Clone)]
pub struct Health {
    reporter: HealthReporter,
    service: &'static str,
}

impl Health {
    /// Tells everyone who asks or watches that the endpoint is about to end.
    pub async fn set_not_serving(&self) {
        self.set_serving(false).await;
    }

    /// Tells everyone who asks or watches whether the endpoint can do its work.
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

/// A service with health (`grpc.health.v1`) and, where it `reflects`, reflection (v1 and v1alpha)
/// beside it; reflection lists only what is served here.
///
/// # Errors
/// Where the services' own description cannot be read, which is a defect.
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
    let mut routes = Routes::new(service).add_service(health.max_decoding_message_size(SMALL_REQUEST));
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
