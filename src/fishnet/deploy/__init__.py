"""Deployment of trained networks: fusing, export, quantization, benchmarks and comparisons."""
