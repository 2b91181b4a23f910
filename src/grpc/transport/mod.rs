//! Endpoints, channels and servers with shared HTTP/2 settings.

mod accept;
pub mod admission;
mod clients;
mod connect;
mod endpoint;
mod failure;
mod health;
mod probe;
mod settings;
mod socket_authority;
mod tcp;
mod tls_client;
mod tls_stream;

pub use self::{
    accept::{Accept, Connection, connections},
    clients::{Activity, ClientConnection},
    endpoint::{Endpoint, LinkLocal, TlsEndpoint, parse_listen},
    health::{Health, with_health_and_reflection},
    settings::{MAX_MESSAGE, server},
};
