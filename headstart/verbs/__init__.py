"""Commands other than training, such as check, evaluate, compare, export, push and retrain; and their result types."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart.lazy import lazy_names

if TYPE_CHECKING:
    from headstart.verbs.compare import Comparison as Comparison
    from headstart.verbs.compare_models import ModelComparison as ModelComparison
    from headstart.verbs.export import Exported as Exported
    from headstart.verbs.export_table import ExportRow as ExportRow
    from headstart.verbs.export_table import ExportTable as ExportTable
    from headstart.verbs.export_table import export_all as export_all
    from headstart.verbs.gradio_space import Space as Space
    from headstart.verbs.gradio_space import space as space
    from headstart.verbs.retrain import Retrained as Retrained

_MODULES = {
    "Comparison": "headstart.verbs.compare",
    "Exported": "headstart.verbs.export",
    "ExportRow": "headstart.verbs.export_table",
    "ExportTable": "headstart.verbs.export_table",
    "export_all": "headstart.verbs.export_table",
    "ModelComparison": "headstart.verbs.compare_models",
    "Space": "headstart.verbs.gradio_space",
    "space": "headstart.verbs.gradio_space",
    "Retrained": "headstart.verbs.retrain",
}

__getattr__, __dir__, __all__ = lazy_names(__name__, _MODULES)
