//! The open port: what it serves, to how many at once, and to readers that stall.

mod crowds;
mod partial_content;
mod spans;
mod stalled_readers;
