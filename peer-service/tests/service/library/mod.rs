//! The library on real folders.

mod damage;
mod omissions;
mod sharing;
