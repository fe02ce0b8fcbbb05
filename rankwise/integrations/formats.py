"""All formats in which a study is exported, as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from rankwise.errors import ConfigError, did_you_mean
from rankwise.integrations import tables
from rankwise.integrations.exports import Exported, export_runs, write_card, write_setup
from rankwise.integrations.lm_eval_files import export_lm_eval
from rankwise.integrations.sharing import shared_outcome
from rankwise.integrations.sources import TOOLS
from rankwise.integrations.study_files import study_files
from rankwise.records.folder import StudyFolder
from rankwise.records.outputs import output_folder
from rankwise.report.cells import csv_text

TABLES: Mapping[str, Callable[[StudyFolder, Path], list[Exported]]] = {
    "csv": partial(tables.export_tables, suffix="csv", encode=csv_text),
    "parquet": partial(tables.export_tables, suffix="parquet", encode=tables.parquet_bytes),
    "markdown": partial(tables.export_paper, file="results.md", write=tables.markdown),
    "latex": partial(tables.export_paper, file="results.tex", write=tables.latex),
    "figures": tables.export_figures,
}
"""Tables and figures of a whole study, also of models that were trained and scored elsewhere."""

OF_STUDY: Mapping[str, Callable[[StudyFolder, Path], list[Exported]]] = {
    "lm-eval": export_lm_eval,
    **TABLES,
}
"""What is written of a whole study."""

OF_RUN: Mapping[str, Callable[[StudyFolder, Path, str | None, Path], list[Exported]]] = {
    "model-card": partial(export_runs, write=write_card, read=shared_outcome),
    **{tool.name: partial(export_runs, write=partial(write_setup, tool=tool)) for tool in TOOLS},
}
"""What is written of the chosen run of every trained task: recommended, the best bet, or named."""


def export_study(
    folder: StudyFolder,
    kind: str,
    output: Path | None = None,
    run: str | None = None,
    *,
    overwrite: bool = False,
) -> list[Exported]:
    """Write a study, or what it recommends, in a format.

    Args:
        folder: a finished study's.
        kind: the name of the format.
        output: the folder to write into; None takes ``export/<kind>`` in the study's.
        run: a run, as ``find_run`` takes it, for formats of one; None: recommended or best bet.
        overwrite: replace files there that rankwise did not write.

    Raises:
        ConfigError: there is no such format or run, files that rankwise did not write are in the
            way, or no option is a bet worth taking.
        RecordError: the study is not finished, or a record cannot be read.
        StorageError: a file cannot be written. Then, as with every error, nothing is left.
    """
    if kind not in (*OF_STUDY, *OF_RUN):
        known = (*OF_STUDY, *OF_RUN)
        hint = did_you_mean(kind, known) or f"there is {', '.join(known)}"
        raise ConfigError("export", [f"no format named {kind!r}; {hint}"])
    if run is not None and kind in OF_STUDY:
        problem = f"--run is for formats of one run; {kind} has every run, so leave it out"
        raise ConfigError("export", [problem])
    study = folder.read_study()
    if study.scores is not None and kind not in TABLES:
        problem = (
            f"{kind}: the models were trained and scored elsewhere; there is {', '.join(TABLES)}"
        )
        raise ConfigError("export", [problem])
    study_files(folder, study)  # refuses links before anything is read
    target, final = output or folder.root, output or folder.export_folder(kind)
    with output_folder(target, overwrite=overwrite) as temporary:
        place = temporary / final.relative_to(target)
        if kind in OF_STUDY:
            written = OF_STUDY[kind](folder, place)
        else:
            written = OF_RUN[kind](folder, place, run, final)
    return [each.moved(place, final) for each in written]
