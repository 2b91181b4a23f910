"""What the benchmarks share: running processes, measuring them, and telling what came out."""
