//! The index's settings: flags, their environment variables and keys, and the resulting configuration.
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
    monitoring::{Metrics, Readiness},
    network::{
        authority::DEFAULT_VALIDITY,
        own_pki::OwnPki,
        tls::{TlsContext, TlsError, TlsMaterial},
    },
    process::logging::LogOptions,
    units::parse_duration,
};

use crate::{address::AllowedHost, limits::Limits, network::audit::AUDIT, store::RedisConfig};

/// Default listen address: loopback, so that serving a network is always an explicit choice.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1313);

/// Lease duration of a peer that requests none. The index forgets a dead peer within a minute, and
/// a heartbeat every 20 seconds costs an index with 10,000 peers 500 small calls per second.
const DEFAULT_TTL: Duration = Duration::from_secs(60);

/// Shortest lease: with a shorter one, a network delay would look like a dead peer.
pub(crate) const MIN_TTL: Duration = Duration::from_secs(1);

/// Longest lease: the index returns a dead peer as a provider for at most this long.
pub(crate) const MAX_TTL: Duration = Duration::from_secs(3600);

/// Shortest validity of certificates, for tests: a renewal takes a call, and clocks have whole seconds
/// in certificates.
const MIN_LIFETIME: Duration = Duration::from_secs(10);

/// Longest validity of certificates: how long a revoked member may stay where no list of revocations
/// arrives.
const MAX_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// How long the index lets calls finish on shutdown before it closes connections: longer than a
/// call should take, shorter than the 10 seconds that container runtimes allow.
const DEFAULT_GRACE: Duration = Duration::from_secs(3);

/// Environment variable with the password of the Redis Cluster. It is no flag, because other users see
/// the flags of a process.
const STORE_PASSWORD: &str = "POTLUCK_INDEX_STORE_PASSWORD";

/// Flags of the index.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Read settings from this TOML file, whose keys are the names of these options; `none` for no
    /// file [default: /etc/potluck/index.toml, if it exists]
    #[arg(
        long,
        env = "POTLUCK_INDEX_CONFIG",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub config: Option<PathBuf>,

    /// Print all settings with where each comes from, as a file for --config, and exit
    #[arg(long)]
    pub print_config: bool,

    /// Log and traces
    #[command(flatten)]
    pub log: LogOptions,

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

    /// Storage of registrations: `sled` on disk, `memory` only while the index runs, or
    /// `redis://HOST:PORT,HOST:PORT` in a Redis Cluster that several indexes share (`rediss://` with
    /// TLS; some of its nodes are enough)
    #[arg(
        long,
        env = "POTLUCK_INDEX_STORE",
        hide_env_values = true,
        value_name = "STORE",
        default_value = "sled",
        value_parser = parse_store
    )]
    pub store: StoreKind,

    /// User of the Redis Cluster [default: Redis's default user]
    #[arg(
        long,
        env = "POTLUCK_INDEX_STORE_USER",
        hide_env_values = true,
        value_name = "NAME"
    )]
    pub store_user: Option<String>,

    /// File with the password of the Redis Cluster, which POTLUCK_INDEX_STORE_PASSWORD may give instead
    #[arg(
        long,
        env = "POTLUCK_INDEX_STORE_PASSWORD_FILE",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub store_password_file: Option<PathBuf>,

    /// Certificate of the CA of the Redis Cluster, in PEM [default: those that the system trusts]
    #[arg(
        long,
        env = "POTLUCK_INDEX_STORE_CA",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub store_ca: Option<PathBuf>,

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

    /// How long the certificates of members and peers are valid, from 10s to 90d; each is renewed in its
    /// second half. A revoked member is out at this time even where no list of revocations arrives
    #[arg(
        long,
        env = "POTLUCK_INDEX_CERTIFICATE_LIFETIME",
        hide_env_values = true,
        value_name = "TIME",
        default_value = "7d",
        value_parser = parse_lifetime
    )]
    pub certificate_lifetime: Duration,

    /// File for the audit log [default: audit.log in the folder of --network, or with --tls-cert in that
    /// of --data-dir]
    #[arg(
        long,
        env = "POTLUCK_INDEX_AUDIT_LOG",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub audit_log: Option<PathBuf>,

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

    /// Address of the monitoring endpoint, as HOST:PORT, or PORT for this machine only: `/healthz`,
    /// `/readyz` and `/metrics` over HTTP. Off, if not given
    #[arg(
        long,
        env = "POTLUCK_INDEX_METRICS",
        hide_env_values = true,
        value_name = "ADDRESS",
        value_parser = parse_listen
    )]
    pub metrics: Option<SocketAddr>,

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreKind {
    /// On disk.
    Sled,
    /// In memory only.
    Memory,
    /// In a Redis Cluster with these nodes, each as `redis://HOST:PORT` or `rediss://HOST:PORT`.
    Redis(Vec<String>),
}

/// The place where registrations are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreConfig {
    /// On disk in this folder, which is created if missing.
    Sled(PathBuf),
    /// In memory: lost when the index stops.
    Memory,
    /// In a Redis Cluster, which several indexes may share.
    Redis(RedisConfig),
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
    /// How long the certificates of members and peers are valid.
    pub certificate_lifetime: Duration,
    /// The file of the audit log; `None` for the default.
    pub audit_log: Option<PathBuf>,
    /// Set while the index can do its work.
    pub readiness: Readiness,
    /// Measures the index.
    pub metrics: Metrics,
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
            certificate_lifetime: DEFAULT_VALIDITY,
            audit_log: None,
            readiness: Readiness::default(),
            metrics: Metrics::default(),
        }
    }
}

impl Config {
    /// The file of the audit log: the one given, else one in the folder of the private network, else
    /// with TLS one beside the store. `None` for no log.
    pub(crate) fn audit_log_path(&self) -> Option<PathBuf> {
        let folder = match (&self.network, &self.tls, &self.store) {
            (Some(network), _, _) => Some(network),
            (None, Some(_), StoreConfig::Sled(folder)) => Some(folder),
            _ => None,
        };
        let default = || Some(folder?.join(AUDIT));
        self.audit_log.clone().or_else(default)
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
    /// The password of the store cannot be read.
    #[error("cannot read the password in {}: {source}; correct --store-password-file", path.display())]
    Password {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
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
cleanly, and SIGHUP makes it read its file again. The log goes to standard
error."
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

    /// The password of the Redis Cluster: the first line of the file, or the environment's.
    fn store_password(&self) -> Result<Option<String>, OptionsError> {
        let Some(path) = &self.store_password_file else {
            let password = std::env::var(STORE_PASSWORD).ok();
            return Ok(password.filter(|password| !password.is_empty()));
        };
        let text = std::fs::read_to_string(path).map_err(|source| OptionsError::Password {
            path: path.clone(),
            source,
        })?;
        Ok(text.lines().next().map(str::to_owned))
    }

    /// Builds the configuration from the flags.
    ///
    /// # Errors
    /// [`OptionsError::NoDataDir`] if the store needs a folder and none is known;
    /// [`OptionsError::Tls`] if the certificates of one's own PKI cannot be used.
    pub fn config(&self) -> Result<Config, OptionsError> {
        let store = match (&self.store, &self.data_dir) {
            (StoreKind::Memory, _) => StoreConfig::Memory,
            (StoreKind::Redis(nodes), folder) => StoreConfig::Redis(RedisConfig {
                nodes: nodes.clone(),
                user: self.store_user.clone(),
                password: self.store_password()?,
                ca: self.store_ca.clone(),
                folder: folder.clone(),
            }),
            (StoreKind::Sled, folder) => StoreConfig::Sled(data_dir(folder.clone())?),
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
            certificate_lifetime: self.certificate_lifetime,
            audit_log: self.audit_log.clone(),
            readiness: Readiness::default(),
            metrics: Metrics::default(),
        })
    }
}

/// The folder for stored registrations: the one given, or the default.
///
/// # Errors
/// [`OptionsError::NoDataDir`] if none is given and the user has no data folder.
pub fn data_dir(given: Option<PathBuf>) -> Result<PathBuf, OptionsError> {
    let default = || {
        let base = directories::BaseDirs::new().ok_or(OptionsError::NoDataDir)?;
        Ok(base.data_dir().join("potluck").join("index"))
    };
    given.map_or_else(default, Ok)
}

/// Parses the kind of store, with the nodes of a Redis Cluster.
fn parse_store(text: &str) -> Result<StoreKind, String> {
    let (scheme, nodes) = match text {
        "sled" => return Ok(StoreKind::Sled),
        "memory" => return Ok(StoreKind::Memory),
        text => text
            .split_once("://")
            .filter(|(scheme, _)| matches!(*scheme, "redis" | "rediss"))
            .ok_or("give sled, memory or redis://HOST:PORT,HOST:PORT")?,
    };
    let prefix = format!("{scheme}://");
    let parse = |node: &str| {
        let node = node.trim().trim_end_matches('/');
        let node = node.strip_prefix(&*prefix).unwrap_or(node);
        let is_address = node
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        match is_address && !node.contains(['/', '?', '#', '@']) {
            true => Ok(format!("{prefix}{node}")),
            // The node is not shown: it may contain a password.
            false => Err(
                "give each node as HOST:PORT, and the password with --store-password-file or \
                 POTLUCK_INDEX_STORE_PASSWORD"
                    .to_owned(),
            ),
        }
    };
    Ok(StoreKind::Redis(
        nodes.split(',').map(parse).collect::<Result<_, _>>()?,
    ))
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let ttl = parse_duration(text)?;
    match (MIN_TTL..=MAX_TTL).contains(&ttl) {
        true => Ok(ttl),
        false => Err("a lease lasts from 1s to 1h".to_owned()),
    }
}

fn parse_lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = parse_duration(text)?;
    match (MIN_LIFETIME..=MAX_LIFETIME).contains(&lifetime) {
        true => Ok(lifetime),
        false => Err("a certificate is valid from 10s to 90d".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_parsed() {
        assert_eq!(parse_store("sled"), Ok(StoreKind::Sled));
        assert_eq!(parse_store("memory"), Ok(StoreKind::Memory));
        let nodes = ["redis://a.example:7000", "redis://[::1]:7001"].map(str::to_owned);
        for text in [
            "redis://a.example:7000,[::1]:7001",
            "redis://a.example:7000/, redis://[::1]:7001",
        ] {
            assert_eq!(parse_store(text), Ok(StoreKind::Redis(nodes.to_vec())), "{text}");
        }
        for bad in [
            "",
            "etcd://a:1",
            "redis://",
            "redis://a",
            "redis://a:x",
            "redis://a:1,",
            "redis://a:1/0",
        ] {
            assert!(parse_store(bad).is_err(), "{bad}");
        }
        let refused = parse_store("redis://:hunter2@a:1").unwrap_err();
        assert!(refused.contains("--store-password-file") && !refused.contains("hunter2"));
    }
}
