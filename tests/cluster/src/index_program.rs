//! A real `potluck-index`.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use potluck_core::grpc::transport::Endpoint;

/// An index that can be killed and started again at the same address.
#[derive(Debug)]
pub(crate) struct IndexProgram {
    program: PathBuf,
    store: String,
    lease: Duration,
    address: String,
    process: Option<Child>,
}

impl IndexProgram {
    /// Starts an index over this store.
    pub(crate) fn start(program: &Path, store: &str, lease: Duration) -> anyhow::Result<Self> {
        let mut index = Self {
            program: program.to_owned(),
            store: store.to_owned(),
            lease,
            address: "127.0.0.1:0".to_owned(),
            process: None,
        };
        index.restart()?;
        Ok(index)
    }

    /// Starts it, and waits until it serves.
    pub(crate) fn restart(&mut self) -> anyhow::Result<()> {
        let mut process = Command::new(&self.program)
            .args(["--listen", &self.address, "--store", &self.store])
            .args(["--ttl", &format!("{}s", self.lease.as_secs())])
            .args(["--max-calls-per-second", "1000000"])
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let out = process.stdout.take().context("standard output is piped")?;
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        self.process = Some(process);
        match line.trim().strip_prefix("listening on ") {
            Some(address) => address.clone_into(&mut self.address),
            None => bail!("the index does not start: `{line}`"),
        }
        Ok(())
    }

    /// Its address for clients.
    pub(crate) fn endpoint(&self) -> Endpoint {
        self.address.parse().expect("the program printed it")
    }

    /// Kills it as a crash would.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }
}

impl Drop for IndexProgram {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.kill();
    }
}
