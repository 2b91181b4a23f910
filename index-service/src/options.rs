//! What the user may set: flags, their environment variables, and the configuration they come to.
//!
//! Invariant: a [`Config`] is whole before anything is opened. Every default is a constant with its reason.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::builder::FalseyValueParser;
use potluck_core::grpc::transport::parse_listen;

use crate::{address::AllowedHost, quota::Limits};

/// Where the index listens unless told otherwise: loopback, so that nobody serves a network without having said so.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1313);

/// Lease of a peer that asks for none: a peer that died is forgotten within a minute, and a heartbeat every 20 seconds
/// costs an index with 10,000 peers 500 small calls a second.
pub const DEFAULT_TTL: Duration = Duration::from_secs(60);

/// Shortest lease: below it a delay on the network would already look like a death.
pub const MIN_TTL: Duration = Duration::from_secs(1);

/// Longest lease: a dead peer is offered to others for at most this long.
pub const MAX_TTL: Duration = Duration::from_secs(3600);

/// How long a stopping index lets calls finish before it cuts connections: longer than any call should take, shorter than
/// the 10 seconds that container runtimes give.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(3);

/// Flags of the index.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, env = "POTLUCK_INDEX_LISTEN", value_name = "ADDR", default_value_t = DEFAULT_LISTEN, value_parser = parse_listen)]
    pub listen: SocketAddr,

    /// Folder for what must survive a restart [default: potluck/index in the user's data directory]
    #[arg(long, env = "POTLUCK_INDEX_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// What holds the registrations: `sled` keeps them on disk, `memory` forgets them at the end
    #[arg(long, env = "POTLUCK_INDEX_STORE", value_enum, default_value_t = StoreKind::Sled)]
    pub store: StoreKind,

    /// Lease of a peer that asks for none: 1s to 1h
    #[arg(long, env = "POTLUCK_INDEX_TTL", value_name = "TIME", default_value = "60s", value_parser = parse_ttl)]
    pub ttl: Duration,

    /// Let peers register this host, or any in this network (CIDR), besides the address they call from
    #[arg(
        long,
        env = "POTLUCK_INDEX_ALLOW_HOST",
        value_name = "HOST|NETWORK",
        value_delimiter = ','
    )]
    pub allow_host: Vec<AllowedHost>,

    /// Do not tell callers what is served here (gRPC reflection)
    #[arg(long, env = "POTLUCK_INDEX_NO_REFLECTION", value_parser = FalseyValueParser::new())]
    pub no_reflection: bool,

    /// Bounds on what callers may use
    #[command(flatten)]
    pub limits: Limits,
}

/// Kinds of store that the user can choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum StoreKind {
    /// On disk.
    Sled,
    /// In memory only.
    Memory,
}

/// Where registrations are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreConfig {
    /// On disk under this folder, which is made if missing.
    Sled(PathBuf),
    /// In memory: forgotten at the end.
    Memory,
}

/// Everything an index needs to know to run, apart from its listener.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where registrations are kept.
    pub store: StoreConfig,
    /// Lease of a peer that asks for none.
    pub ttl: Duration,
    /// Hosts that peers may register besides their own address.
    pub allowed_hosts: Vec<AllowedHost>,
    /// Whether callers are told what is served (gRPC reflection).
    pub reflection: bool,
    /// Bounds on what callers may use.
    pub limits: Limits,
    /// How long a stopping index lets calls finish.
    pub grace: Duration,
}

impl Default for Config {
    /// An index in memory with every default.
    fn default() -> Self {
        Self {
            store: StoreConfig::Memory,
            ttl: DEFAULT_TTL,
            allowed_hosts: Vec::new(),
            reflection: true,
            limits: Limits::default(),
            grace: DEFAULT_GRACE,
        }
    }
}

/// Why flags make no configuration.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// No `--data-dir`, and the system does not say where a user's data goes.
    #[error("this system names no data directory: give --data-dir DIR, or --store memory")]
    NoDataDir,
}

impl Options {
    /// The configuration that these flags mean.
    ///
    /// # Errors
    /// [`OptionsError::NoDataDir`] where a folder is needed and none is known.
    pub fn config(&self) -> Result<Config, OptionsError> {
        let store = match (self.store, &self.data_dir) {
            (StoreKind::Memory, _) => StoreConfig::Memory,
            (StoreKind::Sled, Some(folder)) => StoreConfig::Sled(folder.clone()),
            (StoreKind::Sled, None) => {
                let base = directories::BaseDirs::new().ok_or(OptionsError::NoDataDir)?;
                StoreConfig::Sled(base.data_dir().join("potluck").join("index"))
            }
        };
        Ok(Config {
            store,
            ttl: self.ttl,
            allowed_hosts: self.allow_host.clone(),
            reflection: !self.no_reflection,
            limits: self.limits.clone(),
            grace: DEFAULT_GRACE,
        })
    }
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let ttl = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match (MIN_TTL..=MAX_TTL).contains(&ttl) {
        true => Ok(ttl),
        false => Err("a lease lasts 1s to 1h".to_owned()),
    }
}
