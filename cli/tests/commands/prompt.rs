//! The prompt on a pseudo-terminal: how it starts, which settings a line overrides, and how errors
//! of a line are reported.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::net::UnixListener,
    process::{Child, Command},
    sync::{Arc, Mutex},
    thread,
    time::Instant,
};

use potluck_testkit::{system::program::Program, wait::wait_until_blocking};
use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use crate::sandbox::{Sandbox, UNREACHABLE_URL};

/// Width of the pseudo-terminal.
const COLUMNS: usize = 80;

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
        let size = Winsize {
            ws_row: 50,
            ws_col: COLUMNS as u16, // it fits
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&terminal, size).unwrap();
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
        wait_until_blocking(text, || {
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
fn ctrl_c_interrupts_a_start_that_hangs() {
    let sandbox = Sandbox::without_index();
    let home = sandbox.default_home();
    fs::create_dir_all(&home).unwrap();
    let silent = UnixListener::bind(home.join("control.sock")).unwrap();
    let mut prompt = Prompt::start(&mut sandbox.command());
    let _connection = silent.accept().unwrap();
    let start = Instant::now();
    assert_eq!(prompt.interrupt(), Some(130));
    // Without the signal, the command times out after 15 seconds.
    assert!(start.elapsed().as_secs() < 10);
}

#[test]
fn tab_completes_a_name_from_the_index() {
    let sandbox = Sandbox::new();
    let _peer = sandbox.peer_in(&sandbox.default_home(), &[]);
    let file = sandbox.file("new", 100, 1);
    let path = sandbox.work().join("my file; x.bin");
    fs::rename(file, &path).unwrap();
    sandbox.run(&["share", path.to_str().unwrap()]).expect(0);
    let mut prompt = Prompt::start(&mut sandbox.command());
    prompt.types("query my\t");
    prompt.shows(r"query my\ file\;\ x.bin");
    prompt.shows("my file; x.bin");
    prompt.types("quit");
    assert_eq!(prompt.child.wait().unwrap().code(), Some(0));
}

#[test]
fn ends_although_the_index_hangs() {
    let sandbox = Sandbox::without_index();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = sandbox.command();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let mut prompt = Prompt::start(command.args(["--index", &url]));
    prompt.shows("runs in this prompt");
    let start = Instant::now();
    assert_eq!(prompt.interrupt(), Some(130));
    // The peer's grace period, which it may need to unregister from an index that does not answer.
    assert!(start.elapsed().as_secs() < 20);
}

#[test]
fn a_line_overrides_flags_and_flags_override_the_environment() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.command();
    command
        .args(["--index", &sandbox.index_url()])
        .env("POTLUCK_INDEX", UNREACHABLE_URL);
    let mut prompt = Prompt::start(&mut command);
    prompt.types("search absent --json");
    prompt.shows(r#""error":"not_found""#);
    prompt.types(&format!("search absent --index {UNREACHABLE_URL} --json"));
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

#[test]
fn an_unknown_word_suggests_a_command() {
    let sandbox = Sandbox::without_index();
    let mut prompt = Prompt::start(&mut sandbox.command());
    prompt.types("serach x");
    prompt.shows("unknown command `serach`");
    prompt.shows("did you mean `search`?");
    // The names that these commands have in other programs.
    sandbox.file("x.bin", 1000, 1);
    prompt.types("register x.bin");
    prompt.shows("shared");
    prompt.types("unregister x.bin");
    prompt.shows("no longer shared: x.bin");
    prompt.types("quit");
    assert_eq!(prompt.child.wait().unwrap().code(), Some(0));
}

#[test]
fn tables_fit_the_terminal_and_shorten_names_in_the_middle() {
    let sandbox = Sandbox::new();
    let name = format!("begin-{}-end.bin", "long-".repeat(30));
    sandbox.file(&name, 1000, 1);
    sandbox.file("名前.bin", 3_000_000, 2);
    let mut command = sandbox.command();
    let daemon = Program::start(command.args([
        "share",
        &name,
        "名前.bin",
        "--json",
        "--listen",
        "127.0.0.1:0",
    ]));
    daemon.line();
    let mut prompt = Prompt::start(&mut sandbox.command());
    prompt.types(&format!("get {name} -o copy"));
    prompt.shows("saved");
    for line in ["search", "transfers", "ls"] {
        prompt.types(line);
        prompt.shows("ID");
        // The end of the name, or of the path that ends with it.
        let end = if line == "search" { "end.bin" } else { "copy" };
        wait_until_blocking("the table is shown", || {
            prompt.shown.lock().unwrap().contains(end)
        });
        let shown = prompt.shown.lock().unwrap().clone();
        let table: Vec<&str> = shown.split("potluck> ").next().unwrap().split("\r\n").collect();
        for row in &table {
            assert!(console_width(row) <= COLUMNS, "{line}: {row}");
        }
        if line == "search" {
            assert!(table.iter().any(|row| row.contains('…')), "{table:?}");
        }
    }
    prompt.types("quit");
    assert_eq!(prompt.child.wait().unwrap().code(), Some(0));
}

/// Width of a line of plain text with wide characters for Chinese and Japanese.
fn console_width(line: &str) -> usize {
    let width = |c: char| if c.is_ascii() || c == '…' { 1 } else { 2 };
    line.chars().map(width).sum()
}
