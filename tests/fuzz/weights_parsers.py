"""What reads files of adapters, models, states and caches, and strategies that break such files.

``PARSERS``: name → (strategy, function). For whatever the strategy makes, the function returns, or
raises a ``RankwiseError``. The GGUF file of the embedded model is not among them: only bytes of the
digest in the source code are parsed (tests/engine/models/test_embedded.py).
"""

from __future__ import annotations

import functools
import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors.torch
import torch
from hypothesis import strategies as st

from rankwise.engine.models.adapter_config import (
    CONFIG_FILE,
    layer_settings,
    read_adapter_config,
    refuse_beyond_lora,
)
from rankwise.engine.models.adapter_folder import WEIGHTS_FILE, AdapterFolder
from rankwise.engine.models.base_folder import BaseModel
from rankwise.engine.models.embedded import DIGESTS_FILE, is_as_written, write_digests
from rankwise.engine.models.files import not_finite
from rankwise.engine.models.loading import is_stored_quantised
from rankwise.engine.models.structure import (
    adaptable_shapes,
    model_skeleton,
    refuse_other_architecture,
)
from rankwise.engine.training.states import read_state
from rankwise.weights import decomposition
from rankwise.weights.decomposition import SpectralCache
from rankwise.weights.lowrank import read_updates
from tests.support.tiny_models import tiny

Parser = tuple[st.SearchStrategy[Any], Callable[[Any], object]]

NAMES = [
    f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{side}.weight"
    for layer in (0, 1)
    for side in "AB"
]
NUMBERS = st.one_of(
    st.integers(-2, 70),
    st.sampled_from([10**9, 2**63, 10**400, -(10**30)]),
    st.floats(),
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def document(known: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """A good JSON object with a few entries of anything, or text that need not be JSON."""
    changes = st.dictionaries(
        st.sampled_from(sorted(known)) | st.text(max_size=6), JSON, max_size=3
    )
    gone = st.lists(st.sampled_from(sorted(known)), max_size=2)
    objects = st.builds(
        lambda new, without: {
            key: value for key, value in (known | new).items() if key not in without
        },
        changes,
        gone,
    )
    texts = (objects | JSON).map(lambda content: json.dumps(content).encode())
    return st.one_of(texts, texts.flatmap(mutated), st.binary(max_size=40))


def mutated(content: bytes) -> st.SearchStrategy[bytes]:
    """The content with a few bytes replaced, and cut."""
    edits = st.lists(
        st.tuples(st.integers(0, max(len(content) - 1, 0)), st.integers(0, 255)), max_size=6
    )

    def edited(places: list[tuple[int, int]], end: int) -> bytes:
        changed = bytearray(content)
        for place, value in places:
            changed[place : place + 1] = bytes([value])
        return bytes(changed[:end])

    lengths = st.just(len(content)) | st.integers(0, len(content))
    return st.builds(edited, edits, lengths)


@st.composite
def weights_file(draw: st.DrawFn) -> bytes:
    """A safetensors file whose header may claim anything of the few bytes behind it."""
    entries: dict[str, Any] = {}
    names = st.sampled_from(NAMES) | st.text(max_size=12)
    sizes = st.integers(0, 50) | st.sampled_from([-1, 2**31, 2**62])
    for name in draw(st.lists(names, max_size=4)):
        shape = draw(st.lists(sizes, max_size=3))
        start = draw(st.integers(0, 64))
        end = draw(st.just(start + 16) | sizes)
        dtype = draw(st.sampled_from(["F32", "BF16", "F8_E4M3", "I64", "BOOL", "F99"]))
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    length = draw(st.just(len(text)) | st.integers(0, 2**64 - 1))
    return struct.pack("<Q", length) + text + draw(st.binary(max_size=64))


CONFIG = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
    "rank_pattern": {},
    "alpha_pattern": {},
    "base_model_name_or_path": "tiny",
    **dict.fromkeys(("use_rslora", "layers_to_transform", "layers_pattern", "modules_to_save")),
    **dict.fromkeys(("exclude_modules", "init_lora_weights", "fan_in_fan_out")),
    "bias": "none",
}


@functools.cache
def folder() -> Path:
    """A folder that lives as long as the process."""
    keep = tempfile.TemporaryDirectory()
    _kept.append(keep)
    return Path(keep.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def base() -> Any:
    return tiny("Llama")


@functools.cache
def factors() -> bytes:
    """The weights of an adapter of the base."""
    shapes = {"A": (2, 32), "B": (32, 2)}
    return safetensors.torch.save(
        {name: torch.ones(shapes[name[-len("A.weight")]]) for name in NAMES}
    )


def use_adapter() -> None:
    """What a study and an audit do with an adapter before they compute with it."""
    adapter = AdapterFolder(folder())
    adapter.refuse_other_base(BaseModel("tiny", folder(), "x"), remedy="")
    adapter.check_fit(base())
    adapter.layers_without_factors(adaptable_shapes(base()))
    assert adapter.has_update in (True, False)
    not_finite([adapter.weights])
    for update in read_updates(adapter).values():
        assert update.frobenius_norm < float("inf")


def adapter_config(content: bytes) -> None:
    (folder() / CONFIG_FILE).write_bytes(content)
    (folder() / WEIGHTS_FILE).write_bytes(factors())
    config = read_adapter_config(folder())
    refuse_beyond_lora(config, folder())
    for setting in layer_settings(config, ["model.layers.0.self_attn.q_proj"], folder()).values():
        assert setting.rank >= 1
        assert 0 < setting.scaling < float("inf")
    use_adapter()


def adapter_weights(content: bytes) -> None:
    (folder() / CONFIG_FILE).write_text(json.dumps(CONFIG))
    (folder() / WEIGHTS_FILE).write_bytes(content)
    use_adapter()


def model_config(content: bytes) -> None:
    """What a study does with a checkpoint's config."""
    (folder() / "config.json").write_bytes(content)
    refuse_other_architecture(folder(), base().config)
    is_stored_quantised(folder())


def base_config(content: bytes) -> None:
    (folder() / "config.json").write_bytes(content)
    model_skeleton(folder())


def training_state(content: bytes) -> None:
    path = folder() / "training.pt"
    path.write_bytes(content)
    read_state(path)


@functools.cache
def state() -> bytes:
    path = folder() / "good.pt"
    torch.save({"run": "x", "weights": [torch.ones(9)]}, path)
    return path.read_bytes()


def digests(content: bytes) -> None:
    place = folder() / "digests"
    place.mkdir(exist_ok=True)
    (place / "file").write_bytes(b"content")
    (place / DIGESTS_FILE).write_bytes(content)
    is_as_written(place)


@functools.cache
def listed() -> bytes:
    place = folder() / "listed"
    place.mkdir()
    (place / "file").write_bytes(b"content")
    write_digests(place)
    return (place / DIGESTS_FILE).read_bytes()


@functools.cache
def decomposed() -> tuple[torch.Tensor, Any, Path, bytes]:
    weight = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    cache = SpectralCache(folder() / "svd")
    with mock.patch.object(decomposition, "free_bytes", return_value=10**12):  # on a full disk too
        svd = cache.svd(weight)
    (path,) = cache.folder.iterdir()
    return weight, svd, path, path.read_bytes()


def kept_svd(content: bytes) -> None:
    """Whatever is kept, the decomposition is that of the weight."""
    weight, expected, path, _ = decomposed()
    path.write_bytes(content)
    found = SpectralCache(path.parent).svd(weight)
    assert torch.equal(found.S, expected.S)
    assert torch.equal(found.U, expected.U)


MODEL_CONFIG = json.loads(json.dumps(base().config.to_dict(), default=str))
# A model with few small layers, of which entries that make more modules are left as they are.
FEW_LAYERS = {
    key: value
    for key, value in MODEL_CONFIG.items()
    if key not in ("num_hidden_layers", "layer_types")
}

PARSERS: dict[str, Parser] = {
    "adapter_config.json": (document(CONFIG), adapter_config),
    "adapter_model.safetensors": (
        st.one_of(weights_file(), st.deferred(lambda: mutated(factors()))),
        adapter_weights,
    ),
    "config.json of a checkpoint": (document(MODEL_CONFIG), model_config),
    "config.json of a base": (document(FEW_LAYERS | {"num_hidden_layers": 2}), base_config),
    "training.pt": (st.deferred(lambda: mutated(state())), training_state),
    "digests.json": (
        st.one_of(document(json.loads(listed())), st.deferred(lambda: mutated(listed()))),
        digests,
    ),
    "a kept decomposition": (st.deferred(lambda: mutated(decomposed()[3])), kept_svd),
}
