"""Selection: which backbones are considered, and which one suits the images."""
