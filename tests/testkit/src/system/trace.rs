//! The system calls of a program, recorded with strace: in which order it writes, flushes, renames
//! and answers.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::program::Server;

/// What to record.
#[derive(Debug, Clone, Copy)]
pub struct TraceOptions<'a> {
    /// The system calls, separated by commas.
    pub calls: &'a str,
    /// Maximum bytes of a string argument that are recorded.
    pub string_len: usize,
    /// Delay added to every flush of a file, so that an answer before the end of the flush becomes
    /// measurable.
    pub flush_delay: Duration,
}

/// A server under strace.
#[derive(Debug)]
pub struct TracedServer {
    strace: Server,
    pid_file: PathBuf,
    log: TempDir,
    flush_delay: Duration,
}

impl TracedServer {
    /// Starts a command, which must write its process id into `pid_file`. `None`, with a note on the
    /// output, if tracing is not possible.
    pub fn start(command: &Command, pid_file: &Path, options: TraceOptions<'_>) -> Option<Self> {
        let mut can_trace = Command::new("strace");
        let can_trace = can_trace.args(["-o", "/dev/null", "true"]).stderr(Stdio::null());
        if !can_trace.status().is_ok_and(|status| status.success()) {
            println!("skipped: strace is missing (Debian package strace), or may not trace");
            return None;
        }
        let log = tempfile::tempdir().unwrap();
        let mut strace = Command::new("strace");
        strace
            .args([
                "-ff",
                "-y",
                "-x",
                "-ttt",
                "-T",
                "-s",
                &options.string_len.to_string(),
            ])
            .args(["-e", &format!("trace={}", options.calls)]);
        if !options.flush_delay.is_zero() {
            let delay = options.flush_delay.as_micros();
            strace.args(["-e", &format!("inject=fsync,fdatasync:delay_exit={delay}")]);
        }
        strace
            .arg("-o")
            .arg(log.path().join("call"))
            .arg(command.get_program())
            .args(command.get_args())
            .stderr(Stdio::null());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => strace.env(name, value),
                None => strace.env_remove(name),
            };
        }
        Some(Self {
            strace: Server::start(&mut strace),
            pid_file: pid_file.to_owned(),
            log,
            flush_delay: options.flush_delay,
        })
    }

    /// The server's address.
    pub fn address(&self) -> std::net::SocketAddr {
        self.strace.address
    }

    /// Ends the server with a signal; returns its successful system calls in order.
    pub fn end(mut self, signal: Signal) -> Trace {
        self.signal(signal);
        // strace ends with the server, and writes its whole log first.
        self.strace.wait();
        let mut calls = Vec::new();
        for file in fs::read_dir(self.log.path()).unwrap() {
            let text = fs::read_to_string(file.unwrap().path()).unwrap();
            let lines = text.lines();
            calls.extend(lines.filter_map(|line| Call::parse(line, self.flush_delay)));
        }
        calls.sort_by(|a, b| a.begins.total_cmp(&b.begins));
        Trace { calls }
    }

    /// Signals the server and not strace, which would detach from it.
    fn signal(&self, signal: Signal) {
        let pid = fs::read_to_string(&self.pid_file).ok();
        let pid = pid.and_then(|pid| Pid::from_raw(pid.trim().parse().ok()?));
        if let Some(pid) = pid {
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for TracedServer {
    fn drop(&mut self) {
        if self.strace.is_running() {
            self.signal(Signal::KILL);
            self.strace.wait();
        }
    }
}

/// A system call that succeeded. Times are in seconds since 1970.
#[derive(Debug)]
pub struct Call {
    /// Its name.
    pub name: String,
    /// The text between its parentheses; open files are shown with their paths.
    pub arguments: String,
    /// When it began.
    pub begins: f64,
    /// When it returned.
    pub ends: f64,
}

impl Call {
    /// Parses a line of strace: `1700000000.123456 fsync(3</path>) = 0 <0.000012>`.
    fn parse(line: &str, flush_delay: Duration) -> Option<Self> {
        let (begins, rest) = line.split_once(' ')?;
        let (name, rest) = rest.split_once('(')?;
        let (arguments, result) = rest.rsplit_once(") = ")?;
        let took = result.rsplit_once('<')?.1.strip_suffix('>')?;
        let begins: f64 = begins.parse().ok()?;
        let took: f64 = took.parse().ok()?;
        // Some versions of strace do not include the delay.
        let took = match name {
            "fsync" | "fdatasync" => took.max(flush_delay.as_secs_f64()),
            _ => took,
        };
        (!result.starts_with('-')).then(|| Self {
            name: name.to_owned(),
            arguments: arguments.to_owned(),
            begins,
            ends: begins + took,
        })
    }

    /// Whether it flushes this file or folder.
    pub fn is_flush_of(&self, path: &Path) -> bool {
        let file = format!("<{}>", path.display());
        matches!(&*self.name, "fsync" | "fdatasync") && self.arguments.ends_with(&file)
    }

    /// Whether it renames `from` to `to`.
    pub fn is_rename(&self, from: &Path, to: &Path) -> bool {
        let (from, to) = (format!("\"{}\"", from.display()), format!("\"{}\"", to.display()));
        let both = self.arguments.find(&from).zip(self.arguments.find(&to));
        self.name.starts_with("rename") && both.is_some_and(|(from, to)| from < to)
    }

    /// Whether it creates this file.
    pub fn creates(&self, path: &Path) -> bool {
        let path = format!("\"{}\"", path.display());
        self.name == "openat"
            && self.arguments.contains(&path)
            && self.arguments.contains("O_CREAT")
    }

    /// Whether it writes to this file at an offset.
    pub fn writes_to(&self, path: &Path) -> bool {
        self.name == "pwrite64" && self.arguments.contains(&format!("<{}>", path.display()))
    }
}

/// The successful system calls of a program, in the order in which they began.
#[derive(Debug)]
pub struct Trace {
    /// The calls.
    pub calls: Vec<Call>,
}

impl Trace {
    /// The first call after `since` that matches; panics with `call_name` if there is none.
    #[track_caller]
    pub fn next(&self, since: f64, call_name: &str, matches: impl Fn(&Call) -> bool) -> &Call {
        let mut calls = self.calls.iter();
        let found = calls.find(|call| call.begins >= since && matches(call));
        found.unwrap_or_else(|| panic!("{call_name} is missing after {since}: {:#?}", self.calls))
    }

    /// The last call that matches; panics with `call_name` if there is none.
    #[track_caller]
    pub fn last(&self, call_name: &str, matches: impl Fn(&Call) -> bool) -> &Call {
        let mut calls = self.calls.iter().rev();
        let found = calls.find(|call| matches(call));
        found.unwrap_or_else(|| panic!("{call_name} is missing: {:#?}", self.calls))
    }

    /// Checks that a file was replaced as a whole: flushed under another name, renamed, and its
    /// folder flushed. Returns when that was complete.
    #[track_caller]
    pub fn replaced(&self, since: f64, path: &Path) -> f64 {
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        let flush = self.next(since, "the flush before the rename", |call| {
            call.is_flush_of(&new)
        });
        let rename = self.next(flush.ends, "the rename", |call| call.is_rename(&new, path));
        let folder = path.parent().unwrap();
        let flush = self.next(rename.ends, "the flush of the folder", |call| {
            call.is_flush_of(folder)
        });
        flush.ends
    }
}

/// The current time, in seconds since 1970.
pub fn now() -> f64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since_1970.as_secs_f64()
}
