"""Reports for readers: HTML reports, model card, charts and image galleries."""
