//! Refuses calls that the identity of their connection does not permit, before any service sees
//! them. Does nothing without a private network.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use potluck_core::{
    Problem, Reason,
    network::identity::{CertifiedIdentity, Role},
};
use tonic::{Status, body::Body, transport::server::TcpConnectInfo};
use tower::{Layer, Service};

use crate::network::{
    access::{Access, method_name, required},
    audit::{AuditEntry, AuditLog, Caller},
    membership::MembershipError,
    private_network::PrivateNetwork,
};

/// The layer.
#[derive(Debug, Clone)]
pub(crate) struct AccessLayer {
    /// The network, whose members it knows; without one, the role in the certificate counts.
    pub(crate) network: Option<Arc<PrivateNetwork>>,
    /// Whether connections use TLS; otherwise nothing is refused.
    pub(crate) is_private: bool,
    /// Where refusals are recorded.
    pub(crate) audit: AuditLog,
}

/// A service behind the layer.
#[derive(Debug, Clone)]
pub(crate) struct AccessChecked<S> {
    access: AccessLayer,
    service: S,
}

impl<S> Layer<S> for AccessLayer {
    type Service = AccessChecked<S>;

    fn layer(&self, service: S) -> AccessChecked<S> {
        AccessChecked {
            access: self.clone(),
            service,
        }
    }
}

impl<S> Service<Request<Body>> for AccessChecked<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.access.check(&request) {
            Ok(()) => Box::pin(self.service.call(request)),
            Err(problem) => {
                let answer = Status::from(problem).into_http();
                Box::pin(async move { Ok(answer) })
            }
        }
    }
}

impl AccessLayer {
    fn check(&self, request: &Request<Body>) -> Result<(), Problem> {
        let path = request.uri().path();
        let Access::Member(role) = required(path) else {
            return Ok(());
        };
        if !self.is_private {
            return Ok(());
        }
        let caller = caller(request.extensions());
        let checked = match &caller.identity {
            Some(identity) => require(self.network.as_deref(), identity, role),
            None => Err(Problem::new(
                Reason::NotAMember,
                "this index serves a private network, and the connection has no certificate of it: \
                 join the network with `potluck network join CODE`",
            )),
        };
        if let Err(problem) = &checked {
            let entry = AuditEntry::Refused {
                call: method_name(path).to_owned(),
                reason: problem.reason.word(),
            };
            self.audit.record(caller, entry);
        }
        checked
    }
}

/// Checks that a member has at least this role: in the network now, or without one in its
/// certificate.
pub(crate) fn require(
    network: Option<&PrivateNetwork>,
    identity: &CertifiedIdentity,
    required: Role,
) -> Result<(), Problem> {
    let checked = match network {
        Some(network) => network.require(identity, required),
        None if identity.role >= required => Ok(()),
        None => Err(MembershipError::RoleRequired {
            required,
            actual: identity.role,
        }),
    };
    Ok(checked?)
}

/// Who makes a call.
pub(crate) fn caller(extensions: &http::Extensions) -> Caller {
    let address = extensions
        .get::<TcpConnectInfo>()
        .and_then(TcpConnectInfo::remote_addr);
    Caller {
        identity: extensions.get::<CertifiedIdentity>().cloned(),
        address: address.map(|address| address.ip()),
    }
}
