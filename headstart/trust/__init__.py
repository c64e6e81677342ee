"""When to trust a prediction: calibration, thresholds, out-of-distribution detection, label errors."""
