//! The private network that commands use.

use potluck_core::{
    Problem, Reason,
    grpc::transport::Endpoint,
    index_client::IndexList,
    network::{
        credentials::{self, Credentials},
        tls::{ServerIdentity, TlsContext, TlsError, TlsMaterial},
    },
};

use crate::options::GlobalOptions;

/// The start of addresses of servers in a network.
const HTTPS: &str = "https://";

/// The private network that this machine joined.
#[derive(Debug, Clone)]
pub(crate) struct CommandNetwork {
    /// The credentials of the member; `None` in a PKI of one's own.
    pub(crate) credentials: Option<Credentials>,
    tls: TlsContext,
}

impl CommandNetwork {
    /// The network that the flags select; `None` for none.
    ///
    /// # Errors
    /// The reason why the credentials cannot be used.
    pub(crate) fn find(options: &GlobalOptions) -> Result<Option<Self>, Problem> {
        let own_pki = options.own_pki();
        let no_network = options.no_network || own_pki.is_some();
        let credentials = credentials::find(options.credentials.as_deref(), no_network)?;
        let material = match (&credentials, own_pki) {
            (None, None) => return Ok(None),
            (_, Some(files)) => TlsMaterial::own_pki(&files)?,
            (Some(credentials), None) => TlsMaterial::member(credentials, credentials.member())?,
        };
        potluck_core::process::protect_memory();
        let tls = TlsContext::new(material).map_err(|error| match error {
            TlsError::Credentials(error) => error.into(),
            other => Problem::new(Reason::InvalidArgument, other.to_string()),
        })?;
        Ok(Some(Self { credentials, tls }))
    }

    /// The endpoint of a server of the network.
    ///
    /// # Errors
    /// [`Reason::InvalidAddress`].
    pub(crate) fn endpoint(
        &self,
        address: &str,
        expected: ServerIdentity,
    ) -> Result<Endpoint, Problem> {
        Endpoint::parse_secured(address, &self.tls, expected)
    }

    /// The endpoints of indexes of the network: one, or several with commas between.
    ///
    /// # Errors
    /// [`Reason::InvalidAddress`].
    pub(crate) fn indexes(&self, addresses: &str) -> Result<IndexList, Problem> {
        IndexList::parse(addresses, |address| self.endpoint(address, ServerIdentity::Index))
    }

    /// The endpoints of the network's indexes.
    ///
    /// # Errors
    /// [`Reason::InvalidArgument`] if the credentials name no index.
    pub(crate) fn index(&self) -> Result<IndexList, Problem> {
        let indexes = self.credentials.as_ref().map_or(&[][..], Credentials::indexes);
        if indexes.is_empty() {
            return Err(Problem::new(
                Reason::InvalidArgument,
                "the credentials name no index: set it with `potluck network set-index URL`",
            ));
        }
        self.indexes(&indexes.join(","))
    }
}

/// The server at this address: in the private network, if the address starts with `https://`.
///
/// # Errors
/// [`Reason::InvalidAddress`], or the reason why the credentials cannot be used.
pub(crate) fn server_at(
    options: &GlobalOptions,
    address: &str,
    expected: ServerIdentity,
) -> Result<Endpoint, Problem> {
    let network = match is_secured(address) {
        true => CommandNetwork::find(options)?,
        false => None,
    };
    match network {
        Some(network) => network.endpoint(address, expected),
        None => address.parse(),
    }
}

/// The indexes at these addresses, with commas between: each as [`server_at`] does.
///
/// # Errors
/// As [`server_at`].
pub(crate) fn indexes_at(options: &GlobalOptions, addresses: &str) -> Result<IndexList, Problem> {
    IndexList::parse(addresses, |address| {
        server_at(options, address, ServerIdentity::Index)
    })
}

/// Whether an address is one of a server in a network.
pub(crate) fn is_secured(address: &str) -> bool {
    address.starts_with(HTTPS)
}
