"""Settings of the command's process."""

from __future__ import annotations

import gc
import warnings

import pytest

from headstart.cli.process_settings import importing, quiet_libraries


def test_the_garbage_collector_is_on_again_after_imports_and_after_an_error() -> None:
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()


def test_warnings_are_silenced_and_filters_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"HF_HUB_VERBOSITY": "debug"}
    monkeypatch.setattr("headstart.cli.process_settings.os.environ", environment)
    with warnings.catch_warnings(record=True) as seen:
        quiet_libraries()
        warnings.warn("unread", stacklevel=1)
    assert seen == []
    assert environment["HF_HUB_VERBOSITY"] == "debug"
    assert environment["HF_HUB_DISABLE_TELEMETRY"] == "1"
