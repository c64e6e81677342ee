"""``headstart cache``: what is cached on disk, its check and its removal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from headstart.cli.options import Command, json_option, option
from headstart.cli.render import print_json, print_table
from headstart.files import printable

if TYPE_CHECKING:
    from headstart.cache.entries import CacheEntry
    from headstart.cache.verify import Verified

SECONDS_OF_A_DAY = 86_400


@click.command("cache", cls=Command)
@option("--clear", is_flag=True, default_text="off", help="Remove the listed entries, even if a run is using them.")
@option(
    "--kind",
    multiple=True,
    metavar="KIND",
    default_text="auto (all)",
    help="Only entries of this kind, for example pixels; may be repeated.",
)
@option(
    "--older",
    type=click.FloatRange(0),
    metavar="DAYS",
    default_text="auto (any age)",
    help="Only entries that were not used for this many days.",
)
@option(
    "--verify",
    is_flag=True,
    default_text="off",
    help="Read the listed entries and remove damaged rows. Exit status 1 if there are any. Use it after a power cut or "
    "disk errors; training runs verify what they read in any case.",
)
@json_option()
def cache_command(clear: bool, kind: tuple[str, ...], older: float | None, verify: bool, as_json: bool) -> None:
    """List the cached results of earlier runs, last used first; verify them or remove them.

    Everything in the cache can be computed again. It is stored in $HEADSTART_CACHE, or the system's folder for caches,
    and is limited to $HEADSTART_CACHE_LIMIT GB (default 50); beyond that, entries not used for longest are removed.
    """
    import time

    from headstart.cache.budget import cache_limit
    from headstart.cache.entries import cache_entries, cache_root, clear_cache
    from headstart.cache.verify import verify_cache

    root, limit, entries = str(cache_root()), cache_limit(), cache_entries()
    before = time.time() - (older or 0) * SECONDS_OF_A_DAY
    chosen = [e for e in entries if (not kind or e.kind in kind) and (older is None or e.used <= before)]
    if verify and clear:
        raise click.UsageError("choose either --verify or --clear.")
    if verify:
        _print_verified(list(verify_cache(chosen)), as_json=as_json)
        return
    freed = clear_cache(chosen) if clear else 0
    total = sum(entry.bytes for entry in entries) - freed
    if as_json:
        listed = {"removed" if clear else "entries": [_document(entry) for entry in chosen]}
        print_json({"cache": root, "limit": limit, "bytes": total, "freed": freed} | listed)
    else:
        _print(root, limit, entries, chosen, freed if clear else None)


def _print(
    root: str, limit: int, entries: Sequence[CacheEntry], chosen: Sequence[CacheEntry], freed: int | None
) -> None:
    """Prints the entries, or the removed size (``freed`` bytes; None without --clear)."""
    from headstart.cache.entries import size_text

    if not entries:
        print(f"The cache at {printable(root)} is empty.")
        return
    if freed is not None:
        print(f"Removed {_entries_text(len(chosen))}, {size_text(freed)}.")
    elif chosen:
        rows = [
            [e.kind, e.words, f"{e.rows:,}" if e.rows else "-", size_text(e.bytes), _minute(e.used)] for e in chosen
        ]
        print_table(["kind", "content", "rows", "size", "last used"], rows)
    if not chosen:
        print(f"No entry has that kind and age. Kinds in the cache: {', '.join(sorted({e.kind for e in entries}))}.")
    total = sum(entry.bytes for entry in entries) - (freed or 0)
    print(f"The cache at {printable(root)} holds {size_text(total)}; its limit is {size_text(limit)}.")


def _print_verified(verified: list[Verified], *, as_json: bool) -> None:
    """Prints what was damaged; exit status 1 if anything was."""
    bad = [one for one in verified if not one.sound]
    if as_json:
        documents = [
            _document(one.entry)
            | {"rows": one.rows, "damaged": one.damaged, "fault": one.fault, "older version": one.old}
            for one in verified
        ]
        print_json({"verified": documents, "sound": not bad})
    else:
        for one in bad:
            what = one.fault or f"{one.damaged:,} of {one.rows:,} rows were damaged and were removed"
            print(f"{printable(str(one.entry.path))} ({one.entry.kind}, {printable(one.entry.words)}): {what}.")
        count = sum(one.rows for one in verified)
        damaged = _entries_text(len(bad)) if bad else "none"
        print(f"Verified {_entries_text(len(verified))}, {count:,} rows: {damaged} damaged.")
        if old := sum(one.old for one in verified):
            print(f"{_entries_text(old)} of an older version are not used. Remove them with headstart cache --clear.")
        if bad:
            print("Removed rows are computed again when a run needs them.")
    if bad:
        raise click.exceptions.Exit(1)


def _document(entry: CacheEntry) -> dict[str, object]:
    from datetime import UTC, datetime

    used = datetime.fromtimestamp(entry.used, UTC).isoformat(timespec="seconds")
    document = asdict(entry) | {"what": entry.words, "used": used, "path": str(entry.path)}
    return {name: value for name, value in document.items() if name != "row_bytes"}


def _entries_text(count: int) -> str:
    return f"{count:,} {'entry' if count == 1 else 'entries'}"


def _minute(seconds: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
