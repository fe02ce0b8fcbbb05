"""From the folders of finished studies to records of figures and outcomes.

    python -m benchmarks.prediction.collect DIR ... [--measure] [--to FOLDER]

Kept are settings, scores with their errors, and the score of every item: no weights and no texts.
``--measure`` adds what can be measured before training, about a minute for a small base. A study
that was collected before, and was extended since, takes its own place.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.prediction.collecting import collected_studies
from benchmarks.prediction.collection import SHIPPED, add_study
from benchmarks.prediction.untrained import measure_features
from rankwise.records.folder import StudyFolder


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a record for each trained task of each study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directories", metavar="DIR", nargs="+", type=Path)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--to", type=Path, default=SHIPPED)
    asked = parser.parse_args(arguments)
    for directory in asked.directories:
        folder = StudyFolder(directory)
        for study in collected_studies(folder):
            if asked.measure:
                study = study.with_features(measure_features(folder.read_study().config))
            print(add_study(asked.to, study))


if __name__ == "__main__":
    main()
