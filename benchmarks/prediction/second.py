"""Three studies of the collection's design on a second model; run again, it goes on.

    python -m benchmarks.prediction.second OUTPUT [--only NAME ...]

The model is Gemma 3 270M (``benchmarks.gemma``): not instruction-tuned, without a chat template,
with a vocabulary of 262,144 and sliding windows. Ranks 2, 8 and 64 at the collection's rates, and
full fine-tuning; two seeds.
"""

from __future__ import annotations

from typing import Any

from benchmarks.gemma import gemma_folder
from benchmarks.prediction.train import RULE, Cell, run_studies, study_of

RANKS = (2, 8, 64)
CELLS = (Cell("kinship", 160), Cell("local_overruling", 160), Cell("local_sciq", 160))


def second_study(cell: Cell, base_model: str) -> dict[str, Any]:
    """The study file of a cell."""
    study = study_of(cell)
    study["methods"]["lora"]["_"] = [
        {"rank": rank, "learning_rate": RULE.rate_of(rank)} for rank in RANKS
    ]
    return study | {"name": f"gemma-{cell.name}", "base_model": base_model}


def main() -> None:
    """Run the studies that are asked for."""
    base_model = str(gemma_folder())
    studies = {f"gemma-{cell.name}": second_study(cell, base_model) for cell in CELLS}
    for _ in run_studies(studies, __doc__):
        pass


if __name__ == "__main__":
    main()
