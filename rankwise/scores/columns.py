"""Which column of a table of scores is what: recognised by its name, or as a user says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rankwise.errors import DataError, did_you_mean
from rankwise.records import quantities

NAMES: Mapping[str, tuple[str, ...]] = {
    "item": (
        "item", "item_id", "id", "doc_id", "question_id", "example_id", "sample_id", "instance_id",
        "idx", "index", "qid", "uid",
    ),
    "score": (
        "score", "acc", "accuracy", "correct", "is_correct", "all_correct", "exact_match", "em",
        "pass", "passed", "pass@1", "p_right", "acc_norm", "f1", "rouge", "bleu", "reward",
        "rating", "loss", "nll", "loss_nats", "value",
    ),
    "model": ("model", "model_name", "run", "run_name", "adapter", "checkpoint", "system"),
    "task": ("task", "task_name", "dataset", "benchmark", "eval"),
    "seed": ("seed",),
    "rank": ("rank", "lora_rank", "r"),
    "alpha": ("alpha", "lora_alpha"),
    "learning_rate": ("learning_rate", "lr"),
    "modules": ("modules", "target_modules", "lora_target_modules"),
    "epochs": ("epochs", "num_epochs", "num_train_epochs"),
    "prompt": ("prompt", "input", "question", "instruction"),
    "target": ("target", "reference", "expected", "gold", "label"),
    "answer": ("response", "output", "prediction", "completion", "answer", "generated"),
}  # fmt: skip
"""The names by which a column is recognised, in any case; earlier ones go first."""

_ONE_OF_SEVERAL: tuple[str, ...] = ("score", "model")
"""Roles of which several candidates are refused: a wrong guess would be a wrong verdict."""


def find_columns(source: str, names: Sequence[str], said: Mapping[str, str]) -> dict[str, str]:
    """Role -> column of a table, for the roles that it has.

    Args:
        source: the table's name, for errors.
        names: its columns.
        said: what a user says.

    Raises:
        DataError: a column that is said is not there, or several may be the score or the model.
    """
    there = f"it has {quantities.listed(list(names)) or 'no columns'}"
    found: dict[str, str] = {}
    for role, column in said.items():
        if column not in names:
            hint = did_you_mean(column, names)
            raise DataError(
                f"{source} has no column {column!r}; {f'{hint} ' if hint else ''}{there}."
            )
        found[role] = column
    taken = {*found.values()}
    for role, known in NAMES.items():
        if role in found:
            continue
        place = {name.lower(): name for name in names if name not in taken}
        by_end = {name.lower().rpartition(".")[2]: name for name in names if name not in taken}
        candidates = [place[name] for name in known if name in place]
        candidates = candidates or [by_end[name] for name in known if name in by_end]
        if len(candidates) > 1 and role in _ONE_OF_SEVERAL:
            raise DataError(
                f"{source}: {quantities.listed(candidates)} may be the {role}; say which: "
                f"--{role} {candidates[0]}."
            )
        if candidates:
            found[role] = candidates[0]
            taken.add(candidates[0])
    for role in ("item", "score"):
        if role not in found:
            raise DataError(
                f"{source}: no column is recognised as the {role}; say which: --{role} COLUMN; "
                f"{there}."
            )
    return found
