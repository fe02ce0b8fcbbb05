"""What ``--model_args`` may say of our lm-eval model, and what it comes to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

from rankwise.engine.models.devices import ResolvedPrecision, choose_device, resolve_precision
from rankwise.errors import ConfigError
from rankwise.records.config import Engine

BASE_NAME = "base"
_NAME = re.compile(r"[\w.-]+")
_PRECISIONS = ("auto", "float32", "bfloat16")
_KNOWN = (
    "pretrained",
    "revision",
    "adapters",
    "peft",
    "dtype",
    "device",
    "engine",
    "max_batch_tokens",
    "max_length",
)


class ModelArguments(NamedTuple):
    """Checked arguments of our lm-eval model.

    Attributes:
        pretrained: an embedded model's name, a folder, or a hub repository.
        revision: of a hub repository.
        adapters: name and PEFT folder of each, in the order given.
        answering: which of them answers; None is the base.
        precision: of the weights, and of what is computed with them.
        device: in torch's words.
        engine: what holds the models.
        max_batch_tokens: tokens in one forward pass; None leaves it to the engine.
        max_length: context in tokens; None takes the model's own.
    """

    pretrained: str
    revision: str | None
    adapters: tuple[tuple[str, Path], ...]
    answering: str | None
    precision: ResolvedPrecision
    device: str
    engine: Engine
    max_batch_tokens: int | None
    max_length: int | None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the adapters."""
        return tuple(name for name, _ in self.adapters)


def parse_model_arguments(given: Mapping[str, Any]) -> ModelArguments:
    """Check what lm-eval read from ``--model_args``, a YAML file or a dictionary.

    ``adapters`` is ``NAME=FOLDER;NAME=FOLDER`` (a folder without a name is called by its last
    part), a list of such parts, or a mapping of names to folders. ``peft`` is the name of one of
    them, or, without ``adapters``, the folder of the only one, as with lm-eval's ``hf`` model.

    Raises:
        ConfigError: with every problem found.
    """
    problems = [
        f"{name}: there is no such argument; there are {', '.join(_KNOWN)}"
        for name in given
        if name not in _KNOWN
    ]
    pretrained = given.get("pretrained")
    if not isinstance(pretrained, str) or not pretrained:
        problems.append("pretrained: say which base model, by name, folder or hub repository")
    adapters = _adapters(given.get("adapters"), problems)
    answering = given.get("peft")
    if answering is not None and not adapters:
        adapters = _adapters(answering, problems)
        answering = adapters[0][0] if adapters else None
    names = [name for name, _ in adapters]
    if answering is not None and answering not in names:
        problems.append(f"peft: {answering!r} is none of the adapters {', '.join(names)}")
    device = _device(given.get("device"), problems)
    dtype = str(given.get("dtype", "auto")).removeprefix("torch.")
    if dtype not in _PRECISIONS:
        problems.append(f"dtype: {dtype!r} is none of {', '.join(_PRECISIONS)}")
    engine = given.get("engine", "resident")
    if engine not in get_args(Engine):
        problems.append(f"engine: {engine!r} is none of {', '.join(get_args(Engine))}")
    counts = {name: _count(name, given, problems) for name in ("max_batch_tokens", "max_length")}
    if problems:
        raise ConfigError("--model_args", problems)
    revision = given.get("revision")
    return ModelArguments(
        pretrained=str(pretrained),
        revision=None if revision is None else str(revision),
        adapters=adapters,
        answering=answering,
        precision=resolve_precision(dtype, torch.device(device)),  # pyright: ignore[reportArgumentType]
        device=device,
        engine=engine,
        **counts,
    )


def _adapters(given: Any, problems: list[str]) -> tuple[tuple[str, Path], ...]:
    """Names and folders; a folder need not be there yet, the engine says if it is not."""
    if given is None or given == "":
        return ()
    if isinstance(given, Mapping):
        pairs = [(str(name), str(folder)) for name, folder in given.items()]
    else:
        parts = given if isinstance(given, list | tuple) else str(given).split(";")
        pairs = [_pair(str(part).strip()) for part in parts if str(part).strip()]
    names = [name for name, _ in pairs]
    for name, folder in pairs:
        if not _NAME.fullmatch(name) or name == BASE_NAME:
            problems.append(
                f"adapters: {name!r} cannot be an adapter's name; take letters, digits, '.', '-' "
                f"and '_', and another word than {BASE_NAME!r}, as in NAME={folder}"
            )
        if not folder:
            problems.append(f"adapters: {name!r} has no folder; write NAME=FOLDER;NAME=FOLDER")
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"adapters: {name!r} is there twice; write NAME=FOLDER;NAME=FOLDER")
    return tuple((name, Path(folder).expanduser()) for name, folder in pairs)


def _pair(part: str) -> tuple[str, str]:
    name, equals, folder = part.partition("=")
    return (name.strip(), folder.strip()) if equals else (Path(part).name, part)


def _device(given: Any, problems: list[str]) -> str:
    if given in (None, "auto"):
        return str(choose_device())
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError):
        problems.append(f"device: {given!r} is none of auto, cpu, cuda, cuda:0 ...")
        return "cpu"
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        problems.append(f"device: {given!r} is not on this machine; leave it out, or take cpu")
        return "cpu"
    if device.type not in ("cpu", "cuda"):
        problems.append(f"device: {given!r} is not supported; there are cpu and cuda")
    return str(device)


def _count(name: str, given: Mapping[str, Any], problems: list[str]) -> int | None:
    value = given.get(name)
    if value is not None and (not isinstance(value, int) or value < 1):
        problems.append(f"{name}: {value!r} is not a positive whole number")
    return value
