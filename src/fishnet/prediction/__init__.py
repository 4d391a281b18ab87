"""What `fishnet predict` consists of: inputs, loading ahead, writing behind, results on disk, videos."""
