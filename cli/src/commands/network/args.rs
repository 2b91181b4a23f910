//! Arguments of `potluck network`, and their meaning.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use potluck_core::{Problem, Reason, grpc::transport::Endpoint, network::identity::Role, units};

use crate::{arguments::file_query::FileQuery, error::CommandError};

const EXAMPLES: &str = "\
Examples, on the machine of the index:
  potluck network create ~/kitchen --index https://index.example:1313
  potluck index --listen 0.0.0.0:1313 --network ~/kitchen
  potluck network invite --dir ~/kitchen --role publisher

On each other machine:
  potluck network join CODE
  potluck network join --code-file FILE

By an admin, on any machine that joined:
  potluck network invite --role reader --uses 20 --ttl 2h
  potluck network members
  potluck network revoke MEMBER
  potluck network unregister model.bin --provider PEER";

/// Make, join and manage private networks
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct NetworkArgs {
    #[command(subcommand)]
    pub(super) command: NetworkCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum NetworkCommand {
    /// Make a network, and print a join code for its first admin
    ///
    /// Makes the network's certificate authority in DIR, on the machine of its index. `--index` is
    /// the address under which other machines reach the index. The code is the last word of the
    /// output; it is a secret.
    Create(CreateArgs),
    /// Join the network of a code
    Join(JoinArgs),
    /// Print another join code
    ///
    /// With --dir on the machine of the index, or elsewhere by an admin. The code is the last word
    /// of the output; it is a secret.
    Invite(InviteArgs),
    /// List the members
    Members(DirArgs),
    /// Remove a member with all of its peers, and void the codes that it made
    Revoke(RevokeArgs),
    /// End the membership of this machine, and remove its credentials
    Leave(LeaveArgs),
    /// Give the peer in a home a new key, and so a new id
    Rekey(RekeyArgs),
    /// Change the address of the index
    SetIndex(SetIndexArgs),
    /// Remove a name from a file
    Unbind(UnbindArgs),
    /// Remove the registrations of others
    ///
    /// Of a file, of a peer, or of a file by one peer. A live peer that still shares the file registers
    /// it again: to keep a peer out, revoke its member. Names stay until `unbind` removes them.
    Unregister(UnregisterArgs),
    /// Copy the certificate authority and the members to a file
    Backup(BackupArgs),
    /// Make the folder of a network from a copy
    Restore(RestoreArgs),
}

/// Where the folder of a network is.
#[derive(Debug, Args)]
pub(super) struct DirArgs {
    /// Folder of the network, on the machine of its index
    #[arg(
        long,
        env = "POTLUCK_INDEX_NETWORK",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub(super) dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// New folder for the network
    #[arg(value_name = "DIR")]
    pub(super) dir: PathBuf,
    /// Name of the network for people [default: the name of the folder]
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct JoinArgs {
    /// The code, or `-` to read it from standard input
    #[arg(value_name = "CODE", required_unless_present = "code_file")]
    pub(super) code: Option<String>,
    /// File with the code, so that no other user sees it among the processes; `-` for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "code")]
    pub(super) code_file: Option<PathBuf>,
    /// Name of the new member for people [default: the name of this machine]
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct InviteArgs {
    #[command(flatten)]
    pub(super) dir: DirArgs,
    /// Rights of the members that join: `reader` downloads, `publisher` also names files, `admin`
    /// also invites and revokes
    #[arg(long, value_name = "ROLE", default_value = "publisher")]
    pub(super) role: Role,
    /// How many members may join with the code
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) uses: u32,
    /// How long the code is valid, up to 30 days
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = units::parse_duration)]
    pub(super) ttl: Duration,
}

#[derive(Debug, Args)]
pub(super) struct RevokeArgs {
    /// The id of the member, its first digits, or its name
    #[arg(value_name = "MEMBER")]
    pub(super) member: String,
    #[command(flatten)]
    pub(super) dir: DirArgs,
}

#[derive(Debug, Args)]
pub(super) struct LeaveArgs {
    /// Remove the credentials although the index cannot be told
    #[arg(long)]
    pub(super) offline: bool,
}

#[derive(Debug, Args)]
pub(super) struct RekeyArgs {
    /// Home of the peer [default: the default home]
    #[arg(
        long,
        env = "POTLUCK_PEER_HOME",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub(super) home: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct SetIndexArgs {
    /// The address under which this machine, or with --dir others, reach the index; several with
    /// commas
    #[arg(value_name = "URL")]
    pub(super) url: String,
    #[command(flatten)]
    pub(super) dir: DirArgs,
}

#[derive(Debug, Args)]
pub(super) struct UnbindArgs {
    /// The name
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// The file, if several have the name
    #[arg(long, value_name = "ID")]
    pub(super) id: Option<potluck_core::FileId>,
}

#[derive(Debug, Args)]
pub(super) struct UnregisterArgs {
    /// The file: its id, the first digits of it, or its exact name
    #[arg(value_name = "ID|NAME", required_unless_present = "provider")]
    pub(super) file: Option<FileQuery>,
    /// Only what this peer registered: its id, or with a file the first digits of it
    #[arg(long, value_name = "PEER")]
    pub(super) provider: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    /// New file for the copy; keep it secret
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    /// Folder of the network
    #[arg(
        long,
        env = "POTLUCK_INDEX_NETWORK",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub(super) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// The copy
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    /// New folder for the network
    #[arg(
        long,
        env = "POTLUCK_INDEX_NETWORK",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub(super) dir: PathBuf,
}

/// The address of an index as join codes and credentials hold it: `https://HOST:PORT`, or several of
/// them, separated by commas.
pub(super) fn index_url(text: &str) -> Result<String, CommandError> {
    let urls: Result<Vec<_>, _> = text.split(',').map(|url| one_index_url(url.trim())).collect();
    Ok(urls?.join(","))
}

fn one_index_url(text: &str) -> Result<String, CommandError> {
    if text.starts_with("http://") {
        return Err(CommandError::usage(format!(
            "the index of a private network is encrypted: give https:// instead of `{text}`"
        )));
    }
    let bare = text
        .strip_prefix("https://")
        .unwrap_or(text)
        .trim_end_matches('/');
    let parsed: Result<Endpoint, Problem> = bare.parse();
    match parsed {
        Ok(Endpoint::Unix(_)) => Err(CommandError::usage(format!(
            "`{text}` is a path: give the address under which other machines reach the index, as \
             https://HOST:PORT"
        ))),
        Ok(_) => Ok(format!("https://{bare}")),
        Err(problem) => Err(CommandError::new(
            Reason::InvalidAddress,
            format!("`{text}` is no address of an index: {problem}"),
        )),
    }
}

/// A member as a person writes it: its id, its first digits (at least four), or its name.
pub(super) fn find_member<'a, T>(
    members: &'a [T],
    text: &str,
    id: impl Fn(&T) -> String,
    name: impl Fn(&T) -> &str,
) -> Result<&'a T, CommandError> {
    let digits = text.to_ascii_lowercase();
    let matches: Vec<&T> = members
        .iter()
        .filter(|member| {
            name(member) == text || (digits.len() >= 4 && id(member).starts_with(&digits))
        })
        .collect();
    match &matches[..] {
        [only] => Ok(only),
        [] => Err(CommandError::new(
            Reason::NotFound,
            format!("no member has the name or id `{text}`"),
        )
        .hint("`potluck network members` lists them")),
        several => {
            let ids: Vec<String> = several.iter().map(|member| id(member)).collect();
            Err(CommandError::new(
                Reason::AmbiguousName,
                format!("several members have the name or id `{text}`: {}", ids.join(", ")),
            )
            .hint("give the id of one of them"))
        }
    }
}
