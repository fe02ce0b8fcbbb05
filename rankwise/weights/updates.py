"""An adapter's updates by layer, read from PEFT's folder and written to it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from rankwise.engine.models.adapter_files import (
    CONFIG_FILE,
    PREFIX,
    WEIGHTS_FILE,
    read_adapter_config,
    read_factors,
)
from rankwise.errors import ModelError
from rankwise.records.folder import write_atomically, writing
from rankwise.weights.lowrank import LowRankUpdate


def read_updates(folder: Path) -> dict[str, LowRankUpdate]:
    """The update of every adapted layer.

    Raises:
        ModelError: as ``read_factors``, or a weight is NaN or infinite.
    """
    updates: dict[str, LowRankUpdate] = {}
    for name, (A, B, scaling) in read_factors(folder).items():
        try:
            updates[name] = LowRankUpdate(A, B, scaling)
        except ValueError as error:
            raise ModelError(f"the adapter in {folder}: {name}: {error} Train it again.") from error
    return updates


def save_updates(updates: Mapping[str, LowRankUpdate], folder: Path, *, source: Path) -> None:
    """Write other updates of the layers that an adapter adapts; its config is kept otherwise.

    Ranks may differ from layer to layer: PEFT finds them by patterns that name whole layers.
    Scalings become 1, factors float32.

    Args:
        updates: by layer, all of the adapter's.
        folder: is created; not that of the adapter.
        source: the adapter that was changed.

    Raises:
        ModelError: the adapter cannot be read.
        StorageError: the folder cannot be written.
    """
    ranks = {name: update.rank for name, update in updates.items()}
    most = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != most}
    config = read_adapter_config(source) | {
        "r": most,
        "lora_alpha": most,
        "rank_pattern": others,
        "alpha_pattern": others,
        "use_rslora": False,
        "init_lora_weights": True,
        "eva_config": None,
        "inference_mode": True,
    }
    tensors: dict[str, Tensor] = {}
    for name, update in updates.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = update.lora_A.float().contiguous()
        scaled = update.scaling * update.lora_B.double()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = scaled.float().contiguous()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    write_atomically(folder / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True) + "\n")
