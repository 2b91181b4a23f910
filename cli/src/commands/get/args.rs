//! The arguments of `get`.

use std::{net::SocketAddr, path::PathBuf};

use bytesize::ByteSize;
use clap::Args;
use potluck_core::model::Address;

use crate::arguments::{file_query::FileQuery, limits::priority};

/// Default wait in seconds while no peer has the missing pieces: long enough for a peer to restart.
pub(crate) const DEFAULT_WAIT: u64 = 60;

const EXAMPLES: &str = "\
Examples:
  potluck get model.bin                   by name, if only one file has it
  potluck get 3f9a…(64 digits)            by id
  potluck get sha256:e3b0… -o /tmp/x.bin  by its SHA-256, checked at the end
  potluck get photos -o ~/                a folder, restored below ~/

Run it again after Ctrl-C or a crash: it goes on where it stopped. A file that
is there already is checked and left alone; another file is never overwritten.
With a peer running the file goes to the peer's files folder, else to the
current folder.";

/// Download a file or folder from all its providers, every piece verified
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct GetArgs {
    /// An id, an exact name, or sha256:HEX
    #[arg(value_name = "ID|NAME|sha256:HEX")]
    pub(crate) query: FileQuery,

    /// Where to save it: a new path, or a folder
    #[arg(short, long, value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,

    /// Peers to ask in addition to those that the index lists
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', value_parser = parse_address)]
    pub(crate) from: Vec<Address>,

    /// Maximum bytes per second, e.g. 10MiB
    #[arg(long, value_name = "RATE")]
    pub(crate) limit: Option<ByteSize>,

    /// Relative weight among the peer's downloads: 30 gets three times the rate of 10 [default: 10]
    #[arg(long, value_name = "1-100", value_parser = priority())]
    pub(crate) priority: Option<u32>,

    /// Seconds to wait while no peer has the missing pieces, or while the disk is full
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_WAIT)]
    pub(crate) wait: u64,

    /// Let the running peer download it, and return at once; `potluck transfers` shows it
    #[arg(short, long)]
    pub(crate) detach: bool,

    /// Allow a collection that writes over 1 GiB and over ten times its distinct content
    #[arg(long)]
    pub(crate) allow_expansion: bool,

    /// Address to serve from while downloading, if no peer is running [default: 127.0.0.1:12349, or
    /// a free port of this machine]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
}

fn parse_address(text: &str) -> Result<Address, String> {
    match text.parse() {
        Ok(potluck_core::grpc::transport::Endpoint::Http(uri)) => {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let port = uri
                .port_u16()
                .filter(|&port| port != 0)
                .ok_or("a port is 1 to 65535")?;
            Ok(Address { host, port })
        }
        _ => Err("give HOST:PORT, as in 192.0.2.7:12349".to_owned()),
    }
}
