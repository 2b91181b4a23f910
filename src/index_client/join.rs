//! Joining a private network with a code, and renewing certificates.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use rustls::pki_types::CertificateDer;

use crate::{
    Problem, Reason,
    files::read_own,
    grpc::transport::Endpoint,
    index_client::{
        client::IndexClient,
        index_list::IndexList,
        indexes::{all_failed, says_that_index_fails},
    },
    network::{
        authority::CaHash,
        credentials::Credentials,
        credentials_error::CredentialsError,
        join_code::{JoinCode, MAX_CODE},
        key::IdentityKey,
        revocations::RevocationList,
        tls::{ClientCertificates, Naming, ServerIdentity, TlsContext, TlsError, TlsMaterial},
    },
};

/// Joins the network of `code`, and stores the credentials in `folder`. `name` is the name of the
/// member for people. After an interruption, the same call continues.
///
/// # Errors
/// [`CredentialsError::Exists`] as a problem if the folder holds credentials; those of
/// `NetworkService.Enroll`; those of a connection.
pub async fn join(folder: &Path, code: &JoinCode, name: &str) -> Result<Credentials, Problem> {
    let member = Credentials::prepare(folder)?;
    let tls = context(TlsMaterial::joining(code.ca))?;
    let request = request_of(member.key())?;
    let enroll = |index: IndexClient| {
        let request = request.clone();
        async move { index.enroll(&code.secret, request, name).await }
    };
    let enrolled = ask_in_turn(&code.index, &tls, enroll).await?;
    // The handshake checked the CA; the answer must not name another.
    let authority = CertificateDer::from(enrolled.authority.to_vec());
    if CaHash::of_certificate(&authority).ok() != Some(code.ca) {
        return Err(Problem::new(
            Reason::NotPotluck,
            "the index sent the certificate of another network: check the join code",
        ));
    }
    let indexes = code.index.split(',').map(|url| url.trim().to_owned()).collect();
    let now = SystemTime::now();
    Ok(Credentials::create(
        folder,
        &authority,
        &enrolled.certificate,
        indexes,
        now,
    )?)
}

/// Reads a join code from a file, or from standard input if the path is `-`.
///
/// # Errors
/// [`Reason::InvalidCode`], [`Reason::NotFound`] or another reason why the file cannot be read.
pub fn read_code(path: &Path) -> Result<JoinCode, Problem> {
    let limit = MAX_CODE as u64 + 1024;
    let bytes = match path.as_os_str() == "-" {
        true => {
            let mut bytes = Vec::new();
            let input = std::io::stdin().lock();
            std::io::Read::read_to_end(&mut std::io::Read::take(input, limit), &mut bytes)
                .map(|_| bytes)
        }
        false => read_own(path, limit),
    };
    let failed = |error: std::io::Error| {
        let reason = match error.kind() {
            std::io::ErrorKind::NotFound => Reason::NotFound,
            std::io::ErrorKind::PermissionDenied => Reason::PermissionDenied,
            _ => Reason::InvalidCode,
        };
        let path = path.display();
        Problem::new(reason, format!("cannot read the join code in {path}: {error}"))
    };
    let text = String::from_utf8(bytes.map_err(failed)?).unwrap_or_default();
    // What `network invite` prints may be redirected to a file as it is: the code is the last word.
    let word = text.split_whitespace().next_back().unwrap_or_default();
    word.parse()
        .map_err(|error| Problem::new(Reason::InvalidCode, format!("{error}")))
}

/// Joins with the code in a file, unless the folder holds credentials already.
///
/// # Errors
/// Those of [`read_code`] and [`join`].
pub async fn join_once(folder: PathBuf, file: &Path, name: &str) -> Result<Credentials, Problem> {
    match Credentials::exist(&folder) {
        true => Ok(Credentials::load(&folder)?),
        false => join(&folder, &read_code(file)?, name).await,
    }
}

/// The name of this machine, as the name of a member.
pub fn machine_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    match crate::network::identity::is_valid_name(&name) {
        true => name,
        false => "machine".to_owned(),
    }
}

/// Asks an index of the network for a new certificate for a key of this member or of one of its
/// peers. Works after the old certificate has expired.
///
/// # Errors
/// Those of `NetworkService.RenewCertificate` and of a connection.
async fn renew_certificate(
    credentials: &Credentials,
    key: &Arc<IdentityKey>,
) -> Result<bytes::Bytes, Problem> {
    let revocations = credentials.revocations().map(|signed| signed.list().clone());
    let material = TlsMaterial {
        // TLS refuses a certificate that has expired. The request proves possession of the key.
        own: None,
        roots: vec![credentials.ca().clone()],
        naming: Naming::Network {
            revocations: Arc::new(revocations.unwrap_or_else(RevocationList::empty)),
        },
        client_certificates: ClientCertificates::Required,
    };
    let (urls, tls) = (credentials.indexes().join(","), context(material)?);
    let request = request_of(key)?;
    let renew = |index: IndexClient| {
        let request = request.clone();
        async move { index.renew_certificate(request).await }
    };
    ask_in_turn(&urls, &tls, renew).await
}

/// Makes a call without a certificate at each index in turn until one answers. A client of all of them
/// would first compare whether they share a store, which needs a certificate.
async fn ask_in_turn<T, F>(
    urls: &str,
    tls: &TlsContext,
    call: impl Fn(IndexClient) -> F,
) -> Result<T, Problem>
where
    F: Future<Output = Result<T, Problem>>,
{
    let indexes = secured(urls, tls)?;
    let mut problems = Vec::new();
    for index in indexes.iter() {
        match call(IndexClient::new(index.clone())).await {
            Err(problem) if says_that_index_fails(problem.reason) => problems.push(problem),
            answer => return answer,
        }
    }
    Err(all_failed(problems))
}

/// Renews the member's own certificate if it is due, in its second half. A failure is only a
/// problem once the certificate has expired.
///
/// # Errors
/// Those of `NetworkService.RenewCertificate` and of a connection, if the certificate has expired.
pub async fn renew_member(credentials: &mut Credentials) -> Result<(), Problem> {
    let now = SystemTime::now();
    if !credentials.member().needs_renewal(now) {
        return Ok(());
    }
    if credentials.indexes().is_empty() {
        return Ok(());
    }
    let key = Arc::clone(credentials.member().key());
    match renew_certificate(credentials, &key).await {
        Ok(certificate) => Ok(credentials.store_certificate(&certificate, now)?),
        Err(problem) => match credentials.member().check(credentials.ca(), now) {
            Err(expired @ CredentialsError::Expired { .. }) => Err(Problem {
                message: format!("{expired}; this failed: {}", problem.message),
                ..problem
            }),
            _ => {
                tracing::debug!(%problem, "the certificate of this member is renewed later");
                Ok(())
            }
        },
    }
}

/// The indexes of a network, by their URLs separated by commas.
///
/// # Errors
/// [`Reason::InvalidAddress`].
pub fn secured(urls: &str, tls: &TlsContext) -> Result<IndexList, Problem> {
    IndexList::parse(urls, |url| {
        Endpoint::parse_secured(url, tls, ServerIdentity::Index)
    })
}

/// TLS settings for a member with its own certificate.
///
/// # Errors
/// The reason why the certificate cannot be used.
pub fn member_context(credentials: &Credentials) -> Result<TlsContext, Problem> {
    context(TlsMaterial::member(credentials, credentials.member())?)
}

fn context(material: TlsMaterial) -> Result<TlsContext, Problem> {
    TlsContext::new(material).map_err(|error| match error {
        TlsError::Credentials(error) => error.into(),
        other => Problem::new(Reason::InvalidArgument, other.to_string()),
    })
}

fn request_of(key: &IdentityKey) -> Result<Vec<u8>, Problem> {
    key.signing_request().map_err(|error| {
        Problem::new(
            Reason::Internal,
            format!("cannot sign a request for a certificate: {error}"),
        )
    })
}
