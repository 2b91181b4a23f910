//! A sandbox for tests of the real binary: its own home, an index, and peers. All use free ports
//! and stop at the end.

#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

pub(crate) mod fake_services;

use serde_json::Value;
use tempfile::TempDir;

/// How long any step may take before the test fails; ample even on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The result of a finished command.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// Asserts the exit code.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "stdout:\n{}\nstderr:\n{}",
            self.stdout,
            self.stderr
        );
        self
    }

    /// The result objects, one per line of stdout.
    #[track_caller]
    pub(crate) fn objects(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }

    /// The only result object.
    #[track_caller]
    pub(crate) fn object(&self) -> Value {
        let objects = self.objects();
        assert_eq!(objects.len(), 1, "{}", self.stdout);
        objects.into_iter().next().unwrap()
    }

    /// The error object on stderr.
    #[track_caller]
    pub(crate) fn error(&self) -> Value {
        let object: Value =
            serde_json::from_str(self.stderr.trim()).unwrap_or_else(|e| panic!("{e}: {}", self.stderr));
        assert!(object["message"].is_string(), "{object}");
        object
    }
}

/// A process that runs until it is stopped.
#[derive(Debug)]
pub(crate) struct Service {
    child: Child,
    lines: mpsc::Receiver<String>,
    /// The address that it reported to listen on.
    pub(crate) address: String,
    /// The home, if the process is a peer.
    pub(crate) home: PathBuf,
}

impl Service {
    /// Starts a command and reads its stdout line by line.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            lines,
            address: String::new(),
            home: PathBuf::new(),
        }
    }

    /// Waits for the next line of output.
    #[track_caller]
    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(DEADLINE).expect("prints a line in time")
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("can be signalled");
    }

    /// Waits until the process exits.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }

    /// Sends SIGINT, as Ctrl-C does, and waits.
    #[track_caller]
    pub(crate) fn interrupt(&mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::INT);
        self.wait()
    }

    /// Kills the process, as a crash would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("can be killed");
        self.child.wait().expect("can be waited for");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[track_caller]
fn wait(child: &mut Child) -> ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if begun.elapsed() > DEADLINE {
            drop(child.kill());
            panic!("did not end within {DEADLINE:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// A user with a home folder of their own.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) dir: TempDir,
    index: Option<Service>,
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
        let mut sandbox = Self::without_index();
        let mut command = sandbox.command();
        let mut index =
            Service::start(command.args(["index", "--listen", "127.0.0.1:0", "--store", "memory", "-q"]));
        index.address = listening(&index);
        sandbox.index = Some(index);
        sandbox
    }

    /// The working folder of the commands.
    pub(crate) fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// The index's URL.
    pub(crate) fn index_url(&self) -> String {
        // Nothing listens on port 1 of loopback.
        self.index.as_ref().map_or_else(
            || "http://127.0.0.1:1".into(),
            |index| format!("http://{}", index.address),
        )
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
        finish(self.command().args(args))
    }

    /// Starts a peer with a home of its own.
    pub(crate) fn peer(&self, name: &str, args: &[&str]) -> Service {
        let home = self.dir.path().join(name);
        self.peer_in(&home, args)
    }

    /// Starts a peer in this home.
    pub(crate) fn peer_in(&self, home: &Path, args: &[&str]) -> Service {
        let mut command = self.command();
        command
            .args(["peer", "--listen", "127.0.0.1:0", "-q", "--home"])
            .arg(home)
            .args(args);
        let mut peer = Service::start(&mut command);
        peer.address = listening(&peer);
        peer.home = home.to_owned();
        peer
    }

    /// The home in which commands look for a daemon.
    pub(crate) fn default_home(&self) -> PathBuf {
        self.dir.path().join("data/potluck/peer-12349")
    }

    /// Creates a file of pseudo-random bytes in the working folder.
    pub(crate) fn file(&self, name: &str, size: usize, seed: u8) -> PathBuf {
        let path = self.work().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes(size, seed)).unwrap();
        path
    }

    /// Repeats the command until it succeeds, to wait for the index.
    #[track_caller]
    pub(crate) fn eventually(&self, args: &[&str]) -> Finished {
        let mut last = None;
        wait_until(&format!("{args:?} succeeds"), || {
            let finished = self.run(args);
            let done = finished.code == Some(0);
            last = Some(finished);
            done
        });
        last.unwrap()
    }
}

fn listening(service: &Service) -> String {
    let line = service.line();
    line.strip_prefix("listening on ")
        .unwrap_or_else(|| panic!("unexpected: {line}"))
        .to_owned()
}

/// Runs a command until it exits.
#[track_caller]
pub(crate) fn finish(command: &mut Command) -> Finished {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let stderr = thread::spawn(move || {
        let mut text = String::new();
        drop(err.read_to_string(&mut text));
        text
    });
    let stdout = thread::spawn(move || {
        let mut text = String::new();
        drop(out.read_to_string(&mut text));
        text
    });
    let status = wait(&mut child);
    Finished {
        code: status.code(),
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}

/// Waits until a condition is true.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_true() {
        assert!(begun.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Pseudo-random bytes that do not repeat (xorshift64*).
pub(crate) fn bytes(size: usize, seed: u8) -> Vec<u8> {
    let mut state = u64::from(seed) + 0x9e37_79b9_7f4a_7c15;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}
