//! The library on real folders.

mod damage;
mod sharing;
