"""What judges, benchmarks and counting say of texts."""
