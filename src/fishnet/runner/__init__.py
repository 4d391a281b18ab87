"""Run exported networks without PyTorch: NumPy, Pillow, and onnxruntime or OpenVINO.

This package imports nothing of the rest of the library: `fishnet export` writes a copy of it beside the model. The
library uses the same code to prepare images, so that prediction, calibration and exported networks see the same bits.
"""
