"""Spectra as a script would take them: ``torch.linalg.svd`` of every matrix.

The base is decomposed once for all runs, what a run made of it and its update once for each run,
all in float32 on all cores. What is then said of the vectors is what a study says, by the same
definitions (``rankwise.weights.spectra``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from rankwise.records.spectra import EPSILONS, LEADING
from rankwise.records.study import PlannedRun
from rankwise.weights import spectra
from rankwise.weights.spectra import Svd

PREFIX = "base_model.model."


def analyse(
    model_folder: Path, runs: Mapping[PlannedRun, Path], top_k: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """What every run did to every matrix that the adapters adapt.

    Args:
        model_folder: of the base.
        runs: the folder of the weights of each.
        top_k: leading singular vectors that are compared.
        device: on which matrices are decomposed.

    Returns:
        Run -> matrix -> ``change``, ``update`` and ``full_overlap``.
    """
    adapters = {run: _factors(folder) for run, folder in runs.items() if run.method == "lora"}
    layers = list(dict.fromkeys(name for each in adapters.values() for name in each))
    base = _matrices(model_folder, layers)
    full = {run: _matrices(folder, layers) for run, folder in runs.items() if run.method == "full"}
    found: dict[str, dict[str, Any]] = {run.name: {} for run in runs}
    for layer in layers:
        weight = base[layer].to(device)
        before, of_full = _svd(weight), None
        for run, matrices in full.items():
            delta = matrices[layer].to(device) - weight
            of_full = _svd(delta)
            found[run.name][layer] = _described(before, weight, delta, of_full, None, top_k)
        for run, factors in adapters.items():
            delta = factors[layer].to(device)
            update = _svd(delta)
            said = _described(before, weight, delta, update, run.rank, top_k)
            found[run.name][layer] = said | {"full_overlap": _overlap(update, of_full, run.rank)}
    return found


def _svd(matrix: Tensor) -> Svd:
    return Svd(*torch.linalg.svd(matrix, full_matrices=False))


def _matrices(folder: Path, layers: Sequence[str]) -> dict[str, Tensor]:
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    return {name: model.get_submodule(name).weight.detach() for name in layers}


def _factors(folder: Path) -> dict[str, Tensor]:
    """The update of each layer, multiplied out."""
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "adapter_model.safetensors")
    scaling = settings["lora_alpha"] / settings["r"]
    return {
        name.removeprefix(PREFIX).removesuffix(".lora_A.weight"): scaling
        * (tensors[name.replace("lora_A", "lora_B")].float() @ A.float())
        for name, A in tensors.items()
        if name.endswith("lora_A.weight")
    }


def _described(
    before: Svd, weight: Tensor, delta: Tensor, update: Svd, rank: int | None, top_k: int
) -> dict[str, Any]:
    """How far the leading vectors and values have moved, and the size of the update."""
    after = _svd(weight + delta)
    k = min(top_k, len(before.S))
    leading = list(dict.fromkeys(min(n, k) for n in (*LEADING, k) if n <= top_k))
    left = spectra.cosines(before.U, after.U[:, :k])
    right = spectra.cosines(before.Vh.T, after.Vh[:k].T)
    best, shift = spectra.best_matched(left), (after.S[:k] - before.S[:k]) / before.S[0]
    S = update.S if rank is None else update.S[:rank]
    return {
        "left": _side(left, leading),
        "right": _side(right, leading),
        "value_shift": [float(shift[:n].mean()) for n in leading],
        "intruders": [
            [len(spectra.intruder_indices(best, n, epsilon)) for epsilon in EPSILONS]
            for n in leading
        ],
        "update": {
            "frobenius_norm": float(S.norm()),
            "spectral_norm": float(S[0]),
            "stable_rank": spectra.stable_rank(S),
            "effective_rank": spectra.effective_rank(S),
            "energy_rank_90": spectra.energy_rank(S, 0.9),
            "energy_rank_99": spectra.energy_rank(S, 0.99),
        },
    }


def _side(cosines: Tensor, leading: Sequence[int]) -> dict[str, list[float]]:
    index, best = spectra.index_matched(cosines), spectra.best_matched(cosines)
    return {
        "index_matched": [float(index[:n].mean()) for n in leading],
        "best_matched": [float(best[:n].mean()) for n in leading],
        "overlap": [spectra.subspace_overlap(cosines, n) for n in leading],
    }


def _overlap(update: Svd, full: Svd | None, rank: int | None) -> dict[str, float] | None:
    """Of the update's directions with as many leading ones of full fine-tuning's."""
    if full is None or rank is None:
        return None
    count = min(rank, len(full.S))
    left = spectra.cosines(full.U[:, :count], update.U[:, :count])
    right = spectra.cosines(full.Vh[:count].T, update.Vh[:count].T)
    return {
        "left": spectra.subspace_overlap(left, count),
        "right": spectra.subspace_overlap(right, count),
    }
