"""``python -m headstart.runtime``: the same as the ``headstart-runtime`` command."""

from .command import run

run()
