"""Run exported networks without PyTorch: NumPy, Pillow, and onnxruntime or OpenVINO.

This package does not import the rest of the library: `fishnet export` writes a copy of it beside the model. The library
prepares images with the same code, so that inputs of prediction, calibration and exported networks are bit-identical.
"""
