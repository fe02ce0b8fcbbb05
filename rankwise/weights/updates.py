"""An adapter's updates by layer, read from PEFT's folder and written to it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rankwise.engine.models.adapter_folder import (
    read_adapter_config,
    read_factors,
    write_factors,
)
from rankwise.errors import ModelError
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
    factors = {
        name: (update.lora_A.float(), (update.scaling * update.lora_B.double()).float())
        for name, update in updates.items()
    }
    write_factors(folder, factors, json.dumps(config, indent=2, sort_keys=True) + "\n")
