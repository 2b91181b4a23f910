//! A sandbox for the commands: its own home, an index, and peers. All use free ports and stop at
//! the end.

use std::{
    fs,
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    process::Command,
};

use potluck_testkit::{
    content::{bytes, write_file},
    system::program::{Finished, Server},
    wait::wait_until_blocking,
};
use tempfile::TempDir;

/// The address of an index or a peer that cannot be reached: nothing listens on port 1 of loopback,
/// and no other process takes it during the test.
pub(crate) const UNREACHABLE: &str = "127.0.0.1:1";

/// [`UNREACHABLE`] as a URL.
pub(crate) const UNREACHABLE_URL: &str = "http://127.0.0.1:1";

/// A user with a home folder of their own.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) dir: TempDir,
    index: Option<Server>,
}

/// A peer that runs until it is stopped.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) server: Server,
    /// Its address for other peers.
    pub(crate) address: String,
    pub(crate) home: PathBuf,
}

impl Peer {
    /// Its control service, in the form that `--peer` takes.
    pub(crate) fn control(&self) -> String {
        format!("unix:{}", self.home.join("control.sock").display())
    }
}

impl Deref for Peer {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for Peer {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}

impl Sandbox {
    /// A sandbox whose index is unreachable.
    pub(crate) fn without_index() -> Self {
        let dir = tempfile::Builder::new().prefix("pl").tempdir().unwrap();
        fs::create_dir_all(dir.path().join("work")).unwrap();
        Self { dir, index: None }
    }

    /// A sandbox with an index.
    pub(crate) fn new() -> Self {
        Self::with_index_options(&[])
    }

    /// A sandbox with an index that has these options.
    pub(crate) fn with_index_options(options: &[&str]) -> Self {
        let mut sandbox = Self::without_index();
        let mut command = sandbox.command();
        command
            .args(["index", "--listen", "127.0.0.1:0", "--store", "memory", "-q"])
            .args(options);
        sandbox.index = Some(Server::start(&mut command));
        sandbox
    }

    /// The working folder of the commands.
    pub(crate) fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// The index's URL.
    pub(crate) fn index_url(&self) -> String {
        self.index.as_ref().map_or_else(
            || UNREACHABLE_URL.to_owned(),
            |index| format!("http://{}", index.address),
        )
    }

    /// Stops the index.
    #[track_caller]
    pub(crate) fn stop_index(mut self) {
        let mut index = self.index.take().expect("the sandbox has an index");
        assert!(index.terminate().success());
    }

    /// Kills the index.
    pub(crate) fn kill_index(&mut self) {
        self.index = None;
    }

    /// The binary with the sandbox's environment, without arguments.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_potluck"));
        let home = self.dir.path();
        command
            .env_clear()
            .env("HOME", home)
            .env("XDG_DATA_HOME", home.join("data"))
            .env("XDG_STATE_HOME", home.join("state"))
            .env("TMPDIR", home)
            .env("POTLUCK_INDEX", self.index_url())
            .env("RUST_BACKTRACE", "1")
            .current_dir(self.work());
        command
    }

    /// Runs the binary until it exits.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> Finished {
        Finished::run(self.command().args(args))
    }

    /// Starts a peer with a home of its own.
    pub(crate) fn peer(&self, name: &str, args: &[&str]) -> Peer {
        let home = self.dir.path().join(name);
        self.peer_in(&home, args)
    }

    /// Starts a peer in this home.
    pub(crate) fn peer_in(&self, home: &Path, args: &[&str]) -> Peer {
        let mut command = self.command();
        command
            .args(["peer", "--listen", "127.0.0.1:0", "-q", "--home"])
            .arg(home)
            .args(args);
        let server = Server::start(&mut command);
        Peer {
            address: server.address.to_string(),
            server,
            home: home.to_owned(),
        }
    }

    /// The home in which commands look for a daemon.
    pub(crate) fn default_home(&self) -> PathBuf {
        self.dir.path().join("data/potluck/peer-12349")
    }

    /// Creates a file of pseudo-random bytes in the working folder.
    pub(crate) fn file(&self, name: &str, size: usize, random_seed: u64) -> PathBuf {
        write_file(&self.work(), name, &bytes(size, random_seed))
    }

    /// Repeats the command until it succeeds, to wait for the index.
    #[track_caller]
    pub(crate) fn eventually(&self, args: &[&str]) -> Finished {
        let mut last = None;
        wait_until_blocking(&format!("{args:?} succeeds"), || {
            let finished = self.run(args);
            let is_done = finished.code == Some(0);
            last = Some(finished);
            is_done
        });
        last.unwrap()
    }
}
