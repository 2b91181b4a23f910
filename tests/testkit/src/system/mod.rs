//! Programs and what the operating system reports about them; small file systems.

pub mod disk;
pub mod memory;
pub mod program;
pub mod redis_cluster;
pub mod trace;
