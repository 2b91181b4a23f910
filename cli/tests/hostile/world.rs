//! An index with honest peers and an attacker, each a user with folders of their own.

use std::{
    fs::{self, File},
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    process::Command,
};

use potluck_hostile::membership::Attacker;
use potluck_testkit::system::program::{Finished, Server};
use tempfile::TempDir;

/// Maximum size of a program's log after all attacks, in bytes: a flood must not fill the disk.
const MAX_LOG: u64 = 4 << 20;

pub(crate) struct World {
    dir: TempDir,
    is_private: bool,
    pub(crate) index: Program,
}

/// A running program with its log.
pub(crate) struct Program {
    server: Server,
    log: PathBuf,
    /// Its home, if it is a peer.
    pub(crate) home: PathBuf,
}

impl Deref for Program {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for Program {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(log) = fs::read_to_string(&self.log)
        {
            let lines: Vec<_> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(40)..].join("\n");
            eprintln!("the end of {}:\n{last}", self.log.display());
        }
    }
}

impl Program {
    fn start(command: &mut Command, folder: &Path, name: &str) -> Self {
        let log = folder.join(format!("{name}.log"));
        command.stderr(File::create(&log).unwrap());
        Self {
            server: Server::start(command),
            log,
            home: folder.join(name),
        }
    }

    /// Stops the program and asserts that it was well until then.
    #[track_caller]
    pub(crate) fn assert_ends_well(mut self) {
        let status = self.server.terminate();
        let size = self.log.metadata().unwrap().len();
        assert!(size < MAX_LOG, "the log has {size} bytes");
        let log = fs::read_to_string(&self.log).unwrap();
        assert!(!log.contains("panic"), "{log}");
        assert_eq!(status.code(), Some(0), "{log}");
    }
}

impl World {
    /// Starts an index, which serves a private network if `is_private`.
    pub(crate) fn start(is_private: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("pl").tempdir().unwrap();
        let folder = dir.path();
        let mut command = command(&folder.join("host"));
        // All callers have one address here; it must not be the rate of calls that protects.
        command.args(["index", "--listen", "127.0.0.1:0", "--store", "memory"]);
        command.args(["--max-calls-per-second", "0", "--max-connections", "600"]);
        if is_private {
            run(
                &folder.join("host"),
                &["network", "create", "kitchen", "--index", "https://127.0.0.1:1"],
            );
            command.args(["--network", "kitchen"]);
        }
        let index = Program::start(&mut command, folder, "index");
        let world = Self {
            index,
            is_private,
            dir,
        };
        if is_private {
            let url = format!("https://{}", world.index.address);
            run(
                &world.path("host"),
                &["network", "set-index", &url, "--dir", "kitchen"],
            );
            for name in ["honest", "attacker"] {
                let args = ["network", "invite", "--dir", "kitchen", "--role", "publisher"];
                let invited = run(&world.path("host"), &args);
                let code = invited.stdout.split_whitespace().next_back().unwrap();
                run(&world.path(name), &["network", "join", code, "--name", name]);
            }
        }
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The address of the index, as flags take it.
    pub(crate) fn index_url(&self) -> String {
        let scheme = if self.is_private { "https" } else { "http" };
        format!("{scheme}://{}", self.index.address)
    }

    /// A peer of the honest user, with a home of this name.
    pub(crate) fn peer(&self, name: &str, args: &[&str]) -> Program {
        let mut command = command(&self.path("honest"));
        command
            .args(["peer", "--listen", "127.0.0.1:0", "--index", &self.index_url()])
            .arg("--home")
            .arg(self.path(name))
            .args(args);
        Program::start(&mut command, self.dir.path(), name)
    }

    pub(crate) fn attacker(&self) -> Attacker {
        let credentials = self.path("attacker/.config/potluck/network");
        Attacker::new(self.is_private.then_some(credentials.as_path())).unwrap()
    }
}

/// The command line of the user with this home folder.
fn command(home: &Path) -> Command {
    fs::create_dir_all(home).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_potluck"));
    command
        .env_clear()
        .env("HOME", home)
        .env("TMPDIR", home)
        .env("RUST_BACKTRACE", "1")
        .current_dir(home);
    command
}

#[track_caller]
fn run(home: &Path, args: &[&str]) -> Finished {
    Finished::run(command(home).args(args)).expect(0)
}
