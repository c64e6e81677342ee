"""One run: from data to model file, its folder, and scoring it again."""
