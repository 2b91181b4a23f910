//! Downloads from real and from misbehaving peers, to disks of several kinds.

mod collections;
mod disk_full;
mod download_only;
mod file_systems;
mod files;
mod misbehaving_peers;
mod origins;
mod rate_sharing;
mod slow_connections;
mod zones;
