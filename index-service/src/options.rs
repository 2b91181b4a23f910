//! The index's settings: flags, their environment variables, and the resulting configuration.
//!
//! Invariant: a [`Config`] is complete before anything is opened. Each default is a constant with
//! its reason.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::builder::FalseyValueParser;
use potluck_core::{
    grpc::transport::parse_listen,
    network::{
        own_pki::OwnPki,
        tls::{TlsContext, TlsError, TlsMaterial},
    },
    process::LOG_HELP,
    units::parse_duration,
};

use crate::{address::AllowedHost, limits::Limits};

/// Default listen address: loopback, so that serving a network is always an explicit choice.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1313);

/// Lease duration of a peer that requests none. The index forgets a dead peer within a minute, and
/// a heartbeat every 20 seconds costs an index with 10,000 peers 500 small calls per second.
const DEFAULT_TTL: Duration = Duration::from_secs(60);

/// Shortest lease: with a shorter one, a network delay would look like a dead peer.
pub(crate) const MIN_TTL: Duration = Duration::from_secs(1);

/// Longest lease: the index returns a dead peer as a provider for at most this long.
pub(crate) const MAX_TTL: Duration = Duration::from_secs(3600);

/// How long the index lets calls finish on shutdown before it closes connections: longer than a
/// call should take, shorter than the 10 seconds that container runtimes allow.
const DEFAULT_GRACE: Duration = Duration::from_secs(3);

/// Flags of the index.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Address to listen on, as HOST:PORT, or PORT for this machine only; port 0 picks a free port
    #[arg(
        long,
        env = "POTLUCK_INDEX_LISTEN",
        hide_env_values = true,
        value_name = "ADDRESS",
        default_value_t = DEFAULT_LISTEN,
        value_parser = parse_listen
    )]
    pub listen: SocketAddr,

    /// Folder for stored registrations [default: potluck/index in the user's data folder]
    #[arg(
        long,
        env = "POTLUCK_INDEX_DATA_DIR",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub data_dir: Option<PathBuf>,

    /// Storage of registrations: `sled` on disk, or `memory` only while the index runs
    #[arg(
        long,
        env = "POTLUCK_INDEX_STORE",
        hide_env_values = true,
        hide_possible_values = true,
        value_enum,
        default_value_t = StoreKind::Sled
    )]
    pub store: StoreKind,

    /// Lease of a peer that requests none, from 1s to 1h
    #[arg(
        long,
        env = "POTLUCK_INDEX_TTL",
        hide_env_values = true,
        value_name = "TIME",
        default_value = "60s",
        value_parser = parse_ttl
    )]
    pub ttl: Duration,

    /// Host, or network such as 10.0.0.0/8, that peers may register besides the address that they
    /// call from
    #[arg(
        long,
        env = "POTLUCK_INDEX_ALLOW_HOST",
        hide_env_values = true,
        value_name = "HOST|NETWORK",
        value_delimiter = ','
    )]
    pub allow_host: Vec<AllowedHost>,

    /// Folder of a private network, made by `potluck network create`: connections are encrypted, and
    /// only members can use the index
    #[arg(
        long,
        env = "POTLUCK_INDEX_NETWORK",
        hide_env_values = true,
        value_name = "DIR",
        conflicts_with_all = ["plaintext", "tls_cert"]
    )]
    pub network: Option<PathBuf>,

    /// Certificate for TLS in PEM, followed by intermediate ones: of a PKI of your own instead of a
    /// private network
    #[arg(
        long,
        value_name = "FILE",
        env = "POTLUCK_TLS_CERT",
        hide_env_values = true,
        requires_all = ["tls_key", "tls_ca"]
    )]
    pub tls_cert: Option<PathBuf>,

    /// Private key of --tls-cert, in PEM
    #[arg(
        long,
        value_name = "FILE",
        env = "POTLUCK_TLS_KEY",
        hide_env_values = true,
        requires = "tls_cert"
    )]
    pub tls_key: Option<PathBuf>,

    /// Certificates of the CAs to accept, in PEM
    #[arg(
        long,
        value_name = "FILE",
        env = "POTLUCK_TLS_CA",
        hide_env_values = true,
        requires = "tls_cert"
    )]
    pub tls_ca: Option<PathBuf>,

    /// Roles of the names in certificates, one `ROLE NAME` a line; `*` stands for any name. Readers, if
    /// not given
    #[arg(
        long,
        value_name = "FILE",
        env = "POTLUCK_INDEX_ROLES",
        hide_env_values = true,
        requires = "tls_cert"
    )]
    pub roles: Option<PathBuf>,

    /// Listen beyond this machine without encryption, if --listen asks for it. Anyone who reaches the
    /// index can see and register files.
    #[arg(
        long,
        env = "POTLUCK_INDEX_PLAINTEXT",
        hide_env_values = true,
        value_parser = FalseyValueParser::new()
    )]
    pub plaintext: bool,

    /// Disable gRPC reflection, which lists the services to callers
    #[arg(
        long,
        env = "POTLUCK_INDEX_NO_REFLECTION",
        hide_env_values = true,
        value_parser = FalseyValueParser::new()
    )]
    pub no_reflection: bool,

    /// Do not connect to peers that ask whether they can be reached. Give this behind a proxy:
    /// the index then sees the proxy's address in place of the peer's
    #[arg(
        long,
        env = "POTLUCK_INDEX_NO_REACHABILITY_CHECKS",
        hide_env_values = true,
        value_parser = FalseyValueParser::new()
    )]
    pub no_reachability_checks: bool,

    /// Limits per caller and for the whole index
    #[command(flatten)]
    pub limits: Limits,
}

/// The kinds of store that a user can choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum StoreKind {
    /// On disk.
    Sled,
    /// In memory only.
    Memory,
}

/// The place where registrations are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreConfig {
    /// On disk in this folder, which is created if missing.
    Sled(PathBuf),
    /// In memory: lost when the index stops.
    Memory,
}

/// The complete configuration of an index, apart from its listener.
#[derive(Debug, Clone)]
pub struct Config {
    /// The place where registrations are stored.
    pub store: StoreConfig,
    /// Lease duration of a peer that requests none.
    pub ttl: Duration,
    /// Hosts that peers may register besides their own address.
    pub allowed_hosts: Vec<AllowedHost>,
    /// Whether gRPC reflection is enabled.
    pub reflection: bool,
    /// Whether the index connects to peers that ask whether they can be reached.
    pub reachability_checks: bool,
    /// Limits per caller and for the whole index.
    pub limits: Limits,
    /// How long the index lets calls finish on shutdown.
    pub grace: Duration,
    /// TLS; `None` for plaintext, or as the private network says.
    pub tls: Option<TlsContext>,
    /// Whether the index may listen beyond this machine without TLS.
    pub plaintext: bool,
    /// The folder of the private network that the index serves.
    pub network: Option<PathBuf>,
}

impl Default for Config {
    /// An in-memory index with all defaults.
    fn default() -> Self {
        Self {
            store: StoreConfig::Memory,
            ttl: DEFAULT_TTL,
            allowed_hosts: Vec::new(),
            reflection: true,
            reachability_checks: true,
            limits: Limits::default(),
            grace: DEFAULT_GRACE,
            tls: None,
            plaintext: false,
            network: None,
        }
    }
}

/// The reason why the flags do not yield a configuration.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// `--data-dir` is missing, and the system has no default data directory for the user.
    #[error("this user has no data folder: give --data-dir DIR, or --store memory")]
    NoDataDir,
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Options {
    /// The end of the help of `program`: examples, and variables that are not those of a flag.
    pub fn help_footer(program: &str) -> String {
        format!(
            "\
Examples:
  {program}                          for this machine only, on port 1313
  {program} --listen 0.0.0.0:1313 --network DIR
                                     for the members of a private network
  {program} --listen 0               on a free port of this machine

Prints `listening on ADDRESS` when it is ready. SIGINT and SIGTERM stop it
cleanly.

{LOG_HELP}"
        )
    }

    /// The files of a PKI of one's own, if they are given.
    pub fn own_pki(&self) -> Option<OwnPki> {
        Some(OwnPki {
            certificate: self.tls_cert.clone()?,
            key: self.tls_key.clone()?,
            ca: self.tls_ca.clone()?,
            roles: self.roles.clone(),
        })
    }

    /// Builds the configuration from the flags.
    ///
    /// # Errors
    /// [`OptionsError::NoDataDir`] if the store needs a folder and none is known;
    /// [`OptionsError::Tls`] if the certificates of one's own PKI cannot be used.
    pub fn config(&self) -> Result<Config, OptionsError> {
        let store = match (self.store, &self.data_dir) {
            (StoreKind::Memory, _) => StoreConfig::Memory,
            (StoreKind::Sled, Some(folder)) => StoreConfig::Sled(folder.clone()),
            (StoreKind::Sled, None) => {
                let base = directories::BaseDirs::new().ok_or(OptionsError::NoDataDir)?;
                StoreConfig::Sled(base.data_dir().join("potluck").join("index"))
            }
        };
        let tls = match self.own_pki() {
            None => None,
            Some(files) => {
                let material = TlsMaterial::own_pki(&files).map_err(TlsError::from)?;
                Some(TlsContext::new(material)?)
            }
        };
        Ok(Config {
            store,
            ttl: self.ttl,
            allowed_hosts: self.allow_host.clone(),
            reflection: !self.no_reflection,
            reachability_checks: !self.no_reachability_checks,
            limits: self.limits.clone(),
            grace: DEFAULT_GRACE,
            tls,
            network: self.network.clone(),
            plaintext: self.plaintext,
        })
    }
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let ttl = parse_duration(text)?;
    match (MIN_TTL..=MAX_TTL).contains(&ttl) {
        true => Ok(ttl),
        false => Err("a lease lasts from 1s to 1h".to_owned()),
    }
}
