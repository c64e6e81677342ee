"""Watching a run on a page while it trains."""
