//! `potluck-index`: the index as a program of its own.

fn main() {}
