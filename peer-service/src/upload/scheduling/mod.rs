//! The order of sending, and the treatment of connections whose receiver does not read.

pub(crate) mod connection;
mod connection_queue;
pub(crate) mod scheduler;

pub(crate) use connection_queue::STALL_BEFORE_EVICTION;
