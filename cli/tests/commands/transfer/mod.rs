//! Transfers: their providers, their limits, and how commands show them.

mod explicit_peers;
mod limits;
mod views;
