//! A runtime for tests that block their thread.

use tokio::runtime::{Builder, Runtime};

/// Runs the servers of a test on a thread of its own. Dropping it ends them.
#[derive(Debug)]
pub struct Background(Runtime);

impl Background {
    /// Starts the runtime.
    pub fn start() -> Self {
        let mut builder = Builder::new_multi_thread();
        Self(builder.worker_threads(1).enable_all().build().unwrap())
    }

    /// Runs a future to its end. The tasks that it spawns go on.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.0.block_on(future)
    }
}
