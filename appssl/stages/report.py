"""Stage report: one self-contained page for a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appssl.artifact import Artifact, ArtifactWriter
from appssl.ops.journal import Journal
from appssl.plan import StageConfig
from appssl.reports.page import write_page
from appssl.stages.frame import Inputs, run_stage


def report(config: StageConfig, data_dir: Path, stage_dirs: Mapping[str, Path], out: Path) -> Artifact:
    """Writes `report.html` from the finished stages of a run, and `times.html` beside it.

    Args:
        stage_dirs: stage name -> folder, of the same run as `out`.
    """

    def work(inputs: Inputs, writer: ArtifactWriter, journal: Journal) -> dict[str, Any]:
        write_page(out.parent, data_dir, writer, max_quarantine_rows=config.settings.max_quarantine_rows)
        journal.figure(out / "report.html")
        return {}

    return run_stage(config, out, {"data": data_dir, **stage_dirs}, work, method="page")
