//! Connections that behave as no real client, server or network does.

pub mod proxy;
pub mod raw_client;
pub mod raw_server;

use potluck_core::grpc::transport::Endpoint;
use tonic::Code;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

/// The endpoint of a service at this address.
pub fn endpoint_at(address: impl ToString) -> Endpoint {
    address.to_string().parse().unwrap()
}

/// The error with which the server at this address answers a call of gRPC reflection.
pub async fn reflection_error(address: impl ToString) -> Option<Code> {
    let channel = endpoint_at(address).connect().await.unwrap();
    let no_requests = futures_util::stream::empty();
    let answer = ServerReflectionClient::new(channel)
        .server_reflection_info(no_requests)
        .await;
    answer.err().map(|status| status.code())
}
