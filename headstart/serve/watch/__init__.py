"""Watching a run on a page while it trains."""

from headstart.extras import require_extra

require_extra("serve", "watching a run in the browser")
