//! Benchmarks only; run `cargo bench -p potluck-bench-micro`.
