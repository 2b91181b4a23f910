//! The store that several index processes share, in a Redis Cluster or Valkey.
//!
//! | module | purpose |
//! |---|---|
//! | `store` | the store: makes changes, and what the other modules do to it |
//! | `connection` | connects, and checks the cluster at the start |
//! | `keys`, `rows` | the keys and values in Redis |
//! | `scripts` | change a peer with everything that belongs to it, in one slot |
//! | `tags` | how far the changes of each hash tag were followed |
//! | `follow` | what other processes changed, and what a failover lost |
//! | `read` | reads peers |
//! | `log` | the members of a private network |
//!
//! Invariants:
//!
//! - Redis has the truth, and each process follows it. After a failure of Redis, a process makes its
//!   catalog equal to Redis, not Redis equal to its catalog: peers register again what was lost,
//!   because the digest of their next renewal shows it.
//! - A change of a peer is one script, so that it is made whole or not at all.
//! - Nothing relies on notifications: a stream that was trimmed, or a primary that lost its last
//!   writes, is noticed, and the state is read again.

mod connection;
mod follow;
mod keys;
mod log;
mod read;
mod rows;
mod scripts;
mod store;
mod tags;
#[cfg(test)]
mod tests;

pub use self::connection::{RedisConfig, RedisOpenError};
pub(crate) use self::{log::RedisLog, store::RedisStore};
