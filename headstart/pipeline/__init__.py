"""The steps of a training run, from images to a finished run folder."""
