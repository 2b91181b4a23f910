//! The environment of a command: the index, the peer, the output, and the stop token.

use std::{net::SocketAddr, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use potluck_core::{
    Problem, Reason,
    grpc::transport::Endpoint,
    index_client::{self, IndexClient, IndexList},
    network::{credentials, credentials_error::CredentialsError, tls::ServerIdentity},
};
use potluck_peer::Config;
use tokio_util::sync::CancellationToken;

use crate::{
    error::CommandError,
    network::{self, CommandNetwork},
    options::GlobalOptions,
    output::Output,
    peer::{ConnectedPeer, InProcessSettings, LockOwner, default_home},
};

/// Start-up time of an in-process peer after which the user is notified. A peer with an ordinary
/// library starts faster.
const SLOW_START: Duration = Duration::from_secs(5);

/// How long the running peer may take to report its index before the default index is used instead.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// The environment of one command. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct CommandContext {
    /// The output of the command.
    pub(crate) out: Output,
    /// Cancelled when the command should stop.
    pub(crate) stop: CancellationToken,
    /// The index given by flag or environment; `None` if none was given. The address is valid.
    index: Option<String>,
    /// Whether the user disabled the index with `--index none` or an empty URL.
    no_index: bool,
    peer: Option<Endpoint>,
    /// The flags that this context was built from.
    options: GlobalOptions,
    /// The prompt's peer, which every command of the session uses.
    session: Option<Arc<ConnectedPeer>>,
}

/// A peer that a command uses: owned by the command, or shared by the prompt session.
#[derive(Debug)]
pub(crate) enum PeerHandle {
    /// Closed when the command ends.
    Owned(Box<ConnectedPeer>),
    /// Outlives the command.
    Session(Arc<ConnectedPeer>),
}

impl From<ConnectedPeer> for PeerHandle {
    fn from(peer: ConnectedPeer) -> Self {
        Self::Owned(Box::new(peer))
    }
}

impl std::ops::Deref for PeerHandle {
    type Target = ConnectedPeer;

    fn deref(&self) -> &ConnectedPeer {
        match self {
            Self::Owned(peer) => peer,
            Self::Session(peer) => peer,
        }
    }
}

impl PeerHandle {
    /// Whether the peer stops when the command ends.
    pub(crate) const fn ends_with_command(&self) -> bool {
        match self {
            Self::Owned(peer) => peer.is_in_process(),
            Self::Session(_) => false,
        }
    }

    /// Releases the peer; an owned in-process peer is stopped.
    pub(crate) async fn close(self) {
        if let Self::Owned(peer) = self {
            peer.close().await;
        }
    }
}

impl CommandContext {
    /// Builds the context from the flags.
    ///
    /// # Errors
    /// [`Reason::InvalidAddress`] if the index or the peer is not a valid address.
    pub(crate) fn new(
        options: &GlobalOptions,
        out: Output,
        stop: CancellationToken,
    ) -> Result<Self, CommandError> {
        let no_index = matches!(options.index.as_deref(), Some("" | "none"));
        let index = options.index.clone().filter(|_| !no_index);
        let addresses = index.iter().flat_map(|index| index.split(','));
        for address in addresses
            .map(str::trim)
            .filter(|address| !network::is_secured(address))
        {
            address
                .parse::<Endpoint>()
                .map_err(|problem| in_flag(problem, "--index"))?;
        }
        Ok(Self {
            out,
            stop,
            index,
            no_index,
            peer: options
                .peer
                .as_deref()
                .map(|peer| network::server_at(options, peer, ServerIdentity::AnyPeer))
                .transpose()
                .map_err(|problem| in_flag(problem, "--peer"))?,
            options: options.clone(),
            session: None,
        })
    }

    /// The context for one line of the session, with its own stop token. Flags on the line override
    /// the session's flags.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn line(
        &self,
        options: &GlobalOptions,
        stop: CancellationToken,
    ) -> Result<Self, CommandError> {
        let out = self.out.with_flags(options.output_flags());
        let line = Self::new(&options.with_defaults_from(&self.options), out, stop)?;
        Ok(Self {
            session: self.session.clone().filter(|_| options.peer.is_none()),
            ..line
        })
    }

    /// Makes this the context of a prompt session with `peer`.
    pub(crate) fn in_session(mut self, peer: Arc<ConnectedPeer>) -> Self {
        self.session = Some(peer);
        self
    }

    /// The private network that commands use; `None` for none.
    ///
    /// # Errors
    /// The reason why its credentials cannot be used.
    pub(crate) fn network(&self) -> Result<Option<CommandNetwork>, CommandError> {
        Ok(CommandNetwork::find(&self.options)?)
    }

    /// The folder of this machine's credentials: the one given, or the default.
    ///
    /// # Errors
    /// [`Reason::InvalidArgument`] if this user has no configuration folder.
    pub(crate) fn credentials_folder(&self) -> Result<PathBuf, CommandError> {
        let given = self.options.credentials.clone();
        given.or_else(credentials::default_folder).ok_or_else(|| {
            CommandError::new(Reason::InvalidArgument, CredentialsError::NoFolder.to_string())
        })
    }

    /// Renews the certificate of this machine's member if it is due. A running peer does so by
    /// itself; this is for a machine that has none.
    ///
    /// # Errors
    /// The reason why it was not renewed, if it has expired.
    pub(crate) async fn renew_membership(&self) -> Result<(), CommandError> {
        let credentials = self.options.credentials.as_deref();
        let no_network =
            self.options.no_network || self.no_index || self.options.own_pki().is_some();
        let found = credentials::find(credentials, no_network);
        if let Some(mut credentials) = found.map_err(Problem::from)? {
            index_client::renew_member(&mut credentials).await?;
        }
        Ok(())
    }

    /// Whether a running peer was named.
    pub(crate) const fn names_a_peer(&self) -> bool {
        self.peer.is_some()
    }

    /// The index given by flag or environment.
    pub(crate) fn given_index(&self) -> Option<&str> {
        self.index.as_deref()
    }

    /// The indexes to use: those given, those of the private network, or the default.
    ///
    /// # Errors
    /// A usage error if the user disabled the index.
    pub(crate) fn index_list(&self) -> Result<IndexList, CommandError> {
        let network = match self.no_index {
            false => self.network()?,
            true => {
                return Err(CommandError::usage(
                    "this command needs an index: give --index HOST:PORT",
                ));
            }
        };
        let list = match (&self.index, network) {
            (Some(index), Some(network)) => network.indexes(index),
            (Some(index), None) => IndexList::parse(index, str::parse),
            (None, Some(network)) if network.credentials.is_some() => network.index(),
            (None, Some(network)) => {
                let default = potluck_peer::options::DEFAULT_INDEX;
                network.indexes(default)
            }
            (None, None) => IndexList::parse(potluck_peer::options::DEFAULT_INDEX, str::parse),
        };
        list.map_err(|problem| match &self.index {
            Some(_) => in_flag(problem, "--index"),
            None => problem.into(),
        })
    }

    /// A server at this address, as the running peer shows it: in the private network, if it starts
    /// with `https://`.
    ///
    /// # Errors
    /// [`Reason::InvalidAddress`], or the reason why the credentials cannot be used.
    pub(crate) fn server_at(
        &self,
        address: &str,
        expected: ServerIdentity,
    ) -> Result<Endpoint, CommandError> {
        Ok(network::server_at(&self.options, address, expected)?)
    }

    /// A client of the index.
    ///
    /// # Errors
    /// As [`Self::index_list`].
    pub(crate) fn index(&self) -> Result<IndexClient, CommandError> {
        self.index_list().map(IndexClient::new)
    }

    /// The index that serves lookups for a download by `peer`: the one given, or else the one that
    /// `peer` uses.
    ///
    /// # Errors
    /// As [`Self::index_list`].
    pub(crate) fn index_for(
        &self,
        peer: Option<&ConnectedPeer>,
    ) -> Result<IndexClient, CommandError> {
        let status = peer
            .filter(|_| self.index.is_none())
            .and_then(|peer| peer.status.index.as_deref());
        match status {
            Some(urls) => Ok(IndexClient::new(network::indexes_at(&self.options, urls)?)),
            None => self.index(),
        }
    }

    /// The index that commands use together with `peer`; `None` if the user or the peer's owner wants
    /// none.
    ///
    /// # Errors
    /// As [`Self::index_list`].
    pub(crate) fn index_in_use(
        &self,
        peer: Option<&ConnectedPeer>,
    ) -> Result<Option<IndexClient>, CommandError> {
        let has_none = peer.is_some_and(|peer| peer.status.index.is_none());
        if self.no_index || (has_none && self.index.is_none()) {
            return Ok(None);
        }
        self.index_for(peer).map(Some)
    }

    /// The index for lookups: the one given, else the running peer's, else the default.
    ///
    /// # Errors
    /// As [`Self::index_list`].
    pub(crate) async fn lookup_index(&self) -> Result<IndexClient, CommandError> {
        if self.index.is_some() || self.no_index {
            return self.index();
        }
        // Use the default index if the peer does not answer.
        let peer = match tokio::time::timeout(STATUS_TIMEOUT, self.running_peer()).await {
            Ok(peer) => peer.ok().flatten(),
            Err(_) => {
                let default = potluck_peer::options::DEFAULT_INDEX;
                self.out.note(format_args!(
                    "the running peer does not answer; using the index at {default}"
                ));
                None
            }
        };
        self.index_for(peer.as_deref())
    }

    /// The running peer: the session's, the one given by `--peer`, or the daemon in the default
    /// home.
    ///
    /// # Errors
    /// [`Reason::Unreachable`] or a related reason if a peer was named, or listens in the default
    /// home, and does not answer.
    pub(crate) async fn running_peer(&self) -> Result<Option<PeerHandle>, CommandError> {
        if let Some(peer) = &self.session {
            return Ok(Some(PeerHandle::Session(Arc::clone(peer))));
        }
        if let Some(endpoint) = &self.peer {
            return Ok(Some(PeerHandle::from(
                ConnectedPeer::connect(endpoint, self.options.peer_token_file.as_ref()).await?,
            )));
        }
        Ok(ConnectedPeer::in_default_home().await?.map(Into::into))
    }

    /// The running peer.
    ///
    /// # Errors
    /// [`Reason::Unreachable`] if no peer is running.
    pub(crate) async fn require_running_peer(&self) -> Result<PeerHandle, CommandError> {
        self.running_peer().await?.ok_or_else(|| match LockOwner::find() {
            Some(owner) => owner.conflict(Reason::Unreachable),
            None => CommandError::new(Reason::Unreachable, "no peer is running on this machine")
                .hint("start one with `potluck peer`, or choose one with --peer"),
        })
    }

    /// Starts an in-process peer that shares and downloads.
    ///
    /// # Errors
    /// As [`potluck_peer::start`].
    pub(crate) async fn start_peer(
        &self,
        listen: Option<SocketAddr>,
        plaintext: bool,
    ) -> Result<PeerHandle, CommandError> {
        let index = match self.no_index {
            true => None,
            false => Some(self.index_list()?),
        };
        let settings = InProcessSettings {
            index,
            network: self.network()?.and_then(|network| network.credentials),
            own_pki: self.options.own_pki(),
            listen,
            plaintext,
            temporary: true,
        };
        Ok(self.start(settings).await?.into())
    }

    /// The settings of a peer that a service of this machine runs in this home, with its control
    /// socket there.
    ///
    /// # Errors
    /// As [`Self::index_list`] and [`Self::network`].
    pub(crate) fn service_peer_config(&self, home: PathBuf) -> Result<Config, CommandError> {
        Ok(Config {
            index: match self.no_index {
                true => None,
                false => Some(self.index_list()?),
            },
            network: self.network()?.and_then(|network| network.credentials),
            own_pki: self.options.own_pki(),
            ..Config::new(home)
        })
    }

    /// The running peer, or else an in-process peer without an index. For commands that only manage
    /// the library in the default home.
    ///
    /// # Errors
    /// [`Reason::HomeLocked`] if another process uses the default home and its peer cannot be
    /// reached.
    pub(crate) async fn library_peer(&self) -> Result<PeerHandle, CommandError> {
        if let Some(peer) = self.running_peer().await? {
            return Ok(peer);
        }
        let any_port = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let settings = InProcessSettings {
            index: None,
            network: None,
            own_pki: None,
            listen: any_port,
            plaintext: false,
            temporary: false,
        };
        match self.start(settings).await {
            Ok(peer) => Ok(peer.into()),
            Err(problem) if problem.reason == Reason::HomeLocked => Err(home_locked(problem)),
            Err(problem) => Err(problem.into()),
        }
    }

    /// Starts an in-process peer and notifies the user if that takes long.
    async fn start(&self, settings: InProcessSettings) -> Result<ConnectedPeer, Problem> {
        let slow = || {
            self.out.note(
                "this command's peer is still starting: its library is large, or its disk is slow",
            );
        };
        warn_if_slow(ConnectedPeer::start(settings), slow).await
    }

    /// A shell command line, with the flags that select the same index and peer.
    pub(crate) fn shell_command(&self, words: impl IntoIterator<Item = String>) -> String {
        let words: Vec<_> = words.into_iter().chain(self.index_and_peer_flags()).collect();
        shlex::try_join(words.iter().map(String::as_str)).unwrap_or_else(|_| words.join(" "))
    }

    /// The flags that select the same index and peer, as they were given. Flags whose value also
    /// comes from the environment are left out.
    fn index_and_peer_flags(&self) -> Vec<String> {
        let given = [
            ("--index", "POTLUCK_INDEX", self.options.index.clone()),
            ("--peer", "POTLUCK_PEER", self.options.peer.clone()),
            (
                "--peer-token-file",
                "POTLUCK_PEER_TOKEN_FILE",
                self.options
                    .peer_token_file
                    .as_ref()
                    .map(|path| path.to_string_lossy().into_owned()),
            ),
        ];
        given
            .into_iter()
            .filter_map(|(flag, variable, value)| Some((flag, variable, value?)))
            .filter(|(_, variable, value)| std::env::var(variable).ok().as_ref() != Some(value))
            .flat_map(|(flag, _, value)| [flag.to_owned(), value])
            .collect()
    }

    /// Runs `work` until it completes or the command is stopped. `work` must be safe to drop, such
    /// as a read or the start of an in-process peer.
    ///
    /// # Errors
    /// As `work`; [`CommandError::interrupted`] if the command was stopped first.
    pub(crate) async fn stoppable<T>(
        &self,
        work: impl Future<Output = Result<T, CommandError>>,
    ) -> Result<T, CommandError> {
        tokio::select! {
            // Cancel-safe: `work` only reads, or starts something that stops when it is dropped.
            done = work => done,
            () = self.stop.cancelled() => Err(CommandError::interrupted("interrupted")),
        }
    }
}

/// Runs `work`, and calls `slow` if it takes longer than [`SLOW_START`].
async fn warn_if_slow<T>(work: impl Future<Output = T>, slow: impl FnOnce()) -> T {
    let mut work = pin!(work);
    tokio::select! {
        // `work` is borrowed; it is awaited again below.
        done = &mut work => return done,
        () = tokio::time::sleep(SLOW_START) => slow(),
    }
    work.await
}

/// Replaces the peer's "home locked" message, which names flags that this command does not have.
fn home_locked(problem: Problem) -> CommandError {
    match LockOwner::find() {
        Some(owner) => owner.conflict(problem.reason),
        None => {
            let home = default_home().map(|home| home.display().to_string());
            CommandError::new(
                problem.reason,
                format!(
                    "another peer uses {}, and its control service cannot be found",
                    home.as_deref().unwrap_or("the default home")
                ),
            )
            .hint("stop that peer, or give its control service with --peer unix:PATH")
        }
    }
}

fn in_flag(problem: Problem, flag: &str) -> CommandError {
    Problem {
        message: format!("{flag}: {}", problem.message),
        ..problem
    }
    .into()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::output::OutputFlags;

    fn options() -> GlobalOptions {
        GlobalOptions {
            index: None,
            peer: None,
            peer_token_file: None,
            credentials: None,
            no_network: true,
            tls_cert: None,
            tls_key: None,
            tls_ca: None,
            full_ids: false,
            json: false,
            quiet: false,
            verbose: 0,
            log: Default::default(),
        }
    }

    fn context_with(options: &GlobalOptions) -> CommandContext {
        CommandContext::new(
            options,
            Output::new(OutputFlags::default()),
            CancellationToken::new(),
        )
        .unwrap()
    }

    #[test]
    fn options_of_a_line_override_those_of_the_session() {
        let outer = context_with(&GlobalOptions {
            index: Some("http://a:1".into()),
            peer: Some("http://b:2".into()),
            peer_token_file: Some("outer".into()),
            ..options()
        });
        let line = |flags: &GlobalOptions| outer.line(flags, CancellationToken::new()).unwrap();
        let same = line(&options());
        assert_eq!(same.index_and_peer_flags(), outer.index_and_peer_flags());
        let changed = line(&GlobalOptions {
            index: Some("none".into()),
            peer_token_file: Some("inner".into()),
            json: true,
            ..options()
        });
        assert!(changed.no_index && changed.index.is_none() && changed.out.is_json());
        assert_eq!(
            changed.index_and_peer_flags(),
            [
                "--index",
                "none",
                "--peer",
                "http://b:2",
                "--peer-token-file",
                "inner"
            ]
        );
        let without = context_with(&GlobalOptions {
            index: Some("none".into()),
            ..options()
        });
        let back = GlobalOptions {
            index: Some("http://a:1".into()),
            ..options()
        };
        let back = without.line(&back, CancellationToken::new()).unwrap();
        assert!(!back.no_index && back.index.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_slow_start_is_reported() {
        for (takes, is_slow) in [(1, false), (6, true)] {
            let warned = Cell::new(false);
            let work = tokio::time::sleep(Duration::from_secs(takes));
            warn_if_slow(work, || warned.set(true)).await;
            assert_eq!(warned.get(), is_slow, "{takes} s");
        }
    }
}
