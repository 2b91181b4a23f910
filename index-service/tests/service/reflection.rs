//! Tests that a generic client can list the services and query their health.

use futures_util::stream;
use potluck_testkit::services::TestIndex;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

macro_rules! services {
    ($version:ident, $index:expr) => {{
        use tonic_reflection::pb::$version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let mut client = ServerReflectionClient::new($index.endpoint.connect().await.unwrap());
        let request = |message| ServerReflectionRequest {
            host: String::new(),
            message_request: Some(message),
        };
        let requests = stream::iter([
            request(MessageRequest::ListServices(String::new())),
            request(MessageRequest::FileContainingSymbol(
                "potluck.v1.IndexService".to_owned(),
            )),
        ]);
        let mut answers = client
            .server_reflection_info(requests)
            .await
            .unwrap()
            .into_inner();
        let mut next = async || {
            let answer = answers.message().await.unwrap().unwrap();
            answer.message_response.unwrap()
        };
        let list = next().await;
        let MessageResponse::ListServicesResponse(list) = list else {
            panic!("{list:?}")
        };
        let file = next().await;
        assert!(
            matches!(file, MessageResponse::FileDescriptorResponse(_)),
            "{file:?}"
        );
        list.service
            .into_iter()
            .map(|service| service.name)
            .collect::<Vec<_>>()
    }};
}

#[tokio::test]
async fn lists_its_services_in_both_versions_of_reflection() {
    let index = TestIndex::in_memory().await;
    let found = [services!(v1, index), services!(v1alpha, index)];
    for services in found {
        for expected in ["potluck.v1.IndexService", "grpc.health.v1.Health"] {
            assert!(services.iter().any(|name| name == expected), "{services:?}");
        }
    }
}

#[tokio::test]
async fn reports_its_health() {
    let index = TestIndex::in_memory().await;
    let mut client = HealthClient::new(index.endpoint.connect().await.unwrap());
    for service in ["", "potluck.v1.IndexService"] {
        let answer = client
            .check(HealthCheckRequest {
                service: service.to_owned(),
            })
            .await
            .unwrap();
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
    }
    let request = HealthCheckRequest {
        service: "potluck.v1.IndexService".to_owned(),
    };
    let mut watch = client.watch(request).await.unwrap().into_inner();
    assert_eq!(
        watch.message().await.unwrap().unwrap().status(),
        ServingStatus::Serving
    );
    index.shutdown.cancel();
    assert_eq!(
        watch.message().await.unwrap().unwrap().status(),
        ServingStatus::NotServing
    );
}
