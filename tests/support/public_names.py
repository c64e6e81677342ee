"""The documented modules of the public API."""

from __future__ import annotations

SUBMODULES = (
    "backbone",
    "data",
    "engine",
    "errors",
    "estimators",
    "evaluation",
    "exports",
    "pipeline",
    "progress",
    "runs",
    "runtime",
    "serve",
    "training",
    "trust",
    "verbs",
)
"""Documented submodules of ``headstart``; all others are private."""

PUBLIC = {"headstart", *(f"headstart.{name}" for name in SUBMODULES)}
