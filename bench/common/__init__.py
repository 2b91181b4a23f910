"""Code shared by the benchmarks: running processes, measuring them, and reporting results."""
