"""Pretrained backbones: weights, preprocessing, layer groups, and running them fast."""
