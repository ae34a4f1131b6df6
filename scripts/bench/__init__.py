"""The benchmark, the only place where the project claims speed. The method is explained in docs/benchmark.md."""
