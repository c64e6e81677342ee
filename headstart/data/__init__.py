"""Data: images and labels from a folder or a table; decoding, duplicates, splits and findings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart.lazy import lazy_names

if TYPE_CHECKING:
    from headstart.data.dataset import Dataset as Dataset
    from headstart.data.dataset import open_data as open_data
    from headstart.data.dataset import open_folder as open_folder
    from headstart.data.dataset import open_table as open_table
    from headstart.data.duplicates import DuplicatePair as DuplicatePair
    from headstart.data.finding import Finding as Finding
    from headstart.data.inspection import Inspection as Inspection
    from headstart.data.inspection import inspect as inspect
    from headstart.data.preprocessing import Preprocessing as Preprocessing
    from headstart.data.scan import Scan as Scan
    from headstart.data.splits import Split as Split
    from headstart.data.splits import SplitShares as SplitShares
    from headstart.data.table_columns import Columns as Columns

_MODULES = {
    "Columns": "headstart.data.table_columns",
    "Dataset": "headstart.data.dataset",
    "DuplicatePair": "headstart.data.duplicates",
    "Finding": "headstart.data.finding",
    "Inspection": "headstart.data.inspection",
    "Preprocessing": "headstart.data.preprocessing",
    "Scan": "headstart.data.scan",
    "Split": "headstart.data.splits",
    "SplitShares": "headstart.data.splits",
    "inspect": "headstart.data.inspection",
    "open_data": "headstart.data.dataset",
    "open_folder": "headstart.data.dataset",
    "open_table": "headstart.data.dataset",
}

__getattr__, __dir__, __all__ = lazy_names(__name__, _MODULES)
