//! Programs as processes of their own. Each is killed when its handle is dropped.

use std::{
    io::{BufRead as _, BufReader, Read},
    net::SocketAddr,
    ops::{Deref, DerefMut},
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Instant,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::wait::DEADLINE;

/// A running program.
#[derive(Debug)]
pub struct Program {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Program {
    /// Starts a command and reads its stdout line by line. Its stderr goes where the command says.
    pub fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// Waits for the next line of its output.
    #[track_caller]
    pub fn line(&self) -> String {
        let line = self.lines.recv_timeout(DEADLINE);
        line.expect("the program prints a line in time")
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not exited.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The reading end of its stderr, which must be a pipe.
    pub fn take_stderr(&mut self) -> ChildStderr {
        self.child.stderr.take().expect("stderr is a pipe")
    }

    /// Closes the reading end of its stderr, if that is a pipe.
    pub fn close_stderr(&mut self) {
        drop(self.child.stderr.take());
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the program can be signalled");
    }

    /// Sends a signal and waits until the program exits.
    #[track_caller]
    pub fn end(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.wait()
    }

    /// Ends the program as Ctrl-C does.
    #[track_caller]
    pub fn interrupt(&mut self) -> ExitStatus {
        self.end(Signal::INT)
    }

    /// Ends the program as a service manager does.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        self.end(Signal::TERM)
    }

    /// Kills the program, as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().expect("the program can be killed");
        self.child.wait().unwrap();
    }

    /// Waits until the program exits.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A program that accepts connections.
#[derive(Debug)]
pub struct Server {
    program: Program,
    /// The address that it printed.
    pub address: SocketAddr,
}

impl Server {
    /// Starts a command and waits until it prints `listening on ADDRESS`.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let program = Program::start(command);
        let line = program.line();
        let address = line.strip_prefix("listening on ").and_then(|at| at.parse().ok());
        let address = address.unwrap_or_else(|| panic!("not the address of a server: {line}"));
        Self { program, address }
    }
}

impl Deref for Server {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.program
    }
}

impl DerefMut for Server {
    fn deref_mut(&mut self) -> &mut Program {
        &mut self.program
    }
}

/// The result of a program that exited.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// All of its output.
    pub stdout: String,
    /// All of its messages.
    pub stderr: String,
}

impl Finished {
    /// Runs a command until it exits.
    #[track_caller]
    pub fn run(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stdout = read_all(child.stdout.take().unwrap());
        let stderr = read_all(child.stderr.take().unwrap());
        let status = wait(&mut child);
        Self {
            code: status.code(),
            stdout: stdout.join().unwrap(),
            stderr: stderr.join().unwrap(),
        }
    }

    /// Asserts the exit code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "stdout:\n{}\nstderr:\n{}",
            self.stdout,
            self.stderr
        );
        self
    }

    /// The JSON objects on stdout, one per line.
    #[track_caller]
    pub fn objects(&self) -> Vec<Value> {
        let lines = self.stdout.lines();
        lines.map(parse).collect()
    }

    /// The only JSON object on stdout.
    #[track_caller]
    pub fn object(&self) -> Value {
        let objects = self.objects();
        assert_eq!(objects.len(), 1, "{}", self.stdout);
        objects.into_iter().next().unwrap()
    }

    /// The JSON object on stderr, which describes an error.
    #[track_caller]
    pub fn error(&self) -> Value {
        let object = parse(self.stderr.trim());
        assert!(object["message"].is_string(), "{object}");
        object
    }
}

/// Parses a line of JSON.
#[track_caller]
pub fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

fn read_all(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut text = String::new();
        drop(from.read_to_string(&mut text));
        text
    })
}

#[track_caller]
fn wait(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > DEADLINE {
            drop(child.kill());
            panic!("the program did not exit within {DEADLINE:?}");
        }
        thread::sleep(std::time::Duration::from_millis(5));
    }
}
