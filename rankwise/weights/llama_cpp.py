"""Matrices through llama.cpp's own quantiser, for formats that no Python package writes.

Its mixed formats give some matrices more bits, by their names and places. What it gets is a file
with a model's matrices under llama.cpp's names and no more, which it quantises without loading it.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankwise.errors import ModelError
from rankwise.records.files import require_room, writing

TOOL = "llama-quantize"
# what is written: float32, and at most half as much again when it is quantised
_ROOM = 1.5


def has_llama_cpp() -> bool:
    """Whether the quantiser is on the PATH."""
    return shutil.which(TOOL) is not None


def quantised(kind: str, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[Tensor, int]]:
    """Quantise all matrices of a model together.

    Args:
        kind: llama.cpp's name of the format, such as Q4_K_M.
        weights: transformers' name and (out_features, in_features) of each.

    Yields:
        Each as it is read back, in the dtype and on the device that it had, and the bytes that it
        takes.

    Raises:
        ModelError: llama.cpp has no name for a matrix, or refuses the file.
        StorageError: the disk of temporary files has no room.
    """
    import gguf

    rows: dict[str, Any] = {}
    like: dict[str, Tensor] = {}
    for name, weight in weights:
        rows[name] = np.ascontiguousarray(weight.float().cpu().numpy())
        like[name] = weight.new_empty(0)
    places = _llama_names(list(rows))
    with tempfile.TemporaryDirectory(prefix="rankwise-gguf-") as folder:
        source, target = Path(folder) / "merged.gguf", Path(folder) / "quantised.gguf"
        require_room(source, int(_ROOM * sum(each.nbytes for each in rows.values())))
        with writing(source):
            _write(source, {places[name]: each for name, each in rows.items()})
        command = [TOOL, str(source), str(target), kind]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode != 0 or not target.is_file():
            said = done.stderr.decode(errors="replace").strip().splitlines()
            reason = said[-1] if said else "no message"
            raise ModelError(
                f"{TOOL} could not make {kind}: {reason:.300}. Check its version, or choose "
                "another form."
            )
        read: dict[str, Any] = {each.name: each for each in gguf.GGUFReader(target).tensors}
        for name in rows:
            tensor = read[places[name]]
            weight = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
            yield torch.from_numpy(weight).to(like[name]), int(tensor.n_bytes)


def _llama_names(names: Sequence[str]) -> dict[str, str]:
    """Transformers' name -> llama.cpp's, for matrices that are named as a llama's are."""
    import gguf

    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, _num_blocks(names))
    found = {name: table.get_name(name, try_suffixes=(".weight",)) for name in names}
    for name, place in found.items():
        if place is None:
            raise ModelError(
                f"llama.cpp's own formats need matrices that are named as a llama's are, and there "
                f"is {name}. Choose gguf:q8_0 or another form that needs no {TOOL}."
            )
    return {name: str(place) for name, place in found.items()}


def _num_blocks(names: Iterable[str]) -> int:
    numbers = [int(part) for name in names for part in name.split(".") if part.isdigit()]
    return max(numbers, default=-1) + 1


def _write(path: Path, rows: dict[str, Any]) -> None:
    """A file with what the quantiser asks for: layers, and heads that share keys and values."""
    import gguf

    query, key = rows.get("blk.0.attn_q.weight"), rows.get("blk.0.attn_k.weight")
    num_groups = 1 if query is None or key is None else len(query) // len(key)
    width = next(iter(rows.values())).shape[-1]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(_num_blocks(rows))
    writer.add_context_length(1)
    writer.add_embedding_length(width if query is None else query.shape[-1])
    writer.add_feed_forward_length(width)
    writer.add_head_count(num_groups)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(1)
    for name, each in rows.items():
        writer.add_tensor(name, each)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
