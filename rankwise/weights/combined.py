"""Adapters of one base merged into one by PEFT, and what each loses by it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.loading import load_model
from rankwise.errors import ModelError
from rankwise.findings.deployment import FormWeights
from rankwise.records.deployment import DeploymentCheck, MergeMethod
from rankwise.records.folder import BASE
from rankwise.tasks.questions import Advance
from rankwise.weights.audit import Audited
from rankwise.weights.deployment import Question, num_bytes, record_of
from rankwise.weights.lowrank import read_updates
from rankwise.weights.session import Samples, ScoringSession, comparable

_TYPES: dict[MergeMethod, str] = {"linear": "linear", "ties": "ties", "dare": "dare_linear"}
# The share of each factor's entries that TIES and DARE keep.
_DENSITY = 0.5


def check_merge(
    found: Sequence[Audited],
    question: Question,
    method: MergeMethod,
    advance: Advance = lambda _: None,
) -> tuple[DeploymentCheck, ...]:
    """Score adapters alone and merged, in one pass, and compare the merged one with each.

    Args:
        found: two adapters at least, of one base and of equal rank, with other folders.
        question: what is asked.
        method: of ``add_weighted_adapter``; each adapter has the weight 1.
        advance: receives the number of tokens read or written, for base, adapters and merged one.

    Returns:
        A check for each adapter, in their order; its one form is the merged one.

    Raises:
        ModelError: the base cannot be loaded, or PEFT cannot merge them.
        RecordError: a task has fewer than two items.
        UnchangedOutputsError: an adapter with a non-zero update answers as the base does.
    """
    for each in found:
        if each.adapter is not None and each.adapter.config.get("rank_pattern"):
            raise ModelError(
                f"{each.target} has layers of different ranks (rank_pattern), and PEFT merges "
                "adapters of one rank. Merge adapters that have one."
            )
    first, name = found[0], f"{method} merge"
    with tempfile.TemporaryDirectory(prefix="rankwise-merge-") as scratch:
        folder = _combined(found, method, Path(scratch))
        adapter = AdapterFolder(folder)
        merged = first._replace(
            target=folder, adapter=adapter, updates=read_updates(adapter), warnings=()
        )
        session = ScoringSession.of(first.base, question.settings.resolved_precision, advance)
        samples: Samples = {}
        adapters = {**{f"adapter {n}": each for n, each in enumerate(found, start=1)}, name: merged}
        base, *alone = session.results(question.tasks, BASE, adapters, samples)
        *alone, together = comparable(alone)
        size = FormWeights(num_bytes(merged, with_adapter=True))
    return tuple(
        record_of(each, question, base, [own, together], samples, [size])
        for each, own in zip(found, alone, strict=True)
    )


def _combined(found: Sequence[Audited], method: MergeMethod, folder: Path) -> Path:
    """Write the merged adapter; its folder. DARE drops entries at random, by a fixed seed."""
    import peft

    names = [f"adapter_{number}" for number in range(len(found))]
    model: Any = load_model(found[0].base.folder, torch.float32)
    for name, each in zip(names, found, strict=True):
        if name == names[0]:
            model = peft.PeftModel.from_pretrained(model, str(each.target), adapter_name=name)
        else:
            model.load_adapter(str(each.target), adapter_name=name)
    kind, density = _TYPES[method], None if method == "linear" else _DENSITY
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            model.add_weighted_adapter(
                names, [1.0] * len(names), "merged", combination_type=kind, density=density
            )
        except ValueError as error:
            raise ModelError(
                f"PEFT cannot merge these adapters ({error}). It merges adapters of one rank whose "
                "target_modules are all lists or all patterns."
            ) from error
    # PEFT keeps the first adapter's setting, with which the merged one would be scaled by its root
    model.peft_config["merged"].use_rslora = False
    model.save_pretrained(str(folder), selected_adapters=["merged"])
    return folder / "merged"
