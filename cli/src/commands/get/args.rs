//! The arguments of `get`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, builder::FalseyValueParser};
use potluck_core::{
    grpc::transport::{Endpoint, parse_listen},
    model::Address,
    units::{parse_duration, parse_rate},
};

use crate::arguments::{file_query::FileQuery, limits::priority, seed::Seed};

/// Default wait without progress: long enough for a peer to restart.
pub(crate) const DEFAULT_WAIT: &str = "60s";

const EXAMPLES: &str = "\
Examples:
  potluck get model.bin                   by name, if only one file has it
  potluck get 3f9a…                       by id
  potluck get sha256:e3b0… -o /tmp/x.bin  by SHA-256, checked at the end
  potluck get photos -o ~/                a folder, saved as ~/photos
  potluck get a.bin b.bin -o models/      several at once, into one folder
  potluck get backup.tar -o - | tar x     in order, while it arrives
  potluck get https://HOST/a.iso#sha256=HEX   from a web server and all peers
  potluck get hf://ORG/REPO/a.safetensors     from the model hub and peers
  potluck get model --include '*.json'    only these files of a folder

A download that was interrupted resumes when you run the command again. A file
that exists already is verified and left as it is; another file is never
overwritten. A running peer saves into its files folder; without one, files are
saved in the current folder, and --seed keeps the command running to serve them.";

/// Download files or folders from all peers that have them
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct GetArgs {
    /// Ids, exact names, sha256:HEX, https://URL#sha256=HEX, or hf://ORG/REPO@REVISION/PATH
    #[arg(value_name = "ID|NAME|sha256:HEX|ORIGIN", required = true)]
    pub(crate) queries: Vec<FileQuery>,

    /// Where to save it: a new path, or a folder; a folder for several files; - writes one file to
    /// standard output, in order, and keeps nothing
    #[arg(short, long, value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,

    /// Peers to download from, besides those that the index lists
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', value_parser = parse_address)]
    pub(crate) from: Vec<Address>,

    /// Maximum rate of each download, such as 10MiB/s
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub(crate) limit: Option<u64>,

    /// Relative weight among the peer's downloads: 30 gets three times the rate of 10 [default: 10]
    #[arg(long, value_name = "1-100", value_parser = priority())]
    pub(crate) priority: Option<u32>,

    /// How long to wait without progress, such as 90s or 5m
    #[arg(long, value_name = "TIME", default_value = DEFAULT_WAIT, value_parser = parse_duration)]
    pub(crate) wait: Duration,

    /// Download only files of a folder whose path matches; repeatable. A glob without a slash
    /// matches names at any depth, a folder stands for everything in it
    #[arg(long, value_name = "GLOB")]
    pub(crate) include: Vec<String>,

    /// Leave out files of a folder whose path matches; repeatable
    #[arg(long, value_name = "GLOB")]
    pub(crate) exclude: Vec<String>,

    /// How long to serve it to others afterwards: `no` (nor meanwhile), a time such as 10m, or until
    /// this many times its size was sent, such as 1.5 [default: while the peer runs]
    #[arg(long, value_name = "no|TIME|RATIO")]
    pub(crate) seed: Option<Seed>,

    /// Announce and share content of an origin that needs credentials: everyone with access to this
    /// network can then download it
    #[arg(long)]
    pub(crate) share_gated: bool,

    /// Let the running peer download, and return at once
    #[arg(short, long)]
    pub(crate) detach: bool,

    /// Allow a folder that takes over 1 GiB and over ten times its distinct content
    #[arg(long)]
    pub(crate) allow_expansion: bool,

    /// Address to serve from meanwhile, if no peer is running [default: 127.0.0.1:12349, or a free
    /// port]
    #[arg(long, value_name = "ADDRESS", value_parser = parse_listen)]
    pub(crate) listen: Option<SocketAddr>,

    /// Let --listen serve other machines without encryption: anyone who reaches this machine can
    /// download what it shares
    #[arg(
        long,
        env = "POTLUCK_PEER_PLAINTEXT",
        hide_env_values = true,
        value_parser = FalseyValueParser::new()
    )]
    pub(crate) plaintext: bool,
}

fn parse_address(text: &str) -> Result<Address, String> {
    match text.parse() {
        Ok(Endpoint::Http(uri)) => {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let port = uri
                .port_u16()
                .filter(|&port| port != 0)
                .ok_or("a port is a number from 1 to 65535")?;
            Ok(Address { host, port })
        }
        _ => Err("give HOST:PORT, as in 192.0.2.7:12349".to_owned()),
    }
}
