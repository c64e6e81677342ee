"""The cache on disk: rows computed from images, and the budget that bounds them."""
