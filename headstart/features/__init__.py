"""The frozen pass: features and activations of a frozen backbone, computed once and cached."""
