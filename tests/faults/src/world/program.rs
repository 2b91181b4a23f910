//! Programs: the servers that run on the machines, and commands that end by themselves.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A server.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Where it prints that it is ready.
    output: PathBuf,
    is_frozen: bool,
}

impl Server {
    /// Starts a command. Its log is appended to `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let output = log.with_extension("out");
        let errors = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&output)?)
            .stderr(errors)
            .spawn()
            .context("a server cannot be started")?;
        Ok(Self {
            child,
            output,
            is_frozen: false,
        })
    }

    /// The address that it printed, if it is ready.
    pub(crate) fn address(&self) -> Option<String> {
        let text = fs::read_to_string(&self.output).ok()?;
        let line = text.lines().next()?;
        Some(line.strip_prefix("listening on ")?.to_owned())
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub(crate) fn signal(&mut self, signal: Signal) {
        // It may have ended.
        _ = kill_process(Pid::from_child(&self.child), signal);
        match signal {
            Signal::STOP => self.is_frozen = true,
            Signal::CONT => self.is_frozen = false,
            _ => {}
        }
    }

    /// Whether it is stopped by a signal.
    pub(crate) const fn is_frozen(&self) -> bool {
        self.is_frozen
    }

    /// Kills it.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::KILL);
        _ = self.child.wait();
    }

    /// Waits until it ends; kills it if it does not end in time, and returns `None`.
    pub(crate) fn wait(mut self, limit: Duration) -> Option<ExitStatus> {
        let status = wait(&mut self.child, limit);
        if status.is_none() {
            self.kill();
        }
        status
    }
}

/// A command that runs.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    path: PathBuf,
    started: Instant,
}

/// The result of a command.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Its exit code; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    /// The objects that it printed.
    pub(crate) objects: Vec<Value>,
    /// Its messages.
    pub(crate) errors: String,
}

impl Finished {
    /// The word for the error.
    pub(crate) fn error(&self) -> String {
        let mut words = self.errors.lines().filter_map(|line| {
            let object: Value = serde_json::from_str(line).ok()?;
            Some(object["error"].as_str()?.to_owned())
        });
        words.next_back().unwrap_or_else(|| self.errors.clone())
    }
}

impl Running {
    /// Starts a command. Its output goes to files with this path.
    pub(crate) fn start(command: &mut Command, path: PathBuf) -> anyhow::Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(path.with_extension("out"))?)
            .stderr(File::create(path.with_extension("err"))?)
            .spawn()
            .context("a command cannot be started")?;
        Ok(Self {
            child,
            path,
            started: Instant::now(),
        })
    }

    /// How long it has been running.
    pub(crate) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Its result, if it has ended.
    pub(crate) fn poll(&mut self) -> anyhow::Result<Option<Finished>> {
        let Some(status) = self.child.try_wait()? else {
            return Ok(None);
        };
        let read = |extension| {
            let bytes = fs::read(self.path.with_extension(extension))?;
            anyhow::Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let objects = read("out")?;
        let objects = objects.lines().filter_map(|line| serde_json::from_str(line).ok());
        let finished = Finished {
            code: status.code(),
            objects: objects.collect(),
            errors: read("err")?,
        };
        if finished.errors.contains("panicked") {
            // The log of a command that panicked is kept.
            return Ok(Some(finished));
        }
        for extension in ["out", "err"] {
            fs::remove_file(self.path.with_extension(extension))?;
        }
        Ok(Some(finished))
    }

    /// Waits for its result.
    pub(crate) fn wait(&mut self, limit: Duration) -> anyhow::Result<Finished> {
        if wait(&mut self.child, limit).is_none() {
            self.signal(Signal::KILL);
            _ = self.child.wait();
            bail!("a command did not end within {limit:?}: {}", self.path.display());
        }
        self.poll()?.context("a command that ended has a result")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        _ = self.child.wait();
    }
}

fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let started = Instant::now();
    while started.elapsed() < limit {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    None
}
