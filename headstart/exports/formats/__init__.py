"""Export formats: one file a format; ``registry`` lists them."""
