"""What ``--model_args`` of our lm-eval model accepts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rankwise.engine.models.devices import ResolvedPrecision, choose_device, resolve_precision
from rankwise.records.fields import Count
from rankwise.records.study_file import validated

BASE_NAME = "base"
_NAME = re.compile(r"[\w.-]+")
_SPELLING = "write NAME=FOLDER;NAME=FOLDER"


def _pairs(given: Any) -> list[tuple[str, str]]:
    """Names and folders from any spelling; a folder without a name is named by its last part."""
    if isinstance(given, Mapping):
        return [(str(name), str(folder)) for name, folder in given.items()]
    parts = given if isinstance(given, list | tuple) else str(given).split(";")
    pairs: list[tuple[str, str]] = []
    for part in (str(part).strip() for part in parts):
        name, equals, folder = part.partition("=")
        if part:
            pairs.append((name.strip(), folder.strip()) if equals else (Path(part).name, part))
    return pairs


def _adapters(given: Any) -> tuple[tuple[str, Path], ...]:
    """Checked names, and folders, which need not exist: the engine says so if they do not."""
    pairs = _pairs(given)
    names = [name for name, _ in pairs]
    for name, folder in pairs:
        if not _NAME.fullmatch(name) or name == BASE_NAME:
            raise ValueError(
                f"{name!r} cannot name an adapter; use letters, digits, '.', '-' and '_', and "
                f"another word than {BASE_NAME!r}, as in NAME={folder}"
            )
        if not folder:
            raise ValueError(f"{name!r} has no folder; {_SPELLING}")
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is given twice; {_SPELLING}")
    return tuple((name, Path(folder).expanduser()) for name, folder in pairs)


def _device(given: Any) -> str:
    if given == "auto":
        return str(choose_device())
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{given!r} is not a device; use auto, cpu, cuda or cuda:0") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{given!r} is not supported; use cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"this machine has no {given!r}; leave it out, or use cpu")
    return str(device)


def _base_model(name: str) -> str:
    if not name:
        raise ValueError("say which base model, by name, folder or hub repository")
    return name


class ModelArguments(BaseModel):
    """Checked arguments of our lm-eval model."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, coerce_numbers_to_str=True, validate_default=True
    )

    pretrained: Annotated[str, AfterValidator(_base_model)] = ""
    """An embedded model's name, a folder, or a hub repository."""
    revision: str | None = None
    """Revision of a hub repository."""
    adapters: Annotated[tuple[tuple[str, Path], ...], BeforeValidator(_adapters)] = ()
    """Name and PEFT folder of each adapter, in the order given."""
    answering: Annotated[str | None, Field(alias="peft")] = None
    """Name of the adapter that answers; None: the base answers."""
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        BeforeValidator(lambda dtype: str(dtype).removeprefix("torch.")),
    ] = "auto"
    device: Annotated[str, BeforeValidator(_device)] = "auto"
    """A device in torch's notation."""
    max_batch_tokens: Count | None = None
    """Tokens in one forward pass; None: rankwise decides."""
    max_length: Count | None = None
    """Context in tokens; None: the model's own."""

    @model_validator(mode="before")
    @classmethod
    def _one_adapter(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Without ``adapters``, ``peft`` is the folder of the only one, as in lm-eval's ``hf``."""
        pairs = _pairs(given.get("peft", ""))
        if not pairs or given.get("adapters"):
            return given
        return given | {"adapters": given["peft"], "peft": pairs[0][0]}

    @model_validator(mode="after")
    def _is_an_adapter(self) -> Self:
        if self.answering not in (None, *self.names):
            known = ", ".join(self.names)
            raise ValueError(f"peft: {self.answering!r} is none of the adapters {known}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters."""
        return tuple(name for name, _ in self.adapters)

    @property
    def models(self) -> tuple[str | None, ...]:
        """The model that ``peft`` names, else the base and every adapter."""
        return (None, *self.names) if self.answering is None else (self.answering,)

    @property
    def precision(self) -> ResolvedPrecision:
        """The precision of the weights, and of what is computed with them."""
        return resolve_precision(self.dtype, torch.device(self.device))


def parse_model_arguments(given: Mapping[str, Any]) -> ModelArguments:
    """Check what lm-eval read from ``--model_args``, a YAML file or a dictionary.

    ``adapters`` is ``NAME=FOLDER;NAME=FOLDER``, a list of such parts, or a mapping of names to
    folders. ``peft`` is the name of one of them, or the folder of the only one.

    Raises:
        ConfigError: with every problem found.
    """
    known = {name: value for name, value in given.items() if value is not None}
    return validated(ModelArguments, known, "--model_args")
