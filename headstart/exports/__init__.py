"""The finished classifier as one file for other programs: ONNX or PyTorch, raw pixels in, probabilities out."""
