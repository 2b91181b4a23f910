//! The program `potluck-peer` in a process of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod configuration;
#[cfg(target_os = "linux")]
mod durability;
mod memory;
mod os_limits;
mod restart;
mod start_and_stop;

use std::{
    path::Path,
    process::{Command, Stdio},
};

use potluck_testkit::system::program::Server;

/// The path of the program.
const PROGRAM: &str = env!("CARGO_BIN_EXE_potluck-peer");

/// The program with this home, without an index, on a free port. Its messages are discarded.
fn command(home: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args(["--listen", "127.0.0.1:0", "--home"])
        .arg(home)
        .env("POTLUCK_INDEX", "none")
        .stderr(Stdio::null());
    command
}

/// Starts the program with this home.
fn start(home: &Path) -> Server {
    Server::start(&mut command(home))
}
