"""Report of a data check: a self-contained HTML file with the findings and their images."""

from __future__ import annotations

from headstart.data.inspection import Inspection
from headstart.reports.contact_sheets import make_sheets
from headstart.reports.finding_galleries import finding_galleries, gallery_paths
from headstart.reports.report_page import render


def render_check(look: Inspection) -> str:
    """Renders the findings of a data check as an HTML page.

    Args:
        look: result of the data check.
    """
    galleries = finding_galleries(look.findings, look.dataset.base)
    return render(
        "check.html",
        make_sheets(gallery_paths(galleries)),
        look.dataset.base,
        name=look.dataset.name,
        num_usable=int(look.scanned.usable.sum()),
        num_images=len(look.dataset),
        num_serious=sum(finding.severity == "serious" for finding in look.findings),
        sizes=look.split.sizes,
        split_origin=look.split.origin,
        galleries=galleries,
    )
