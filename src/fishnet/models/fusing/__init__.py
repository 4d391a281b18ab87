"""Networks for inference: norms folded into convolutions, and kernels of matrix products for CPUs."""
