//! Command line flags and environment variables of the peer, and the configuration that they
//! produce ([`Config`]).
//!
//! All options are parsed before anything starts. Every default is a named constant here.

use std::{
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::builder::FalseyValueParser;
use potluck_core::{
    Problem, Reason,
    grpc::{
        limiter::{DEFAULT_MAX_SHARE, MaxShare},
        transport::parse_listen,
    },
    index_client::IndexList,
    model::{Address, Labels, MachineLabel},
    monitoring::{Metrics, Readiness},
    network::{
        credentials::{self, Credentials},
        own_pki::OwnPki,
    },
    process::{Hangups, logging::LogOptions},
    units::{parse_duration, parse_rate, parse_size},
};

use crate::{
    cache::CacheSettings,
    library::{LinkPolicy, ShareOptions},
    locality::Locality,
};

/// Default address of the open port: loopback, so that only this machine can connect.
pub const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 12349);

/// Default index: one on this machine.
pub const DEFAULT_INDEX: &str = "http://127.0.0.1:1313";

/// Default number of `Download` calls served at the same time. Many slots with shallow queues
/// spread new pieces fastest; each slot costs one chunk of memory.
pub const DEFAULT_UPLOAD_SLOTS: u32 = 256;

/// Default maximum of connections from other peers: enough for a large crowd, and well within the
/// usual limit of open files.
pub const DEFAULT_MAX_CONNECTIONS: usize = 512;

/// The variable with the labels of this machine.
const LABEL_VARIABLE: &str = "POTLUCK_LABEL";

/// Flags of `potluck-peer` and `potluck peer`; each has an environment variable.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Read settings from this TOML file, whose keys are the names of these options; `none` for no
    /// file [default: /etc/potluck/peer.toml, if it exists]
    #[arg(
        long,
        env = "POTLUCK_PEER_CONFIG",
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

    /// Address to serve other peers on, as HOST:PORT, or PORT for this machine only; port 0 picks a
    /// free port
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "POTLUCK_PEER_LISTEN",
        hide_env_values = true,
        default_value_t = DEFAULT_LISTEN,
        value_parser = parse_listen
    )]
    pub listen: SocketAddr,

    /// Folder of the peer [default: peer-PORT in the user's data folder]
    #[arg(
        long,
        value_name = "DIR",
        env = "POTLUCK_PEER_HOME",
        hide_env_values = true
    )]
    pub home: Option<PathBuf>,

    /// Index to register with and to query, as HOST:PORT, or several that share a store, as
    /// HOST:PORT,HOST:PORT: the first that works is used; `none` for no index [default: the index of
    /// the private network, or 127.0.0.1:1313]
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "POTLUCK_INDEX",
        hide_env_values = true
    )]
    pub index: Option<String>,

    /// Join the network of the code in this file first, unless there are credentials already; `-` for
    /// standard input
    #[arg(
        long,
        env = "POTLUCK_PEER_JOIN_FILE",
        hide_env_values = true,
        value_name = "FILE",
        conflicts_with = "no_network"
    )]
    pub join_file: Option<PathBuf>,

    /// Folder with the credentials of a private network [default: the network that this machine
    /// joined, if any]
    #[arg(
        long,
        value_name = "DIR",
        env = "POTLUCK_CREDENTIALS",
        hide_env_values = true
    )]
    pub credentials: Option<PathBuf>,

    /// Use no private network, even if this machine joined one
    #[arg(
        long,
        env = "POTLUCK_NO_NETWORK",
        hide_env_values = true,
        value_parser = FalseyValueParser::new()
    )]
    pub no_network: bool,

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

    /// File or folder to share in place; may be repeated [env: POTLUCK_PEER_SHARE, paths separated
    /// by colons]
    #[arg(long, value_name = "PATH")]
    pub share: Vec<PathBuf>,

    /// Paths to share, separated by colons (for the environment variable)
    #[arg(long, hide = true, env = "POTLUCK_PEER_SHARE", value_delimiter = ':')]
    pub share_list: Vec<OsString>,

    /// What becomes of symbolic links in the folders of --share: `keep` those that stay inside,
    /// `follow` them to what they lead to, or `skip` them
    #[arg(
        long,
        value_name = "POLICY",
        env = "POTLUCK_PEER_LINKS",
        hide_env_values = true,
        hide_possible_values = true,
        value_enum,
        default_value_t
    )]
    pub links: LinkPolicy,

    /// Leave out what matches this pattern of .gitignore syntax, in the folders of --share; may be
    /// repeated [env: POTLUCK_PEER_EXCLUDE, one pattern a line]
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,

    /// Patterns to leave out, one a line (for the environment variable)
    #[arg(
        long,
        hide = true,
        env = "POTLUCK_PEER_EXCLUDE",
        value_delimiter = '\n'
    )]
    pub exclude_list: Vec<String>,

    /// Refuse a folder of --share if an entry in it cannot be shared, instead of leaving it out
    #[arg(
        long,
        env = "POTLUCK_PEER_STRICT",
        hide_env_values = true,
        value_parser = FalseyValueParser::new()
    )]
    pub strict: bool,

    /// Address that the index gives to other peers [default: the address that the index sees, with
    /// the listening port]
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "POTLUCK_PEER_ADVERTISE",
        hide_env_values = true,
        value_parser = parse_address
    )]
    pub advertise: Option<Address>,

    /// Where this machine is, as zone=NAME or rack=NAME; may be repeated. A peer prefers those of its
    /// own rack, then of its zone
    #[arg(
        long,
        value_name = "KEY=NAME",
        env = LABEL_VARIABLE,
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub label: Vec<MachineLabel>,

    /// Only download: listen on no port and register nothing, for a machine that others cannot or
    /// must not connect to
    #[arg(
        long,
        env = "POTLUCK_PEER_DOWNLOAD_ONLY",
        hide_env_values = true,
        value_parser = FalseyValueParser::new(),
        conflicts_with_all = ["share", "share_list", "advertise"]
    )]
    pub download_only: bool,

    /// Address of the control service: unix:PATH, or HOST:PORT, at which it requires a token
    /// [default: control.sock in the home]
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "POTLUCK_PEER_CONTROL",
        hide_env_values = true
    )]
    pub control: Option<ControlAt>,

    /// Listen beyond this machine without encryption, if --listen or --control asks for it. Anyone who
    /// reaches the peer can download every shared file, and anyone who can read the network traffic
    /// can read files in transit. With --control, they also learn its token, which gives access to
    /// this peer and to every file that its user can read.
    #[arg(
        long,
        env = "POTLUCK_PEER_PLAINTEXT",
        hide_env_values = true,
        value_parser = FalseyValueParser::new()
    )]
    pub plaintext: bool,

    /// Address of the monitoring endpoint, as HOST:PORT, or PORT for this machine only: `/healthz`,
    /// `/readyz` and `/metrics` over HTTP. Off, if not given
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "POTLUCK_PEER_METRICS",
        hide_env_values = true,
        value_parser = parse_listen
    )]
    pub metrics: Option<SocketAddr>,

    /// Maximum upload rate, such as 10MiB/s; 0 for no limit
    #[arg(
        long,
        value_name = "RATE",
        env = "POTLUCK_PEER_UPLOAD_LIMIT",
        hide_env_values = true,
        default_value = "0",
        value_parser = parse_rate
    )]
    pub upload_limit: u64,

    /// Maximum download rate, such as 10MiB/s; 0 for no limit
    #[arg(
        long,
        value_name = "RATE",
        env = "POTLUCK_PEER_DOWNLOAD_LIMIT",
        hide_env_values = true,
        default_value = "0",
        value_parser = parse_rate
    )]
    pub download_limit: u64,

    /// Maximum downloads to serve at the same time; 0 for no limit
    #[arg(
        long,
        value_name = "N",
        env = "POTLUCK_PEER_UPLOAD_SLOTS",
        hide_env_values = true,
        default_value_t = DEFAULT_UPLOAD_SLOTS
    )]
    pub upload_slots: u32,

    /// Maximum connections from other peers
    #[arg(
        long,
        value_name = "N",
        env = "POTLUCK_PEER_MAX_CONNECTIONS",
        hide_env_values = true,
        default_value_t = DEFAULT_MAX_CONNECTIONS
    )]
    pub max_connections: usize,

    /// Largest fraction of the free connections, watchers and upload slots that one address may
    /// hold, in percent; this machine is exempt
    #[arg(
        long,
        value_name = "PERCENT",
        env = "POTLUCK_PEER_ADDRESS_SHARE",
        hide_env_values = true,
        default_value_t = DEFAULT_MAX_SHARE,
        value_parser = clap::value_parser!(u8).range(1..=100)
    )]
    pub address_share: u8,

    /// Disable gRPC reflection for other peers
    #[arg(
        long,
        env = "POTLUCK_PEER_NO_REFLECTION",
        hide_env_values = true,
        value_parser = FalseyValueParser::new()
    )]
    pub no_reflection: bool,

    /// Threads that hash files, and threads per file system that verify downloads (the latter at
    /// most 16) [default: one per core]
    #[arg(
        long,
        value_name = "N",
        env = "POTLUCK_PEER_HASH_THREADS",
        hide_env_values = true
    )]
    pub hash_threads: Option<NonZeroUsize>,

    /// Maximum size of the cache, which holds what this peer fetches on behalf of others, such as
    /// 200GiB; what was not used for the longest time is removed first. 0 for no limit
    #[arg(
        long,
        value_name = "SIZE",
        env = "POTLUCK_PEER_CACHE_SIZE",
        hide_env_values = true,
        default_value = "0",
        value_parser = parse_size
    )]
    pub cache_size: u64,

    /// Remove from the cache what was not used for this time, such as 30d; 0s for never
    #[arg(
        long,
        value_name = "TIME",
        env = "POTLUCK_PEER_CACHE_TTL",
        hide_env_values = true,
        default_value = "0s",
        value_parser = parse_duration
    )]
    pub cache_ttl: Duration,

    /// Time after which the index drops this peer if it does not renew its lease, such as 60s
    /// [default: set by the index]
    #[arg(
        long,
        value_name = "TIME",
        env = "POTLUCK_PEER_LEASE",
        hide_env_values = true,
        value_parser = parse_duration
    )]
    pub lease: Option<Duration>,
}

impl Options {
    /// The files of a PKI of one's own, if they are given.
    fn own_pki(&self) -> Option<OwnPki> {
        Some(OwnPki {
            certificate: self.tls_cert.clone()?,
            key: self.tls_key.clone()?,
            ca: self.tls_ca.clone()?,
            roles: None,
        })
    }

    /// Where this machine is.
    ///
    /// # Errors
    /// [`Reason::InvalidArgument`] if it has two zones or two racks.
    pub(crate) fn labels(&self) -> Result<Labels, Problem> {
        labels(&self.label)
    }

    /// The settings of the cache.
    pub(crate) const fn cache(&self) -> CacheSettings {
        CacheSettings {
            max_bytes: self.cache_size,
            max_idle: self.cache_ttl,
        }
    }

    /// The end of the help of `program`: examples, and variables that are not those of a flag.
    pub fn help_footer(program: &str) -> String {
        format!(
            "\
Examples:
  {program}                       for this machine only, on port 12349
  {program} --listen 0.0.0.0:12349 --index index.example:1313
  {program} --share ~/models --upload-limit 50MiB/s

Prints `listening on ADDRESS` when it is ready. Files in `files` in the peer's
folder are shared, and downloads are saved there. Commands of `potluck` control
the peer through the control socket in its folder. SIGINT and SIGTERM stop it
cleanly, and SIGHUP makes it read its file again. The log goes to standard
error."
        )
    }
}

/// The labels of a machine.
///
/// # Errors
/// [`Reason::InvalidArgument`] if it has two zones or two racks.
pub fn labels(list: &[MachineLabel]) -> Result<Labels, Problem> {
    Labels::of(list).map_err(|message| Problem::new(Reason::InvalidArgument, message))
}

/// The labels that the environment gives for a peer without options of its own.
///
/// # Errors
/// [`Reason::InvalidArgument`] if they are not valid.
pub fn labels_of_environment() -> Result<Labels, Problem> {
    let text = std::env::var(LABEL_VARIABLE).unwrap_or_default();
    let words = text.split(',').filter(|word| !word.is_empty());
    let list: Result<Vec<MachineLabel>, String> = words.map(str::parse).collect();
    let invalid =
        |message| Problem::new(Reason::InvalidArgument, format!("{LABEL_VARIABLE}: {message}"));
    list.and_then(|list| Labels::of(&list)).map_err(invalid)
}

/// The address on which the control service listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlAt {
    /// A Unix socket at this path; `None` means `control.sock` in the home.
    Unix(Option<PathBuf>),
    /// TCP, with a token in the home's `state/control-token`.
    Tcp(SocketAddr),
}

impl FromStr for ControlAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path.is_empty() {
                true => Err("give a path after `unix:`".into()),
                false => Ok(Self::Unix(Some(path.into()))),
            };
        }
        parse_listen(text.strip_prefix("http://").unwrap_or(text))
            .map(Self::Tcp)
            .map_err(|_| {
                "give unix:PATH, an IP address with a port as in 127.0.0.1:12350, or a port".into()
            })
    }
}

/// The peer's initial limits; 0 means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitSettings {
    /// Upload rate in bytes per second.
    pub upload_bytes_per_second: u64,
    /// Download rate in bytes per second.
    pub download_bytes_per_second: u64,
    /// `Download` calls served at the same time.
    pub upload_slots: u32,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            upload_bytes_per_second: 0,
            download_bytes_per_second: 0,
            upload_slots: DEFAULT_UPLOAD_SLOTS,
        }
    }
}

/// The configuration of a peer: made from [`Options`], or by a program that embeds a peer.
#[derive(Debug, Clone)]
pub struct Config {
    /// The peer's home folder.
    pub home: PathBuf,
    /// The index; `None` for no index.
    pub index: Option<IndexList>,
    /// Files and folders to share from the start.
    pub share: Vec<PathBuf>,
    /// How to share them.
    pub share_options: ShareOptions,
    /// The address that the index gives to other peers; `None` for the address that the index sees.
    pub advertise: Option<Address>,
    /// Where this machine is; also counts bytes by zone.
    pub locality: Locality,
    /// The address on which the control service listens.
    pub control: ControlAt,
    /// Whether the peer may listen beyond this machine without encryption.
    pub plaintext: bool,
    /// The initial limits.
    pub limits: LimitSettings,
    /// The settings of the cache.
    pub cache: CacheSettings,
    /// Maximum connections from other peers.
    pub max_connections: usize,
    /// The largest fraction of the free permits that one address may hold.
    pub address_share: MaxShare,
    /// Whether the open port offers gRPC reflection.
    pub reflection: bool,
    /// Threads that hash files.
    pub hash_threads: usize,
    /// How long the index keeps this peer without a renewal; `None` for the index's default.
    pub lease: Option<Duration>,
    /// The credentials of the private network; `None` for plaintext.
    pub network: Option<Credentials>,
    /// The files of a PKI of one's own, instead of a private network.
    pub own_pki: Option<OwnPki>,
    /// Set while the peer can do its work.
    pub readiness: Readiness,
    /// Measures the peer.
    pub metrics: Metrics,
    /// Hangups, at which the files of a PKI of one's own are read again.
    pub hangups: Hangups,
}

impl Config {
    /// A peer with its home in this folder, all defaults, and no index.
    pub fn new(home: impl Into<PathBuf>) -> Self {
        Self {
            home: home.into(),
            index: None,
            share: Vec::new(),
            share_options: ShareOptions::default(),
            advertise: None,
            locality: Locality::default(),
            control: ControlAt::Unix(None),
            plaintext: false,
            limits: LimitSettings::default(),
            cache: CacheSettings::default(),
            max_connections: DEFAULT_MAX_CONNECTIONS,
            address_share: MaxShare::default(),
            reflection: true,
            hash_threads: default_threads(),
            lease: None,
            network: None,
            own_pki: None,
            readiness: Readiness::default(),
            metrics: Metrics::default(),
            hangups: Hangups::none(),
        }
    }

    /// The configuration that the options give for a peer that listens on `port`.
    ///
    /// # Errors
    /// [`Reason::InvalidAddress`] if the index's URL is invalid; [`Reason::InvalidArgument`] if no
    /// home is given and the user has no data directory.
    pub fn from_options(options: Options, port: u16) -> Result<Self, Problem> {
        let (own_pki, cache) = (options.own_pki(), options.cache());
        let locality = Locality::new(options.labels()?);
        let home = match options.home {
            Some(home) => home,
            None => default_home(port)?,
        };
        let listed = options.share_list.into_iter().map(PathBuf::from);
        let listed = listed.filter(|path| path != Path::new(""));
        let excluded = options.exclude_list.into_iter();
        let excluded = excluded.map(|line| line.trim_end_matches('\r').to_owned());
        let no_network = options.no_network || own_pki.is_some();
        let network = credentials::find(options.credentials.as_deref(), no_network)?;
        let has_tls = network.is_some() || own_pki.is_some();
        let index = match (options.index, &network) {
            (Some(index), _) => parse_index(&index, has_tls)?,
            (None, Some(network)) => {
                let indexes = network.indexes();
                if indexes.is_empty() {
                    return Err(no_index(network));
                }
                parse_index(&indexes.join(","), true)?
            }
            (None, None) => parse_index(DEFAULT_INDEX, has_tls)?,
        };
        Ok(Self {
            index,
            network,
            own_pki,
            share: options.share.into_iter().chain(listed).collect(),
            share_options: ShareOptions {
                links: options.links,
                is_strict: options.strict,
                exclude: options.exclude.into_iter().chain(excluded).collect(),
            },
            advertise: options.advertise,
            locality,
            control: options.control.unwrap_or(ControlAt::Unix(None)),
            plaintext: options.plaintext,
            limits: LimitSettings {
                upload_bytes_per_second: options.upload_limit,
                download_bytes_per_second: options.download_limit,
                upload_slots: options.upload_slots,
            },
            cache,
            max_connections: options.max_connections.max(1),
            address_share: MaxShare::from_percent(options.address_share).unwrap_or_default(),
            reflection: !options.no_reflection,
            hash_threads: options
                .hash_threads
                .map_or_else(default_threads, NonZeroUsize::get),
            lease: options.lease.filter(|lease| !lease.is_zero()),
            ..Self::new(home)
        })
    }
}

/// The default home of a peer on this port: `peer-<port>` in the user's data directory for potluck.
///
/// # Errors
/// [`Reason::InvalidArgument`] if the user has no data directory.
pub fn default_home(port: u16) -> Result<PathBuf, Problem> {
    directories::ProjectDirs::from("", "", "potluck")
        .map(|dirs| dirs.data_dir().join(format!("peer-{port}")))
        .ok_or_else(|| {
            Problem::new(
                Reason::InvalidArgument,
                "this user has no data folder for the peer's home: give --home DIR",
            )
        })
}

/// The port that names the default home of a peer that does not listen: the one that it would listen
/// on.
pub(crate) const fn home_port(listen: SocketAddr) -> u16 {
    match listen.port() {
        0 => DEFAULT_LISTEN.port(),
        port => port,
    }
}

/// Parses the index's URL, or several with commas between; an empty text or `none` means no index.
/// In a network, `https://` is allowed: TLS is used in any case.
fn parse_index(text: &str, in_network: bool) -> Result<Option<IndexList>, Problem> {
    let parse = |url: &str| match in_network {
        true => url.strip_prefix("https://").unwrap_or(url).parse(),
        false => url.parse(),
    };
    match text {
        "" | "none" => Ok(None),
        urls => IndexList::parse(urls, parse).map(Some),
    }
}

fn no_index(network: &Credentials) -> Problem {
    Problem::new(
        Reason::InvalidArgument,
        format!(
            "the credentials in {} name no index: set it with `potluck network set-index URL`",
            network.folder().display()
        ),
    )
}

fn parse_address(text: &str) -> Result<Address, String> {
    let uri: tonic::transport::Uri = format!("http://{text}")
        .parse()
        .map_err(|_| "give HOST:PORT".to_owned())?;
    let host = uri
        .host()
        .unwrap_or_default()
        .trim_start_matches('[')
        .trim_end_matches(']');
    match uri.port_u16() {
        Some(port @ 1..) if !host.is_empty() => Ok(Address {
            host: host.to_owned(),
            port,
        }),
        _ => Err("give HOST:PORT, as in 192.0.2.7:12349".into()),
    }
}

fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct TestCommandLine {
        #[command(flatten)]
        options: Options,
    }

    fn parse(args: &[&str]) -> Options {
        let no_network = ["peer", "--no-network"];
        TestCommandLine::try_parse_from([&no_network, args].concat())
            .unwrap()
            .options
    }

    #[test]
    fn the_default_addresses_are_12349_and_1313() {
        let options = parse(&["--home", "/h"]);
        assert_eq!(options.listen.to_string(), "127.0.0.1:12349");
        let config = Config::from_options(options, 12349).unwrap();
        assert_eq!(config.index.unwrap().to_string(), DEFAULT_INDEX);
        assert_eq!(config.control, ControlAt::Unix(None));
    }

    #[test]
    fn a_peer_can_run_without_an_index() {
        for none in ["", "none"] {
            let config =
                Config::from_options(parse(&["--home", "/h", "--index", none]), 1).unwrap();
            assert_eq!(config.index, None);
        }
    }

    #[test]
    fn addresses_need_a_host_and_a_port() {
        assert_eq!(
            parse_address("[::1]:7").unwrap(),
            Address {
                host: "::1".into(),
                port: 7
            }
        );
        assert_eq!(parse_address("a.example:7").unwrap().host, "a.example");
        for bad in ["", "host", ":7", "host:0", "host:70000", "h/x:7"] {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn control_is_a_socket_or_an_address() {
        assert_eq!("unix:/a".parse(), Ok(ControlAt::Unix(Some("/a".into()))));
        assert_eq!("unix:///a".parse(), Ok(ControlAt::Unix(Some("/a".into()))));
        assert_eq!(
            "127.0.0.1:5".parse(),
            Ok(ControlAt::Tcp("127.0.0.1:5".parse().unwrap()))
        );
        assert_eq!("5".parse(), Ok(ControlAt::Tcp("127.0.0.1:5".parse().unwrap())));
        assert!("unix:".parse::<ControlAt>().is_err());
        assert!("nonsense".parse::<ControlAt>().is_err());
    }

    #[test]
    fn paths_to_share_come_from_flags_and_from_the_list() {
        let options = parse(&["--home", "/h", "--share", "/a:b", "--share-list", "/c:/d:"]);
        let config = Config::from_options(options, 1).unwrap();
        assert_eq!(
            config.share,
            [Path::new("/a:b"), Path::new("/c"), Path::new("/d")]
        );
    }

    #[test]
    fn patterns_to_exclude_come_from_flags_and_from_the_list() {
        let args = [
            "--home",
            "/h",
            "--exclude",
            "*.o",
            "--exclude-list",
            "a\n{b:c}",
            "--strict",
        ];
        let config = Config::from_options(parse(&args), 1).unwrap();
        let options = ShareOptions {
            links: LinkPolicy::Keep,
            is_strict: true,
            exclude: vec!["*.o".into(), "a".into(), "{b:c}".into()],
        };
        assert_eq!(config.share_options, options);
        assert_eq!(parse(&["--links", "follow"]).links, LinkPolicy::Follow);
    }

    #[test]
    fn labels_come_one_by_one_or_as_a_list() {
        let labels = |args: &[&str]| {
            let config = Config::from_options(parse(args), 1);
            config.map(|config| config.locality.labels().to_string())
        };
        let expected = Ok("zone=a rack=r1".to_owned());
        assert_eq!(
            labels(&["--home", "/h", "--label", "rack=r1", "--label", "zone=a"]),
            expected
        );
        assert_eq!(labels(&["--home", "/h", "--label", "zone=a,rack=r1"]), expected);
        let problem = labels(&["--home", "/h", "--label", "zone=a,zone=b"]).unwrap_err();
        assert_eq!(problem.reason, Reason::InvalidArgument);
        assert!(TestCommandLine::try_parse_from(["peer", "--label", "city=x"]).is_err());
    }

    #[test]
    fn rates_and_times_have_units() {
        assert_eq!(parse(&["--upload-limit", "10MiB/s"]).upload_limit, 10 << 20);
        assert_eq!(parse(&["--lease", "5m"]).lease, Some(Duration::from_secs(300)));
        assert!(TestCommandLine::try_parse_from(["peer", "--upload-limit", "fast"]).is_err());
    }
}
