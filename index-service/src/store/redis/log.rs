//! A list of lines in Redis, which one script changes if it ends as expected.

use std::fmt;

use redis::{RedisError, cluster_async::ClusterConnection};
use tokio::runtime::Handle;

use super::{
    connection::{self, RedisConfig, RedisOpenError},
    keys::MEMBERS,
    store::store_error,
};
use crate::store::{
    StoreError,
    shared_log::{LogEnd, LogPart, SharedLog},
};

/// Appends or replaces.
const CHANGE: &str = include_str!("scripts/log.lua");

/// The members of a private network, as lines in a Redis Cluster.
pub(crate) struct RedisLog {
    runtime: Handle,
    connection: ClusterConnection,
}

impl fmt::Debug for RedisLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLog").finish_non_exhaustive()
    }
}

impl RedisLog {
    /// Connects to the cluster, and checks it.
    ///
    /// # Errors
    /// [`RedisOpenError`].
    pub(crate) fn open(runtime: Handle, config: &RedisConfig) -> Result<Self, RedisOpenError> {
        let (connection, _) = runtime.block_on(connection::connect(config))?;
        Ok(Self { runtime, connection })
    }

    fn change(&mut self, how: &str, end: &LogEnd, lines: &[String]) -> Result<bool, StoreError> {
        let mut command = redis::cmd("EVAL");
        command
            .arg(CHANGE)
            .arg(1)
            .arg(MEMBERS)
            .arg(end.len)
            .arg(&end.last)
            .arg(how)
            .arg(lines);
        let answer: Result<bool, RedisError> =
            self.runtime.block_on(command.query_async(&mut self.connection));
        answer.map_err(store_error)
    }
}

impl SharedLog for RedisLog {
    fn read(&mut self, from: u64) -> Result<LogPart, StoreError> {
        // One script, so that both are of the same moment.
        let script = "return {redis.call('LINDEX', KEYS[1], 0), \
                      redis.call('LRANGE', KEYS[1], ARGV[1], -1)}";
        let mut command = redis::cmd("EVAL");
        command.arg(script).arg(1).arg(MEMBERS).arg(from);
        let answer: Result<(Option<String>, Vec<String>), RedisError> =
            self.runtime.block_on(command.query_async(&mut self.connection));
        let (first, lines) = answer.map_err(store_error)?;
        Ok(LogPart { first, lines })
    }

    fn append(&mut self, end: &LogEnd, lines: &[String]) -> Result<bool, StoreError> {
        self.change("append", end, lines)
    }

    fn replace(&mut self, end: &LogEnd, lines: &[String]) -> Result<bool, StoreError> {
        self.change("replace", end, lines)
    }
}
