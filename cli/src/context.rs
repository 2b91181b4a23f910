//! What every command is given: where the index and the peer are, where output goes, and when to stop.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use potluck_core::{Problem, Reason, index_client::IndexClient, transport::Endpoint};
use tokio_util::sync::CancellationToken;

use crate::{
    args::Globals,
    fail::Fail,
    out::Out,
    peer::{OwnSettings, Peer},
};

/// The surroundings of one command. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    /// Where output goes.
    pub(crate) out: Out,
    /// Cancelled when the command should stop.
    pub(crate) stop: CancellationToken,
    /// The index that was asked for; `None`: nobody said.
    index: Option<Endpoint>,
    /// Whether no index is wanted at all.
    no_index: bool,
    peer: Option<Endpoint>,
    token_file: Option<PathBuf>,
    /// The prompt's peer, which every command of the session talks to.
    session: Option<Arc<Peer>>,
}

/// A peer for one command: its own to close, or the session's.
#[derive(Debug)]
pub(crate) enum Borrowed {
    /// Closed after the command.
    Own(Box<Peer>),
    /// Goes on after the command.
    Session(Arc<Peer>),
}

impl From<Peer> for Borrowed {
    fn from(peer: Peer) -> Self {
        Self::Own(Box::new(peer))
    }
}

impl std::ops::Deref for Borrowed {
    type Target = Peer;

    fn deref(&self) -> &Peer {
        match self {
            Self::Own(peer) => peer,
            Self::Session(peer) => peer,
        }
    }
}

impl Borrowed {
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

impl Context {
    /// What the flags mean.
    ///
    /// # Errors
    /// [`Reason::InvalidAddress`] for an index or peer that is no address.
    pub(crate) fn new(globals: &Globals, out: Out, stop: CancellationToken) -> Result<Self, Fail> {
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
            token_file: globals.peer_token_file.clone(),
            session: None,
        })
    }

    /// The same for one line of a session: its own stop, and what the line's flags add.
    pub(crate) fn line(&self, globals: &Globals, stop: CancellationToken) -> Result<Self, Fail> {
        let mut line = self.clone();
        line.out = self.out.with(globals.json, globals.quiet);
        line.stop = stop;
        let own = Self::new(globals, line.out.clone(), line.stop.clone())?;
        if own.index.is_some() {
            line.index = own.index;
        }
        if own.peer.is_some() {
            line.peer = own.peer;
            line.session = None;
        }
        Ok(line)
    }

    /// The same within a session of this peer.
    pub(crate) fn in_session(mut self, peer: Arc<Peer>) -> Self {
        self.session = Some(peer);
        self
    }

    /// The index's address, whether or not it was asked for.
    ///
    /// # Errors
    /// A usage failure where no index is wanted.
    pub(crate) fn index_endpoint(&self) -> Result<Endpoint, Fail> {
        match (&self.index, self.no_index) {
            (Some(endpoint), _) => Ok(endpoint.clone()),
            (None, true) => Err(Fail::usage("this needs an index: give --index URL")),
            (None, false) => Ok(potluck_peer::options::DEFAULT_INDEX.parse()?),
        }
    }

    /// The index.
    ///
    /// # Errors
    /// As [`Self::index_endpoint`].
    pub(crate) fn index(&self) -> Result<IndexClient, Fail> {
        self.index_endpoint().map(IndexClient::new)
    }

    /// The index to look things up in for a fetch by `peer`: the one asked for, else the one the peer itself uses.
    ///
    /// # Errors
    /// As [`Self::index_endpoint`].
    pub(crate) fn index_of(&self, peer: Option<&Peer>) -> Result<IndexClient, Fail> {
        let told = peer
            .filter(|_| self.index.is_none())
            .and_then(|peer| peer.status.index.as_deref());
        match told {
            Some(url) => Ok(IndexClient::new(url.parse()?)),
            None => self.index(),
        }
    }

    /// The index to look things up in: the one asked for, else the one of the peer that runs already, else where one is by default.
    ///
    /// # Errors
    /// As [`Self::index_endpoint`].
    pub(crate) async fn index_to_ask(&self) -> Result<IndexClient, Fail> {
        if self.index.is_some() || self.no_index {
            return self.index();
        }
        // A peer that does not answer is no reason not to ask.
        let peer = self.running_peer().await.ok().flatten();
        self.index_of(peer.as_deref())
    }

    /// The peer that runs already: the session's, the one named, or the daemon of the default home.
    ///
    /// # Errors
    /// Where one was named and does not answer.
    pub(crate) async fn running_peer(&self) -> Result<Option<Borrowed>, Fail> {
        if let Some(peer) = &self.session {
            return Ok(Some(Borrowed::Session(Arc::clone(peer))));
        }
        if let Some(endpoint) = &self.peer {
            return Ok(Some(Borrowed::from(
                Peer::at(endpoint, self.token_file.as_ref()).await?,
            )));
        }
        Ok(Peer::daemon().await?.map(Into::into))
    }

    /// The peer that runs already.
    ///
    /// # Errors
    /// [`Reason::Unreachable`] where there is none.
    pub(crate) async fn daemon(&self) -> Result<Borrowed, Fail> {
        self.running_peer().await?.ok_or_else(|| {
            Fail::new(Reason::Unreachable, "no peer is running on this machine").hint(
                "start one with `potluck peer`, or name one with --peer unix:PATH or --peer http://ADDR",
            )
        })
    }

    /// A peer of the command's own that shares and fetches.
    ///
    /// # Errors
    /// As [`potluck_peer::start`].
    pub(crate) async fn own_peer(&self, listen: Option<SocketAddr>) -> Result<Borrowed, Fail> {
        let index = match self.no_index {
            true => None,
            false => Some(self.index_endpoint()?),
        };
        Ok(Peer::own(OwnSettings {
            index,
            listen,
            temporary: true,
        })
        .await?
        .into())
    }

    /// The peer that runs already, else one of the command's own in the default home that talks to no index: for looking
    /// after the library.
    ///
    /// # Errors
    /// Where the default home is in use by a peer that cannot be talked to.
    pub(crate) async fn library_peer(&self) -> Result<Borrowed, Fail> {
        if let Some(peer) = self.running_peer().await? {
            return Ok(peer);
        }
        let any_port = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let settings = OwnSettings {
            index: None,
            listen: any_port,
            temporary: false,
        };
        Ok(Peer::own(settings).await?.into())
    }

    /// Runs `work` until it is done or the command should stop; for work that leaves nothing behind.
    ///
    /// # Errors
    /// As `work`; [`Fail::interrupted`].
    pub(crate) async fn stoppable<T>(&self, work: impl Future<Output = Result<T, Fail>>) -> Result<T, Fail> {
        tokio::select! {
            // Dropping `work` is safe: it only reads.
            done = work => done,
            () = self.stop.cancelled() => Err(Fail::interrupted("interrupted")),
        }
    }
}

fn flag(problem: Problem, flag: &str) -> Fail {
    Problem {
        message: format!("{flag}: {}", problem.message),
        ..problem
    }
    .into()
}
