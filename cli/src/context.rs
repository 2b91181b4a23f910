//! What every command is given: where the index and the peer are, where output goes, and when to stop.

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use potluck_core::{Problem, Reason, grpc::transport::Endpoint, index_client::IndexClient};
use tokio_util::sync::CancellationToken;

use crate::{
    args::Globals,
    error::CommandError,
    output::Output,
    peer::{ConnectedPeer, LockOwner, OwnSettings, default_home},
};

/// How long a peer may take to start before that is told: longer than one with an ordinary library takes.
const SLOW_START: Duration = Duration::from_secs(5);

/// How long the peer that runs here may take to say which index it uses, before the default one is asked.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// The surroundings of one command. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct CommandContext {
    /// Where output goes.
    pub(crate) out: Output,
    /// Cancelled when the command should stop.
    pub(crate) stop: CancellationToken,
    /// The index that was asked for; `None`: nobody said.
    index: Option<Endpoint>,
    /// Whether no index is wanted at all.
    no_index: bool,
    peer: Option<Endpoint>,
    /// The flags that all this comes of.
    globals: Globals,
    /// The prompt's peer, which every command of the session talks to.
    session: Option<Arc<ConnectedPeer>>,
}

/// A peer for one command: its own to close, or the session's.
#[derive(Debug)]
pub(crate) enum PeerHandle {
    /// Closed after the command.
    Own(Box<ConnectedPeer>),
    /// Goes on after the command.
    Session(Arc<ConnectedPeer>),
}

impl From<ConnectedPeer> for PeerHandle {
    fn from(peer: ConnectedPeer) -> Self {
        Self::Own(Box::new(peer))
    }
}

impl std::ops::Deref for PeerHandle {
    type Target = ConnectedPeer;

    fn deref(&self) -> &ConnectedPeer {
        match self {
            Self::Own(peer) => peer,
            Self::Session(peer) => peer,
        }
    }
}

impl PeerHandle {
    /// Whether the peer ends with the command.
    pub(crate) const fn ends_with_command(&self) -> bool {
        match self {
            Self::Own(peer) => peer.is_own(),
            Self::Session(_) => false,
        }
    }

    /// Ends the command's use of it.
    pub(crate) async fn close(self) {
        if let Self::Own(peer) = self {
            peer.close().await;
        }
    }
}

impl CommandContext {
    /// What the flags mean.
    ///
    /// # Errors
    /// [`Reason::InvalidAddress`] for an index or peer that is no address.
    pub(crate) fn new(globals: &Globals, out: Output, stop: CancellationToken) -> Result<Self, CommandError> {
        let no_index = matches!(globals.index.as_deref(), Some("" | "none"));
        let index = globals
            .index
            .as_deref()
            .filter(|_| !no_index)
            .map(str::parse)
            .transpose();
        Ok(Self {
            out,
            stop,
            index: index.map_err(|problem: Problem| flag(problem, "--index"))?,
            no_index,
            peer: globals
                .peer
                .as_deref()
                .map(str::parse)
                .transpose()
                .map_err(|problem| flag(problem, "--peer"))?,
            globals: globals.clone(),
            session: None,
        })
    }

    /// The same for one line of a session: its own stop, and what the line's flags say in place of the session's.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn line(&self, globals: &Globals, stop: CancellationToken) -> Result<Self, CommandError> {
        let out = self.out.with(globals.json, globals.quiet);
        let line = Self::new(&globals.over(&self.globals), out, stop)?;
        Ok(Self {
            session: self.session.clone().filter(|_| globals.peer.is_none()),
            ..line
        })
    }

    /// The same within a session of this peer.
    pub(crate) fn in_session(mut self, peer: Arc<ConnectedPeer>) -> Self {
        self.session = Some(peer);
        self
    }

    /// The index's address, whether or not it was asked for.
    ///
    /// # Errors
    /// A usage failure where no index is wanted.
    pub(crate) fn index_endpoint(&self) -> Result<Endpoint, CommandError> {
        match (&self.index, self.no_index) {
            (Some(endpoint), _) => Ok(endpoint.clone()),
            (None, true) => Err(CommandError::usage("this needs an index: give --index URL")),
            (None, false) => Ok(potluck_peer::options::DEFAULT_INDEX.parse()?),
        }
    }

    /// The index.
    ///
    /// # Errors
    /// As [`Self::index_endpoint`].
    pub(crate) fn index(&self) -> Result<IndexClient, CommandError> {
        self.index_endpoint().map(IndexClient::new)
    }

    /// The index to look things up in for a fetch by `peer`: the one asked for, else the one the peer itself uses.
    ///
    /// # Errors
    /// As [`Self::index_endpoint`].
    pub(crate) fn index_of(&self, peer: Option<&ConnectedPeer>) -> Result<IndexClient, CommandError> {
        let status = peer
            .filter(|_| self.index.is_none())
            .and_then(|peer| peer.status.index.as_deref());
        match status {
            Some(url) => Ok(IndexClient::new(url.parse()?)),
            None => self.index(),
        }
    }

    /// The index to look things up in: the one asked for, else the one of the peer that runs already, else where one is by default.
    ///
    /// # Errors
    /// As [`Self::index_endpoint`].
    pub(crate) async fn index_to_ask(&self) -> Result<IndexClient, CommandError> {
        if self.index.is_some() || self.no_index {
            return self.index();
        }
        // A peer that does not answer is no reason not to ask.
        let peer = match tokio::time::timeout(STATUS_TIMEOUT, self.running_peer()).await {
            Ok(peer) => peer.ok().flatten(),
            Err(_) => {
                let default = potluck_peer::options::DEFAULT_INDEX;
                self.out.note(format_args!(
                    "the peer that runs here does not answer: asking the index at {default}"
                ));
                None
            }
        };
        self.index_of(peer.as_deref())
    }

    /// The peer that runs already: the session's, the one named, or the daemon of the default home.
    ///
    /// # Errors
    /// Where one was named and does not answer.
    pub(crate) async fn running_peer(&self) -> Result<Option<PeerHandle>, CommandError> {
        if let Some(peer) = &self.session {
            return Ok(Some(PeerHandle::Session(Arc::clone(peer))));
        }
        if let Some(endpoint) = &self.peer {
            return Ok(Some(PeerHandle::from(
                ConnectedPeer::at(endpoint, self.globals.peer_token_file.as_ref()).await?,
            )));
        }
        Ok(ConnectedPeer::daemon().await?.map(Into::into))
    }

    /// The peer that runs already.
    ///
    /// # Errors
    /// [`Reason::Unreachable`] where there is none.
    pub(crate) async fn daemon(&self) -> Result<PeerHandle, CommandError> {
        self.running_peer().await?.ok_or_else(|| match LockOwner::find() {
            Some(owner) => owner.conflict(Reason::Unreachable),
            None => CommandError::new(Reason::Unreachable, "no peer is running on this machine").hint(
                "start one with `potluck peer`, or name one with --peer unix:PATH or --peer http://ADDR",
            ),
        })
    }

    /// A peer of the command's own that shares and fetches.
    ///
    /// # Errors
    /// As [`potluck_peer::start`].
    pub(crate) async fn own_peer(&self, listen: Option<SocketAddr>) -> Result<PeerHandle, CommandError> {
        let index = match self.no_index {
            true => None,
            false => Some(self.index_endpoint()?),
        };
        let settings = OwnSettings {
            index,
            listen,
            temporary: true,
        };
        Ok(self.start(settings).await?.into())
    }

    /// The peer that runs already, else one of the command's own in the default home that talks to no index: for looking
    /// after the library.
    ///
    /// # Errors
    /// Where the default home is in use by a peer that cannot be talked to.
    pub(crate) async fn library_peer(&self) -> Result<PeerHandle, CommandError> {
        if let Some(peer) = self.running_peer().await? {
            return Ok(peer);
        }
        let any_port = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let settings = OwnSettings {
            index: None,
            listen: any_port,
            temporary: false,
        };
        match self.start(settings).await {
            Ok(peer) => Ok(peer.into()),
            Err(problem) if problem.reason == Reason::HomeLocked => Err(locked(problem)),
            Err(problem) => Err(problem.into()),
        }
    }

    /// Starts a peer of the command's own, and says so where that takes long.
    async fn start(&self, settings: OwnSettings) -> Result<ConnectedPeer, Problem> {
        let slow = || {
            self.out.note(
                "the peer of this command is still starting: its library may be large, or its disk slow",
            );
        };
        warn_if_slow(ConnectedPeer::own(settings), slow).await
    }

    /// A command line for a shell, with what it needs to mean the same index and peer.
    pub(crate) fn command(&self, words: impl IntoIterator<Item = String>) -> String {
        let words: Vec<_> = words.into_iter().chain(self.flags()).collect();
        shlex::try_join(words.iter().map(String::as_str)).unwrap_or_else(|_| words.join(" "))
    }

    /// The flags that a command typed elsewhere needs to mean the same index and peer, as they were given. What the environment
    /// says is there anyway.
    fn flags(&self) -> Vec<String> {
        let given = [
            ("--index", "POTLUCK_INDEX", self.globals.index.clone()),
            ("--peer", "POTLUCK_PEER", self.globals.peer.clone()),
            (
                "--peer-token-file",
                "POTLUCK_PEER_TOKEN_FILE",
                self.globals
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

    /// Runs `work` until it is done or the command should stop; for work that leaves nothing behind, such as to look, or to start a
    /// peer of the command's own.
    ///
    /// # Errors
    /// As `work`; [`CommandError::interrupted`].
    pub(crate) async fn stoppable<T>(
        &self,
        work: impl Future<Output = Result<T, CommandError>>,
    ) -> Result<T, CommandError> {
        tokio::select! {
            // Dropping `work` is safe: it only reads, or starts what stops when it is dropped.
            done = work => done,
            () = self.stop.cancelled() => Err(CommandError::interrupted("interrupted")),
        }
    }
}

/// Runs `work`, and calls `slow` if it takes more than [`SLOW_START`].
async fn warn_if_slow<T>(work: impl Future<Output = T>, slow: impl FnOnce()) -> T {
    let mut work = pin!(work);
    tokio::select! {
        // Not dropped: it is waited for below.
        done = &mut work => return done,
        () = tokio::time::sleep(SLOW_START) => slow(),
    }
    work.await
}

/// That the library is in somebody else's hands. Its own words are for a peer, which has flags that commands have not.
fn locked(problem: Problem) -> CommandError {
    match LockOwner::find() {
        Some(owner) => owner.conflict(problem.reason),
        None => {
            let home = default_home().map(|home| home.display().to_string());
            CommandError::new(
                problem.reason,
                format!(
                    "another peer has {} and is not to be talked to from here",
                    home.as_deref().unwrap_or("the home")
                ),
            )
            .hint("stop it, or name it with --peer unix:PATH or --peer http://ADDR")
        }
    }
}

fn flag(problem: Problem, flag: &str) -> CommandError {
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

    fn globals() -> Globals {
        Globals {
            index: None,
            peer: None,
            peer_token_file: None,
            json: false,
            quiet: false,
            verbose: 0,
        }
    }

    fn started(globals: &Globals) -> CommandContext {
        CommandContext::new(globals, Output::new(false, true), CancellationToken::new()).unwrap()
    }

    #[test]
    fn a_line_takes_over_each_flag_that_it_names_and_keeps_the_rest() {
        let outer = started(&Globals {
            index: Some("http://a:1".into()),
            peer: Some("http://b:2".into()),
            peer_token_file: Some("outer".into()),
            ..globals()
        });
        let line = |flags: &Globals| outer.line(flags, CancellationToken::new()).unwrap();
        let same = line(&globals());
        assert_eq!(same.flags(), outer.flags());
        let named = line(&Globals {
            index: Some("none".into()),
            peer_token_file: Some("inner".into()),
            json: true,
            ..globals()
        });
        assert!(named.no_index && named.index.is_none() && named.out.is_json());
        assert_eq!(
            named.flags(),
            [
                "--index",
                "none",
                "--peer",
                "http://b:2",
                "--peer-token-file",
                "inner"
            ]
        );
        let without = started(&Globals {
            index: Some("none".into()),
            ..globals()
        });
        let back = Globals {
            index: Some("http://a:1".into()),
            ..globals()
        };
        let back = without.line(&back, CancellationToken::new()).unwrap();
        assert!(!back.no_index && back.index.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_slow_start_is_told() {
        for (takes, status) in [(1, false), (6, true)] {
            let warned = Cell::new(false);
            let work = tokio::time::sleep(Duration::from_secs(takes));
            warn_if_slow(work, || warned.set(true)).await;
            assert_eq!(warned.get(), status, "{takes} s");
        }
    }
}
