"""Makes the pictures and the network that the package and the benchmarks use."""
