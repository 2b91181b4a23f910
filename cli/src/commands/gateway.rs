//! `potluck gateway`: serves the protocols of the Hugging Face Hub and of registries to the programs
//! of this machine.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, builder::FalseyValueParser};
use potluck_core::{
    Problem, Reason,
    configuration::{Configured, Setting, reload_on_hangup},
    grpc::transport::parse_listen,
    index_client,
    model::MachineLabel,
    process::Hangups,
    units::{parse_duration, parse_size},
};
use potluck_gateway::{GatewayConfig, RegistryConfig, TlsFiles};
use potluck_origins::hub::DEFAULT_ENDPOINT;
use potluck_peer::{
    cache::{Cache, CacheSettings},
    locality::Locality,
    options::labels,
};
use tokio::net::TcpListener;
use url::Url;

use crate::{context::CommandContext, error::CommandError, local_files};

/// Where it listens unless told otherwise.
const DEFAULT_LISTEN: &str = "127.0.0.1:8080";

/// The registry of container images unless others are given.
const DEFAULT_OCI: &str = "docker.io=https://registry-1.docker.io";

/// Where its peer listens unless told otherwise: a free port.
const DEFAULT_PEER_LISTEN: &str = "127.0.0.1:0";

/// How long the hub may be away while the gateway still serves clients with the same credentials: a
/// short outage.
const DEFAULT_AUTH_GRACE: &str = "10m";

const EXAMPLES: &str = "\
Examples:
  potluck gateway                              for the programs of this machine
  HF_ENDPOINT=http://127.0.0.1:8080 hf download ORG/REPO
  skopeo copy --src-tls-verify=false docker://127.0.0.1:8080/debian dir:debian
  potluck gateway --cache-size 200GiB --peer-listen 0.0.0.0:12350

Programs that use the Hugging Face Hub or a registry of container images get
files and layers from all peers that have them, and what no peer has from the
hub or the registry. Prints `listening on ADDRESS` when it
is ready.";

/// Serve the Hugging Face Hub and container registries, with bytes from peers
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct GatewayArgs {
    /// Read settings from this TOML file, whose keys are the names of these options; `none` for no
    /// file [default: /etc/potluck/gateway.toml, if it exists]
    #[arg(
        long,
        env = "POTLUCK_GATEWAY_CONFIG",
        hide_env_values = true,
        value_name = "FILE"
    )]
    config: Option<PathBuf>,

    /// Print all settings with where each comes from, as a file for --config, and exit
    #[arg(long)]
    pub(crate) print_config: bool,

    /// Where to listen
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "POTLUCK_GATEWAY_LISTEN", hide_env_values = true,
        default_value = DEFAULT_LISTEN,
        value_parser = parse_listen
    )]
    listen: SocketAddr,

    /// The hub
    #[arg(
        long,
        value_name = "URL",
        env = "POTLUCK_GATEWAY_HF",
        hide_env_values = true,
        default_value = DEFAULT_ENDPOINT
    )]
    hf: Url,

    /// A registry of container images; repeatable. The first is asked if a request names none
    #[arg(
        long,
        value_name = "NAME=URL",
        env = "POTLUCK_GATEWAY_OCI",
        hide_env_values = true,
        value_delimiter = ',',
        default_value = DEFAULT_OCI
    )]
    oci: Vec<RegistryConfig>,

    /// Folder of the gateway's own peer and cache [default: gateway-PORT in the user's data folder]
    #[arg(
        long,
        value_name = "DIR",
        env = "POTLUCK_GATEWAY_HOME",
        hide_env_values = true
    )]
    home: Option<PathBuf>,

    /// Where the gateway's peer serves other peers
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "POTLUCK_GATEWAY_PEER_LISTEN", hide_env_values = true,
        default_value = DEFAULT_PEER_LISTEN,
        value_parser = parse_listen
    )]
    peer_listen: SocketAddr,

    /// Where this machine is, as zone=NAME or rack=NAME; may be repeated. The gateway's peer prefers
    /// peers of its own rack, then of its zone
    #[arg(
        long,
        value_name = "KEY=NAME",
        env = "POTLUCK_LABEL",
        hide_env_values = true,
        value_delimiter = ','
    )]
    label: Vec<MachineLabel>,

    /// Maximum size of the cache, such as 200GiB; what was not used for the longest time is removed
    /// first [default: no limit]
    #[arg(
        long,
        value_name = "SIZE",
        env = "POTLUCK_GATEWAY_CACHE_SIZE",
        hide_env_values = true,
        value_parser = parse_size
    )]
    cache_size: Option<u64>,

    /// Remove from the cache what was not used for this time, such as 30d; 0s for never
    #[arg(
        long,
        value_name = "TIME",
        env = "POTLUCK_GATEWAY_CACHE_TTL",
        hide_env_values = true,
        default_value = "0s",
        value_parser = parse_duration
    )]
    cache_ttl: Duration,

    /// How long the gateway serves what it has while the hub cannot be reached
    #[arg(
        long,
        value_name = "TIME",
        env = "POTLUCK_GATEWAY_AUTH_GRACE",
        hide_env_values = true,
        default_value = DEFAULT_AUTH_GRACE,
        value_parser = parse_duration
    )]
    auth_grace: Duration,

    /// Another name that clients use for this gateway; repeatable
    #[arg(
        long = "host",
        value_name = "NAME",
        env = "POTLUCK_GATEWAY_HOST",
        hide_env_values = true,
        value_delimiter = ','
    )]
    hosts: Vec<String>,

    /// Join the network of the code in this file first, unless there are credentials already; `-` for
    /// standard input
    #[arg(
        long,
        value_name = "FILE",
        env = "POTLUCK_GATEWAY_JOIN_FILE",
        hide_env_values = true
    )]
    join_file: Option<PathBuf>,

    /// Certificate for clients in PEM, followed by intermediate ones: the gateway then speaks HTTPS
    #[arg(
        long,
        value_name = "FILE",
        env = "POTLUCK_GATEWAY_HTTPS_CERT",
        hide_env_values = true,
        requires = "https_key"
    )]
    https_cert: Option<PathBuf>,

    /// Private key of --https-cert, in PEM
    #[arg(
        long,
        value_name = "FILE",
        env = "POTLUCK_GATEWAY_HTTPS_KEY",
        hide_env_values = true,
        requires = "https_cert"
    )]
    https_key: Option<PathBuf>,

    /// Announce and share content that needs credentials: everyone with access to this network can
    /// then download it
    #[arg(
        long,
        env = "POTLUCK_GATEWAY_SHARE_GATED",
        hide_env_values = true,
        value_parser = FalseyValueParser::new()
    )]
    share_gated: bool,

    /// Let --listen and --peer-listen serve other machines without encryption: tokens of clients and
    /// all content then cross the network in the clear
    #[arg(
        long,
        env = "POTLUCK_GATEWAY_PLAINTEXT",
        hide_env_values = true,
        value_parser = FalseyValueParser::new()
    )]
    plaintext: bool,
}

impl GatewayArgs {
    const fn cache(&self) -> CacheSettings {
        CacheSettings {
            max_bytes: match self.cache_size {
                Some(size) => size,
                None => 0,
            },
            max_idle: self.cache_ttl,
        }
    }
}

/// Runs a gateway until it is stopped. Reads its settings again at each of the `hangups`.
pub(crate) async fn run(
    context: &CommandContext,
    configured: Configured<GatewayArgs>,
    hangups: Hangups,
) -> Result<(), CommandError> {
    let args = configured.options.clone();
    if context.names_a_peer() {
        return Err(CommandError::usage(
            "a gateway runs a peer of its own: leave out --peer and POTLUCK_PEER",
        ));
    }
    if let Some(file) = &args.join_file {
        let folder = context.credentials_folder()?;
        index_client::join_once(folder, file, &index_client::machine_name()).await?;
    }
    let listener = bind(args.listen, "--listen").await?;
    let address = listener
        .local_addr()
        .map_err(|error| CommandError::new(Reason::Internal, error.to_string()))?;
    let home = match &args.home {
        Some(home) => home.clone(),
        None => potluck_peer::options::default_home(address.port())?
            .with_file_name(format!("gateway-{}", address.port())),
    };
    // The peer takes only absolute paths.
    let home = PathBuf::from(local_files::absolute(&home)?);
    let mut peer = context.service_peer_config(home)?;
    peer.locality = Locality::new(labels(&args.label)?);
    peer.plaintext = args.plaintext;
    peer.cache = args.cache();
    peer.hangups = hangups.clone();
    let locality = peer.locality.clone();
    let peer_listener = bind(args.peer_listen, "--peer-listen").await?;
    let stop_peer = context.stop.child_token();
    let running = potluck_peer::start(peer_listener, peer, stop_peer.clone()).await?;
    let cache = running.cache.clone();
    let apply =
        move |args: &GatewayArgs, changes: &[_]| apply_changes(&cache, &locality, args, changes);
    tokio::spawn(reload_on_hangup(configured, hangups, stop_peer.clone(), apply));
    let config = GatewayConfig {
        hub: args.hf,
        registries: args.oci,
        auth_grace: args.auth_grace,
        hosts: args.hosts,
        tls: args
            .https_cert
            .zip(args.https_key)
            .map(|(certificate, key)| TlsFiles { certificate, key }),
        plaintext: args.plaintext,
        share_gated: args.share_gated,
    };
    context.out.print_line(format_args!("listening on {address}"))?;
    let served = potluck_gateway::serve(listener, config, &running, context.stop.clone()).await;
    stop_peer.cancel();
    running.join().await;
    Ok(served?)
}

/// Applies the changed settings that a running gateway can change, and returns their keys.
fn apply_changes(
    cache: &Cache,
    locality: &Locality,
    args: &GatewayArgs,
    changes: &[(Setting, Setting)],
) -> Vec<&'static str> {
    let is_changed = |key: &&str| changes.iter().any(|(_, new)| new.key == *key);
    let labels = labels(&args.label);
    let is_valid = |key: &&str| *key != "label" || labels.is_ok();
    let keys = ["cache-size", "cache-ttl", "label"].into_iter();
    let changed: Vec<_> = keys.filter(is_changed).filter(is_valid).collect();
    for key in &changed {
        match (*key, &labels) {
            ("label", Ok(labels)) => locality.set_labels(labels.clone()),
            _ => cache.set_settings(args.cache()),
        }
    }
    changed
}

async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener, Problem> {
    TcpListener::bind(address).await.map_err(|error| {
        let message = format!("cannot listen on {address}: {error}; choose another with {flag}");
        Problem::new(Reason::AddressInUse, message)
    })
}
