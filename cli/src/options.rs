//! The options that every command accepts.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use clap::{
    Args,
    builder::{FalseyValueParser, TypedValueParser as _},
};

use potluck_core::{network::own_pki::OwnPki, process::logging::LogOptions};

use crate::output::OutputFlags;

/// Environment variable equivalent to `--json`.
pub(crate) const JSON_VARIABLE: &str = "POTLUCK_JSON";

/// Flags that every command accepts.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalOptions {
    /// Index to use, as HOST:PORT, or several that share a store, as HOST:PORT,HOST:PORT; `none` for
    /// no index [default: the index of the private network or of the running peer, or
    /// 127.0.0.1:1313]
    #[arg(
        long,
        global = true,
        env = "POTLUCK_INDEX",
        hide_env_values = true,
        value_name = "ADDRESS"
    )]
    pub(crate) index: Option<String>,

    /// Control service of the peer to use, as unix:PATH or HOST:PORT [default: the peer in the
    /// default home, if it is running]
    #[arg(
        long,
        global = true,
        env = "POTLUCK_PEER",
        hide_env_values = true,
        value_name = "ADDRESS"
    )]
    pub(crate) peer: Option<String>,

    /// File with the peer's control token, which a control service at HOST:PORT requires
    #[arg(
        long,
        global = true,
        env = "POTLUCK_PEER_TOKEN_FILE",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub(crate) peer_token_file: Option<PathBuf>,

    /// Folder with the credentials of a private network [default: the network that this machine
    /// joined, if any]
    #[arg(
        long,
        global = true,
        env = "POTLUCK_CREDENTIALS",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub(crate) credentials: Option<PathBuf>,

    /// Use no private network, even if this machine joined one
    #[arg(
        long,
        global = true,
        env = "POTLUCK_NO_NETWORK",
        hide_env_values = true,
        value_parser = FalseyValueParser::new()
    )]
    pub(crate) no_network: bool,

    /// Certificate for TLS in PEM, followed by intermediate ones: of a PKI of your own instead of a
    /// private network
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "POTLUCK_TLS_CERT",
        hide_env_values = true,
        requires_all = ["tls_key", "tls_ca"]
    )]
    pub(crate) tls_cert: Option<PathBuf>,

    /// Private key of --tls-cert, in PEM
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "POTLUCK_TLS_KEY",
        hide_env_values = true,
        requires = "tls_cert"
    )]
    pub(crate) tls_key: Option<PathBuf>,

    /// Certificates of the CAs to accept, in PEM
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "POTLUCK_TLS_CA",
        hide_env_values = true,
        requires = "tls_cert"
    )]
    pub(crate) tls_ca: Option<PathBuf>,

    /// Print ids with all 64 digits
    #[arg(
        long,
        global = true,
        env = "POTLUCK_FULL_IDS",
        hide_env_values = true,
        value_parser = FalseyValueParser::new()
    )]
    pub(crate) full_ids: bool,

    /// Print results and errors as JSON, one object per line
    #[arg(
        long,
        global = true,
        env = JSON_VARIABLE,
        hide_env_values = true,
        value_parser = FalseyValueParser::new()
    )]
    pub(crate) json: bool,

    /// Print only results and errors
    #[arg(
        short,
        long,
        global = true,
        env = "POTLUCK_QUIET",
        hide_env_values = true,
        value_parser = FalseyValueParser::new()
    )]
    pub(crate) quiet: bool,

    /// Print whole lists, and log to stderr; repeat for more detail
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    /// Log and traces
    #[command(flatten)]
    pub(crate) log: LogOptions,
}

impl GlobalOptions {
    /// These options; those that are not set are taken from `outer`.
    pub(crate) fn with_defaults_from(&self, outer: &Self) -> Self {
        Self {
            index: self.index.clone().or_else(|| outer.index.clone()),
            peer: self.peer.clone().or_else(|| outer.peer.clone()),
            peer_token_file: self
                .peer_token_file
                .clone()
                .or_else(|| outer.peer_token_file.clone()),
            credentials: self.credentials.clone().or_else(|| outer.credentials.clone()),
            no_network: self.no_network || outer.no_network,
            tls_cert: self.tls_cert.clone().or_else(|| outer.tls_cert.clone()),
            tls_key: self.tls_key.clone().or_else(|| outer.tls_key.clone()),
            tls_ca: self.tls_ca.clone().or_else(|| outer.tls_ca.clone()),
            full_ids: self.full_ids || outer.full_ids,
            json: self.json || outer.json,
            quiet: self.quiet || outer.quiet,
            verbose: self.verbose.max(outer.verbose),
            // One for the whole process.
            log: outer.log.clone(),
        }
    }

    /// The index and peer that an incomplete line names. The other options are not set.
    pub(crate) fn scan(words: &[OsString]) -> Self {
        let value = |flag: &str| {
            let mut words = words.iter().filter_map(|word| word.to_str());
            words.find_map(|word| word.strip_prefix(flag)?.strip_prefix('=').map(ToOwned::to_owned))
        };
        let next = |flag: &str| {
            let mut pairs = words.windows(2).filter(|pair| pair[0] == flag);
            pairs.find_map(|pair| pair[1].to_str().map(ToOwned::to_owned))
        };
        let find = |flag: &str| value(flag).or_else(|| next(flag));
        Self {
            index: find("--index"),
            peer: find("--peer"),
            peer_token_file: find("--peer-token-file").map(PathBuf::from),
            credentials: find("--credentials").map(PathBuf::from),
            no_network: words.iter().any(|word| word == "--no-network"),
            tls_cert: find("--tls-cert").map(PathBuf::from),
            tls_key: find("--tls-key").map(PathBuf::from),
            tls_ca: find("--tls-ca").map(PathBuf::from),
            full_ids: false,
            json: false,
            quiet: false,
            verbose: 0,
            log: LogOptions::default(),
        }
    }

    /// The files of a PKI of one's own, if they are given.
    pub(crate) fn own_pki(&self) -> Option<OwnPki> {
        Some(OwnPki {
            certificate: self.tls_cert.clone()?,
            key: self.tls_key.clone()?,
            ca: self.tls_ca.clone()?,
            roles: None,
        })
    }

    /// The amount and format of the output.
    pub(crate) const fn output_flags(&self) -> OutputFlags {
        OutputFlags {
            json: self.json,
            quiet: self.quiet,
            full_ids: self.full_ids,
            verbose: self.verbose > 0,
        }
    }
}

/// Whether `--json` is among the arguments. Works on a command line that clap rejected.
pub(crate) fn wants_json<T: AsRef<OsStr>>(words: impl IntoIterator<Item = T>) -> bool {
    words
        .into_iter()
        .take_while(|word| word.as_ref() != "--")
        .any(|word| word.as_ref() == "--json")
}

/// Whether this value of [`JSON_VARIABLE`] asks for JSON.
pub(crate) fn variable_wants_json(value: Option<OsString>) -> bool {
    value.is_some_and(|value| {
        FalseyValueParser::new()
            .parse_ref(&clap::Command::new("potluck"), None, &value)
            .unwrap_or(false)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incomplete_line_names_its_index_and_peer() {
        let words = ["potluck", "--index=a:1", "get", "--peer", "unix:/x", "mo"].map(Into::into);
        let options = GlobalOptions::scan(&words);
        assert_eq!(options.index.as_deref(), Some("a:1"));
        assert_eq!(options.peer.as_deref(), Some("unix:/x"));
        assert_eq!(options.peer_token_file, None);
    }
}
