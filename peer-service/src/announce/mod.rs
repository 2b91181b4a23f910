//! Announces to the index what this peer has.

pub mod registrar;
pub mod set;
