//! The prompt on a pseudo-terminal: how it starts, which settings a line overrides, and how errors
//! of a line are reported.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::net::UnixListener,
    process::{Child, Command},
    sync::{Arc, Mutex},
    thread,
    time::Instant,
};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use support::{Sandbox, wait_until};

/// A running prompt.
struct Prompt {
    child: Child,
    terminal: File,
    shown: Arc<Mutex<String>>,
}

impl Prompt {
    /// Starts a command on a pseudo-terminal.
    fn start(command: &mut Command) -> Self {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
        let end = File::options().read(true).write(true).open(name).unwrap();
        let child = command
            .env("TERM", "xterm")
            .stdin(end.try_clone().unwrap())
            .stdout(end.try_clone().unwrap())
            .stderr(end)
            .spawn()
            .unwrap();
        let terminal = File::from(terminal);
        let (shown, mut reader) = (Arc::<Mutex<String>>::default(), terminal.try_clone().unwrap());
        let writer = Arc::clone(&shown);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(1..) = reader.read(&mut bytes).inspect(|&read| {
                let text = String::from_utf8_lossy(&bytes[..read]);
                writer.lock().unwrap().push_str(&text);
            }) {}
        });
        Self {
            child,
            terminal,
            shown,
        }
    }

    /// Waits until the text is displayed, then discards the output seen so far.
    #[track_caller]
    fn shows(&self, text: &str) {
        wait_until(text, || {
            let mut shown = self.shown.lock().unwrap();
            let found = shown.find(text).map(|at| at + text.len());
            found.map(|end| shown.drain(..end)).is_some()
        });
    }

    /// Types a line.
    fn types(&mut self, line: &str) {
        self.shows("potluck> ");
        self.terminal.write_all(line.as_bytes()).unwrap();
        self.terminal.write_all(b"\r").unwrap();
    }

    /// Interrupts the prompt with a signal and returns its exit code.
    fn interrupt(&mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Prompt {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_start_that_hangs_can_be_interrupted() {
    let sandbox = Sandbox::without_index();
    let home = sandbox.default_home();
    fs::create_dir_all(&home).unwrap();
    let silent = UnixListener::bind(home.join("control.sock")).unwrap();
    let mut prompt = Prompt::start(&mut sandbox.command());
    let _looks = silent.accept().unwrap();
    let begun = Instant::now();
    assert_eq!(prompt.interrupt(), Some(130));
    // Without the signal, the command times out after 15 seconds.
    assert!(begun.elapsed().as_secs() < 10);
}

#[test]
fn an_index_that_hangs_does_not_delay_the_end() {
    let sandbox = Sandbox::without_index();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = sandbox.command();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let mut prompt = Prompt::start(command.args(["--index", &url]));
    prompt.shows("runs in this prompt");
    let begun = Instant::now();
    assert_eq!(prompt.interrupt(), Some(130));
    // The peer's grace period, which it may need to unregister from an index that does not answer.
    assert!(begun.elapsed().as_secs() < 20);
}

#[test]
fn flags_override_the_environment_and_a_line_overrides_both() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.command();
    command
        .args(["--index", &sandbox.index_url()])
        .env("POTLUCK_INDEX", "http://127.0.0.1:1");
    let mut prompt = Prompt::start(&mut command);
    prompt.types("search absent --json");
    prompt.shows(r#""error":"not_found""#);
    prompt.types("search absent --index http://127.0.0.1:1 --json");
    prompt.shows(r#""error":"unreachable""#);
    prompt.types("search absent --index none --json");
    prompt.shows(r#""error":"usage""#);
    prompt.types("frobnicate --json");
    prompt.shows(r#""error":"usage""#);
    prompt.types("search absent");
    prompt.shows("error:");
    prompt.types("quit");
    assert_eq!(prompt.child.wait().unwrap().code(), Some(0));
}
