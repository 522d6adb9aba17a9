//! Workload generators: seeded streams of guest operations.
