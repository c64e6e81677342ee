"""Telling the truth about a classifier: metrics with intervals, and the report."""
