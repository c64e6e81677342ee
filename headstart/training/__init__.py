"""From features to a classifier: the recipe, the probe, the run folder."""
