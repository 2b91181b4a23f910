//! The TLS settings of a process, and the connections that use them.

use std::{collections::HashMap, fmt, io, sync::Arc, time::SystemTime};

use parking_lot::{Mutex, RwLock};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{
        CryptoProvider,
        ring::{
            cipher_suite::{
                TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
            },
            default_provider,
        },
    },
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
    server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier},
    version::TLS13,
};
use tokio_util::sync::CancellationToken;

use crate::{
    PeerId,
    network::{
        authority::CaHash,
        certificate::public_key_of,
        credentials::Credentials,
        credentials_error::CredentialsError,
        folder::NetworkFolder,
        identity::CertifiedIdentity,
        own_pki::OwnPki,
        revocations::RevocationList,
        stored_identity::StoredIdentity,
        tls::{
            rules::{Naming, Refusal, ServerIdentity},
            verify::{ClientVerifier, ServerVerifier},
        },
    },
};

/// The protocol name of HTTP/2 (RFC 9113, section 3.1), without which gRPC core hangs up.
const ALPN: &[u8] = b"h2";

/// Whether a server accepts clients without a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Every client needs a certificate: a peer.
    Required,
    /// A client without a certificate is accepted, and has no identity: the index, where a machine
    /// enrols.
    Optional,
}

/// The reason why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The credentials cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// rustls refuses the key or a certificate.
    #[error("the key or a certificate cannot be used for TLS: {0}")]
    Rustls(#[from] rustls::Error),
    /// There is no CA.
    #[error("the certificate of the CA cannot be used: {0}")]
    Roots(#[from] VerifierBuilderError),
}

/// What TLS needs.
#[derive(Debug)]
pub struct TlsMaterial {
    /// The own key, and the chain of its certificate; `None` for a client without a certificate.
    pub own: Option<(PrivateKeyDer<'static>, Vec<CertificateDer<'static>>)>,
    /// The CAs whose certificates are accepted.
    pub roots: Vec<CertificateDer<'static>>,
    /// How certificates name servers and clients.
    pub naming: Naming,
    /// Whether clients of this server need a certificate.
    pub client_certificates: ClientCertificates,
}

impl TlsMaterial {
    /// The material of a machine that joins the network whose CA has a key with this hash.
    pub const fn joining(ca: CaHash) -> Self {
        Self {
            own: None,
            roots: Vec::new(),
            naming: Naming::Joining(ca),
            client_certificates: ClientCertificates::Required,
        }
    }

    /// The material of a client without a certificate that knows the network's CA: one whose own has
    /// expired.
    pub fn anonymous(ca: &CertificateDer<'static>) -> Self {
        Self {
            own: None,
            roots: vec![ca.clone()],
            naming: Naming::Network {
                revocations: Arc::new(RevocationList::empty()),
            },
            client_certificates: ClientCertificates::Required,
        }
    }

    /// The material of a program in a PKI of one's own. Every client needs a certificate.
    ///
    /// # Errors
    /// [`CredentialsError::File`].
    pub fn own_pki(files: &OwnPki) -> Result<Self, CredentialsError> {
        let loaded = files.load()?;
        Ok(Self {
            own: Some((loaded.key, loaded.chain)),
            roots: loaded.roots,
            naming: Naming::OwnPki { roles: loaded.roles },
            client_certificates: ClientCertificates::Required,
        })
    }

    /// The id of the peer whose certificate this is; `None` without a certificate.
    pub fn peer_id(&self) -> Option<PeerId> {
        let (_, chain) = self.own.as_ref()?;
        let key = public_key_of(chain.first()?).ok()?;
        Some(PeerId::of_public_key(&key))
    }

    /// The material of a network's index.
    ///
    /// # Errors
    /// [`CredentialsError::NoCertificate`].
    pub fn index(
        folder: &NetworkFolder,
        revocations: &RevocationList,
    ) -> Result<Self, CredentialsError> {
        let ca = folder.authority().certificate();
        Ok(Self {
            // With the CA's certificate, for machines that know only its hash.
            own: Some(own(folder.index(), Some(ca))?),
            roots: vec![ca.clone()],
            naming: Naming::Network {
                revocations: Arc::new(revocations.clone()),
            },
            client_certificates: ClientCertificates::Optional,
        })
    }

    /// The material of a peer or member of a network; `identity` is its key and certificate.
    ///
    /// # Errors
    /// [`CredentialsError::NoCertificate`].
    pub fn member(
        credentials: &Credentials,
        identity: &StoredIdentity,
    ) -> Result<Self, CredentialsError> {
        let revocations = credentials.revocations().map(|signed| signed.list().clone());
        Ok(Self {
            own: Some(own(identity, None)?),
            roots: vec![credentials.ca().clone()],
            naming: Naming::Network {
                revocations: Arc::new(revocations.unwrap_or_else(RevocationList::empty)),
            },
            client_certificates: ClientCertificates::Required,
        })
    }
}

/// The own key and chain.
fn own(
    identity: &StoredIdentity,
    ca: Option<&CertificateDer<'static>>,
) -> Result<(PrivateKeyDer<'static>, Vec<CertificateDer<'static>>), CredentialsError> {
    let certificate = identity.require_certificate()?;
    let chain = std::iter::once(certificate).chain(ca).cloned().collect();
    Ok((identity.key().private_key(), chain))
}

/// The TLS settings of a process. Clones share their state.
#[derive(Clone)]
pub struct TlsContext {
    shared: Arc<TlsShared>,
}

struct TlsShared {
    settings: RwLock<Arc<TlsSettings>>,
    open: Mutex<OpenConnections>,
}

struct TlsSettings {
    client: Arc<ClientConfig>,
    /// `None` without an own certificate.
    server: Option<Arc<ServerConfig>>,
    naming: Naming,
}

#[derive(Default)]
struct OpenConnections {
    next: u64,
    by_number: HashMap<u64, OpenConnection>,
}

struct OpenConnection {
    identity: CertifiedIdentity,
    not_after: SystemTime,
    close: CancellationToken,
}

impl fmt::Debug for TlsContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsContext").finish_non_exhaustive()
    }
}

impl PartialEq for TlsContext {
    /// Whether both share their state.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Eq for TlsContext {}

impl TlsContext {
    /// Sets up TLS.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn new(material: TlsMaterial) -> Result<Self, TlsError> {
        let shared = TlsShared {
            settings: RwLock::new(Arc::new(TlsSettings::new(material)?)),
            open: Mutex::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Uses other material for new connections, and closes connections to members and peers that it
    /// revokes. Other connections stay open.
    ///
    /// # Errors
    /// [`TlsError`]; the settings are then unchanged.
    pub fn replace(&self, material: TlsMaterial) -> Result<(), TlsError> {
        self.set(material)?;
        self.close_revoked();
        Ok(())
    }

    /// Uses other material for new connections. Every open connection stays open.
    ///
    /// # Errors
    /// [`TlsError`]; the settings are then unchanged.
    pub fn set(&self, material: TlsMaterial) -> Result<(), TlsError> {
        let settings = Arc::new(TlsSettings::new(material)?);
        *self.shared.settings.write() = settings;
        Ok(())
    }

    /// Closes connections to members and peers that the current material revokes.
    pub fn close_revoked(&self) {
        let settings = self.settings();
        self.close_where(|open| settings.naming.revokes(&open.identity));
    }

    /// Closes connections to members and peers whose certificate has expired.
    pub fn close_expired(&self, now: SystemTime) {
        self.close_where(|open| open.not_after <= now);
    }

    fn close_where(&self, is_over: impl Fn(&OpenConnection) -> bool) {
        let open = self.shared.open.lock();
        for open in open.by_number.values().filter(|open| is_over(open)) {
            if !open.close.is_cancelled() {
                tracing::info!(
                    member = %open.identity.member.short(),
                    "closed a connection: its certificate was revoked or has expired"
                );
            }
            // Only wakes the task of the connection.
            open.close.cancel();
        }
    }

    /// The settings of a client's handshake.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.settings().client)
    }

    /// The settings of a server's handshake; `None` without an own certificate.
    pub fn server_config(&self) -> Option<Arc<ServerConfig>> {
        self.settings().server.clone()
    }

    /// The name to pass to a client's handshake with the server at `host`. It is not sent. `None` if
    /// `host` is not a valid name.
    pub fn server_name(
        &self,
        expected: &ServerIdentity,
        host: &str,
    ) -> Option<ServerName<'static>> {
        expected.name(&self.settings().naming, host)
    }

    /// Reads who is at the other end of a connection after its handshake, and closes the connection
    /// through `close` if that identity is revoked or expires. `None` for the index.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] if the identity was revoked since the handshake.
    pub fn admit(
        &self,
        certificate: &CertificateDer<'_>,
        close: CancellationToken,
    ) -> io::Result<Option<(CertifiedIdentity, ConnectionGuard)>> {
        // The lock is taken before the settings are read: a list that arrives now closes the
        // connection, or is seen here.
        let mut open = self.shared.open.lock();
        let verified = match self.settings().naming.check_client(certificate) {
            Ok(verified) => verified,
            Err(Refusal::Name) => return Ok(None),
            Err(Refusal::Revoked) => return Err(io::ErrorKind::PermissionDenied.into()),
        };
        open.next += 1;
        let number = open.next;
        let connection = OpenConnection {
            identity: verified.identity.clone(),
            not_after: verified.not_after,
            close,
        };
        open.by_number.insert(number, connection);
        drop(open);
        let guard = ConnectionGuard {
            shared: Arc::clone(&self.shared),
            number,
        };
        Ok(Some((verified.identity, guard)))
    }

    fn settings(&self) -> Arc<TlsSettings> {
        Arc::clone(&self.shared.settings.read())
    }
}

/// Keeps a connection among those that a list of revocations may close.
pub struct ConnectionGuard {
    shared: Arc<TlsShared>,
    number: u64,
}

impl fmt::Debug for ConnectionGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionGuard").finish_non_exhaustive()
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.shared.open.lock().by_number.remove(&self.number);
    }
}

/// Ring, with AES-128 first: it is the fastest where the processor has AES, and nobody breaks it.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..default_provider()
    }
}

impl TlsSettings {
    fn new(material: TlsMaterial) -> Result<Self, TlsError> {
        let provider = Arc::new(provider());
        let mut roots = RootCertStore::empty();
        for root in material.roots {
            roots.add(root)?;
        }
        let roots = Arc::new(roots);
        let verifier = Arc::new(ServerVerifier {
            roots: Arc::clone(&roots),
            naming: material.naming.clone(),
            algorithms: provider.signature_verification_algorithms,
        });
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut client = match &material.own {
            Some((key, chain)) => client.with_client_auth_cert(chain.clone(), key.clone_key())?,
            None => client.with_no_client_auth(),
        };
        client.enable_sni = false;
        client.resumption = Resumption::disabled();
        client.alpn_protocols = vec![ALPN.to_vec()];
        let server = match material.own {
            Some((key, chain)) => {
                let clients =
                    WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
                let clients = match material.client_certificates {
                    ClientCertificates::Required => clients,
                    ClientCertificates::Optional => clients.allow_unauthenticated(),
                };
                let verifier = Arc::new(ClientVerifier {
                    chain: clients.build()?,
                    naming: material.naming.clone(),
                });
                let mut server = ServerConfig::builder_with_provider(provider)
                    .with_protocol_versions(&[&TLS13])?
                    .with_client_cert_verifier(verifier)
                    .with_single_cert(chain, key)?;
                server.session_storage = Arc::new(NoServerSessionStorage {});
                server.send_tls13_tickets = 0;
                server.max_early_data_size = 0;
                server.alpn_protocols = vec![ALPN.to_vec()];
                Some(Arc::new(server))
            }
            None => None,
        };
        Ok(Self {
            client: Arc::new(client),
            server,
            naming: material.naming,
        })
    }
}
