"""A trainer that a bench can let get stuck, for bench_preemption."""
