"""From a folder or a table to upright uint8 pixels: index, decoding, duplicates, splits, findings."""
