//! The program under attack, and connections to it.

use std::{io, net::SocketAddr, pin::Pin, time::Duration};

use bytes::Bytes;
use potluck_core::{
    FileId, Problem,
    grpc::transport::Endpoint,
    identity::hash::hash_bytes,
    network::tls::{ServerIdentity, TlsContext},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// The service of the program under attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// An index.
    Index,
    /// A peer.
    Peer,
}

/// The TLS settings of an attacker.
#[derive(Debug, Clone)]
pub struct Tls {
    /// With the certificate of a member.
    pub member: TlsContext,
    /// Without a certificate, as anybody can connect.
    pub anonymous: TlsContext,
}

/// A program under attack.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its address.
    pub address: SocketAddr,
    /// Its service.
    pub service: Service,
    /// `None` for plaintext.
    pub tls: Option<Tls>,
    /// The content of a file that the target knows or has.
    pub data: Bytes,
    /// The id of that file.
    pub file: FileId,
}

/// A connection: plaintext or TLS.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Send {}

impl<S: AsyncRead + AsyncWrite + Send> ByteStream for S {}

pub(crate) type Wire = Pin<Box<dyn ByteStream>>;

impl Target {
    /// A target whose file has this content.
    pub fn new(
        address: SocketAddr,
        service: Service,
        tls: Option<Tls>,
        data: impl Into<Bytes>,
    ) -> Self {
        let data = data.into();
        Self {
            address,
            service,
            tls,
            file: hash_bytes(&data).id(),
            data,
        }
    }

    /// The server that an honest client expects.
    fn expected(&self) -> ServerIdentity {
        match self.service {
            Service::Index => ServerIdentity::Index,
            Service::Peer => ServerIdentity::AnyPeer,
        }
    }

    /// Where an honest client connects.
    ///
    /// # Errors
    /// Never for an address that can be connected to.
    pub fn endpoint(&self) -> Result<Endpoint, Problem> {
        let endpoint: Endpoint = self.address.to_string().parse()?;
        match &self.tls {
            Some(tls) => endpoint.secured(&tls.member, self.expected()),
            None => Ok(endpoint),
        }
    }

    /// Opens a TCP connection.
    pub(crate) async fn connect_tcp(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Opens a TCP connection that is reset when it is closed, for an attack that would use up the
    /// ports of its machine.
    pub(crate) async fn connect_briefly(&self) -> io::Result<TcpStream> {
        let stream = self.connect_tcp().await?;
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        Ok(stream)
    }

    /// Opens a TCP connection and makes a TLS handshake with these settings.
    pub(crate) async fn connect_tls(&self, tls: &TlsContext) -> io::Result<TlsStream<TcpStream>> {
        let name = tls
            .server_name(&self.expected(), "")
            .ok_or(io::ErrorKind::InvalidInput)?;
        let connector = TlsConnector::from(tls.client_config());
        connector.connect(name, self.connect_tcp().await?).await
    }

    /// The first message of a TLS handshake; `None` without TLS.
    pub(crate) fn client_hello(&self) -> Option<Vec<u8>> {
        let tls = &self.tls.as_ref()?.member;
        let name = tls.server_name(&self.expected(), "")?;
        let mut connection = rustls::ClientConnection::new(tls.client_config(), name).ok()?;
        let mut hello = Vec::new();
        connection.write_tls(&mut hello).ok()?;
        Some(hello)
    }

    /// Opens a connection: in a network, as a member.
    pub(crate) async fn connect(&self) -> io::Result<Wire> {
        Ok(match &self.tls {
            Some(tls) => Box::pin(self.connect_tls(&tls.member).await?),
            None => Box::pin(self.connect_tcp().await?),
        })
    }

    /// Opens a connection without a certificate.
    pub(crate) async fn connect_anonymously(&self) -> io::Result<Wire> {
        Ok(match &self.tls {
            Some(tls) => Box::pin(self.connect_tls(&tls.anonymous).await?),
            None => Box::pin(self.connect_tcp().await?),
        })
    }
}
