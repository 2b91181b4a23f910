//! The program `potluck-index` in a process of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod configuration;
#[cfg(target_os = "linux")]
mod durability;
mod memory;
mod start_and_stop;

use std::{
    path::Path,
    process::{Command, Stdio},
};

use potluck_core::index_client::IndexClient;
use potluck_testkit::{network::endpoint_at, system::program::Server};

/// The path of the program.
const PROGRAM: &str = env!("CARGO_BIN_EXE_potluck-index");

/// The program with this data folder, on a free port. Its messages are discarded.
fn command(dir: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args(["--listen", "127.0.0.1:0", "--data-dir"])
        .arg(dir)
        .env_remove("POTLUCK_LOG")
        .env_remove("RUST_LOG")
        .stderr(Stdio::null());
    command
}

/// Starts the program with this data folder.
fn start(dir: &Path) -> Server {
    Server::start(&mut command(dir))
}

/// A client of the program.
fn client_of(program: &Server) -> IndexClient {
    IndexClient::new(endpoint_at(program.address))
}
