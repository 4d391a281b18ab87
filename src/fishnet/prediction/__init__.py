"""Implementation of `fishnet predict`: inputs, prefetching, background writing, results, videos."""
