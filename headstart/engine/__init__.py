"""Inference engines that run the frozen backbone: PyTorch and ONNX Runtime behind one signature."""
