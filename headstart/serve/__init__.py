"""Server: a model behind HTTP, with the web page and the watch page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart.lazy import lazy_names

if TYPE_CHECKING:
    from headstart.serve.limits import ServerLimits as ServerLimits
    from headstart.serve.server import create_app as create_app
    from headstart.serve.server import serve as serve
    from headstart.serve.server import serve_async as serve_async

_MODULES = {
    "ServerLimits": "headstart.serve.limits",
    "create_app": "headstart.serve.server",
    "serve": "headstart.serve.server",
    "serve_async": "headstart.serve.server",
}

__getattr__, __dir__, __all__ = lazy_names(__name__, _MODULES, extra="serve")
