"""Samples files whose verdicts were written down before tables were read; always the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.planted.samples import hashed, line, write

MODELS = ("base", "near", "better", "worse")


def right_and_wrong(folder: Path) -> list[Path]:
    """300 items that are right or wrong."""
    rng = np.random.default_rng(1)
    difficulty = rng.uniform(0, 1, 300)
    paths: list[Path] = []
    for name, share in zip(MODELS, (0.5, 0.51, 0.6, 0.42), strict=True):
        values = (difficulty + rng.normal(0, 0.08, 300) < share).astype(int).tolist()
        lines = [line(place, acc=value) for place, value in enumerate(values)]
        paths.append(write(folder / f"{name}.jsonl", lines))
    return paths


def options(folder: Path) -> list[Path]:
    """120 items of three options with log-likelihoods, the first right."""
    rng = np.random.default_rng(2)
    shared = rng.normal(0.3, 1.5, 120)
    paths: list[Path] = []
    for name, more in zip(MODELS, (0.0, 0.05, 0.7, -0.6), strict=True):
        ahead = (shared + rng.normal(more, 0.4, 120)).round(3).tolist()
        lines = [_with_options(place, nats) for place, nats in enumerate(ahead)]
        paths.append(write(folder / f"{name}.jsonl", lines))
    return paths


def _with_options(place: int, ahead: float) -> dict[str, Any]:
    asked = {
        f"gen_args_{option}": {"arg_0": f"question {place}", "arg_1": f" {text}"}
        for option, text in enumerate(("yes", "no", "perhaps"))
    }
    nats = (ahead - 3.0, -3.0, -4.5)
    return line(place, acc=float(ahead >= 0.0)) | {
        "target": "0",
        "target_hash": hashed("0"),
        "arguments": asked,
        "resps": [[[str(value), "False"]] for value in nats],
    }


def passages(folder: Path) -> list[Path]:
    """40 passages of six questions each, with shares as scores."""
    rng = np.random.default_rng(3)
    of_passage, own = rng.uniform(0.2, 0.8, 40).repeat(6), rng.normal(0, 0.1, 240)
    paths: list[Path] = []
    for name, more in zip(MODELS, (0.0, 0.01, 0.06, -0.05), strict=True):
        moved = rng.normal(more, 0.05, 40).repeat(6)
        values = (of_passage + own + moved + rng.normal(0, 0.02, 240)).clip(0, 1).round(4)
        lines = [
            line(place, f1=value)
            | {
                "doc": {"passage": f"p{place // 6}", "question": f"q{place}"},
                "doc_hash": f"{place}",
            }
            for place, value in enumerate(values.tolist())
        ]
        paths.append(write(folder / f"{name}.jsonl", lines))
    return paths


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "right and wrong": (right_and_wrong, {}),
    "right and wrong, at 80 %": (right_and_wrong, {"confidence": 0.8}),
    "options": (options, {}),
    "options, accuracy": (options, {"metric": "acc"}),
    "passages": (passages, {}),
    "passages, in clusters": (passages, {"cluster": "passage"}),
}
