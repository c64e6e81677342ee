"""What people read about a run: the HTML reports, the model card and their pictures."""
