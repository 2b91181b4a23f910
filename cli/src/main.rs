//! The command line of Potluck.

fn main() {}
