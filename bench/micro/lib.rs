//! Nothing but benchmarks: `cargo bench -p potluck-bench-micro`.
