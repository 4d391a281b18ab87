"""Reports of runs and models: report.html, training curves, gradient flow, architecture figure."""
