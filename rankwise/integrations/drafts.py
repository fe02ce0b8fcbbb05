"""How one training is set up, and a setup in the making: what a tool's config says of it."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rankwise.errors import ConfigError, redacted
from rankwise.records.config.variants import VariantName
from rankwise.records.yaml_reading import PlainLoader, YamlError, parse_yaml, read_yaml_text

Schedule = Literal["linear", "cosine", "constant"]
Rows = Literal["messages", "prompt", "pairs"]
"""What a row of a data file is: a conversation, a prompt and its completion, or two answers."""

ALL_LINEAR = "all-linear"
_ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw")
_INITIALISATIONS: dict[str, VariantName] = {"pissa": "pissa", "olora": "olora", "eva": "eva"}
_PLAIN_INITIALISATIONS = ("true", "gaussian")
RATE_RATIO = 16.0
"""LoRA+ as a study trains it: the rate of B over that of A."""

_COLUMNS = {
    "alpaca": "instruction, input and output",
    "sharegpt": "conversations, turns with from and value",
    "messages": "messages, turns with role and content",
    "text": "whole texts",
}


class TrainingSetup(NamedTuple):
    """One training as a study file can say it; None is what nobody said.

    Attributes:
        base_model: a hub name or a folder.
        revision: of the hub's repository.
        data: a file of rows, or a hub's name of some.
        rows: what a row of ``data`` is.
        is_full: whether all weights are trained; then there is no rank and no alpha.
        rank: of LoRA.
        alpha: the numerator of its scaling.
        layer_ranks: of each layer, where they have ranks of their own; all are scaled alike.
        use_rslora: whether the scaling is alpha over the root of the rank.
        dropout: on LoRA's input.
        target_modules: the adapted layers, or ``all-linear``.
        variant: of LoRA; rsLoRA is ``use_rslora``.
        learning_rate: at the peak.
        epochs: passes over the rows.
        max_examples: train on this many rows at most.
        batch_size: examples that a device reads at once.
        gradient_accumulation_steps: a step sees ``batch_size`` times this many examples.
        schedule: how the rate falls after its peak.
        warmup_ratio: share of the steps before the peak.
        weight_decay: of AdamW.
        max_grad_norm: gradients of a larger norm are scaled down to it.
        seed: of the training.
        precision: of the products.
        base_precision: the frozen base's, where it is quantised.
        max_length: tokens of a row.
        loss_on: whether prompts are learned too.
        turns: of the assistant that are learned of a conversation.
        chat_template: whether plain prompts are written as conversations.
        objective: the objective and its settings, as ``train.objective`` has them; None: the next
            token is learned.
        judged_by: how held-out rows are scored, where the objective needs it to be said.
    """

    base_model: str
    revision: str | None = None
    data: str | None = None
    rows: Rows | None = None
    is_full: bool = False
    rank: int | None = None
    alpha: float | None = None
    layer_ranks: tuple[tuple[str, int], ...] = ()
    use_rslora: bool = False
    dropout: float | None = None
    target_modules: tuple[str, ...] = ()
    variant: VariantName | None = None
    learning_rate: float | None = None
    epochs: int | None = None
    max_examples: int | None = None
    batch_size: int | None = None
    gradient_accumulation_steps: int | None = None
    schedule: Schedule | None = None
    warmup_ratio: float | None = None
    weight_decay: float | None = None
    max_grad_norm: float | None = None
    seed: int | None = None
    precision: Literal["float32", "bfloat16"] | None = None
    base_precision: Literal["8bit", "4bit"] | None = None
    max_length: int | None = None
    loss_on: Literal["completion", "all"] | None = None
    turns: Literal["last", "all"] | None = None
    chat_template: bool | None = None
    objective: Mapping[str, Any] | None = None
    judged_by: Any = None

    @property
    def stage(self) -> str:
        """The objective's name, as TRL's commands have it."""
        return next(iter(self.objective), "sft") if self.objective else "sft"

    @property
    def dpo(self) -> Mapping[str, Any] | None:
        """The settings of DPO; None: it is another objective."""
        return (self.objective or {}).get("dpo")

    @property
    def texts_per_row(self) -> int:
        """The texts that are learned of a row: those that the model writes, or the row's own."""
        return (self.objective or {}).get(self.stage, {}).get("num_generations", 1)

    @property
    def targets(self) -> Any:
        """The adapted layers as PEFT takes them: names, or all linear ones."""
        every = self.target_modules == (ALL_LINEAR,)
        return ALL_LINEAR if every else list(self.target_modules)

    @property
    def in_bf16(self) -> dict[str, Any]:
        """The entry for bf16, as transformers takes it."""
        return {} if self.precision is None else {"bf16": self.precision == "bfloat16"}

    @property
    def in_bits(self) -> dict[str, Any]:
        """The entry for the quantised base, as transformers takes it."""
        return {} if self.base_precision is None else {f"load_in_{self.base_precision}": True}

    @property
    def split(self) -> str:
        """The rows of a file that are read, as ``datasets`` writes it."""
        return "train" if self.max_examples is None else f"train[:{self.max_examples}]"

    @property
    def json_rows(self) -> dict[str, Any]:
        """The rows as ``datasets.load_dataset`` takes them; empty where they are a task's."""
        if self.data is None:
            return {}
        return {"path": "json", "data_files": self.data, "split": self.split}


class ConfigReading(NamedTuple):
    """What was read of a tool's config.

    Attributes:
        tool: its name, for a reader.
        source: the file or folder.
        setup: what a study file can say of it.
        not_carried: what it cannot say, one sentence or ``key: value`` each.
        to_check: what may differ, one sentence each.
        adapter: folder of the adapter that was trained so, where it is there.
    """

    tool: str
    source: Path
    setup: TrainingSetup
    not_carried: tuple[str, ...]
    to_check: tuple[str, ...]
    adapter: Path | None = None


def read_content(path: Path) -> dict[str, Any]:
    """The keys and values of a file; one that ends in ``.json`` is JSON, any other YAML.

    Raises:
        ConfigError: it cannot be read, is neither, or is not a mapping.
    """
    try:
        text = read_yaml_text(path)
        content = json.loads(text) if path.suffix == ".json" else parse_yaml(text, PlainLoader)
    except YamlError as error:
        raise ConfigError(str(path), [str(error)]) from error
    except (ValueError, RecursionError) as error:
        problem = f"not valid JSON: {error}; save the file again"
        raise ConfigError(str(path), [problem]) from error
    if not isinstance(content, dict):
        problem = "the file is not a mapping of keys to values; give the config of a training"
        raise ConfigError(str(path), [problem])
    return content  # pyright: ignore[reportUnknownVariableType]


_MOST_SHOWN = 80
_NOTHING = (None, "", [], {})
_ON_BY_DEFAULT = ("shuffle_dataset",)
"""Switches that change results, and that are on where they are not given."""


def shown(value: Any) -> str:
    """A value on a part of a line, without characters that would end it."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"
    text = " ".join(text.split())
    text = redacted("".join(c for c in text if unicodedata.category(c)[0] != "C"))
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


class ConfigEntries:
    """Keys and values of a config; those that are null or empty count as not given.

    Attributes:
        problems: of the values that were read, one sentence each.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = {str(key): value for key, value in content.items()}
        self._read: set[str] = set()
        self.problems: list[str] = []

    def has(self, key: str) -> bool:
        """Whether it is given."""
        return self._content.get(key) not in _NOTHING

    def take(self, key: str) -> Any:
        """The value as it is; None where it is not given."""
        self._read.add(key)
        value = self._content.get(key)
        return None if value in _NOTHING else value

    def number(self, key: str) -> float | None:
        """A finite number, which may be in quotes."""
        value = self.take(key)
        if value is None:
            return None
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
        self._problem(key, value, "is not a number")
        return None

    def whole(self, key: str) -> int | None:
        """A whole number."""
        number = self.number(key)
        if number is None or number == int(number):
            return None if number is None else int(number)
        self._problem(key, number, "is not a whole number")
        return None

    def switch(self, key: str) -> bool:
        """True or false, which may be in quotes; false where it is not given."""
        value = self.take(key)
        known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if value is None:
            return False
        found = known.get(str(value).lower())
        if found is None:
            self._problem(key, value, "is neither true nor false")
        return bool(found)

    def text(self, key: str) -> str | None:
        """Text."""
        value = self.take(key)
        if value is None or isinstance(value, str):
            return value
        self._problem(key, value, "is not text")
        return None

    def names(self, key: str) -> tuple[str, ...]:
        """A list of names, or names with commas between them; each as often as it stands there."""
        value = self.take(key)
        if value is None:
            return ()
        names = value.split(",") if isinstance(value, str) else value
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            return tuple(name.strip() for name in names if name.strip())
        self._problem(key, value, "is not a list of names")
        return ()

    def unread(self, without_effect: re.Pattern[str]) -> list[str]:
        """``key: value`` of what is given and was not read, but for keys that change no result."""
        return [
            f"{shown(key)}: {shown(value)}"
            for key, value in self._content.items()
            if key not in self._read
            and (value not in (*_NOTHING, False) or (value is False and key in _ON_BY_DEFAULT))
            and not without_effect.fullmatch(key)
        ]

    def _problem(self, key: str, value: Any, what: str) -> None:
        self.problems.append(f"{key}: {shown(value)} {what}; correct it")


class Draft:
    """A setup in the making.

    Attributes:
        entries: of the config.
        folder: of the config.
        fields: of the setup, as far as they are known.
        not_carried: what a study file cannot say.
        to_check: what may differ.
    """

    def __init__(self, entries: ConfigEntries, folder: Path) -> None:
        self.entries, self.folder = entries, folder
        self.fields: dict[str, Any] = {}
        self.not_carried: list[str] = []
        self.to_check: list[str] = []

    def places(self, path: str) -> tuple[Path, Path]:
        """Where a path of the config may lead: from the current folder, or from the config's."""
        return Path(path), self.folder / path

    def set_variant(self, variant: VariantName | None) -> None:
        """Name the variant; of several only the first is carried over."""
        if variant is None:
            return
        if "variant" in self.fields:
            self.not_carried.append(f"{variant} together with {self.fields['variant']}")
            return
        self.fields["variant"] = variant

    def read_targets(self, key: str) -> None:
        """The adapted layers: names, or all linear ones; a study file cannot say a pattern."""
        value = self.entries.take(key)
        if isinstance(value, str) and value.strip() in ("all", "all-linear", "all_linear"):
            self.fields["target_modules"] = (ALL_LINEAR,)
        elif isinstance(value, str) and any(sign in value for sign in r"*\()[]|^$+?"):
            self.not_carried.append(f"{key}: {shown(value)}, a pattern; name the layers")
        elif names := self.entries.names(key):
            is_all = {*names} & {"all", "all-linear", "all_linear"}
            self.fields["target_modules"] = (ALL_LINEAR,) if is_all else (*dict.fromkeys(names),)

    def read_bits(self) -> None:
        """Whether the frozen base is quantised."""
        in_four, in_eight = (self.entries.switch(f"load_in_{bits}bit") for bits in (4, 8))
        self.fields["base_precision"] = "4bit" if in_four else "8bit" if in_eight else None

    def read_precision(self) -> None:
        """What is computed in; a study has no float16."""
        value, is_half = self.entries.take("bf16"), self.entries.switch("fp16")
        if value not in (None, "auto") and self.entries.switch("bf16"):
            self.fields["precision"] = "bfloat16"
        elif value not in (None, "auto") and not is_half:
            self.fields["precision"] = "float32"
        if is_half:
            self.not_carried.append("fp16: a study computes in bfloat16 or float32")

    def read_bias(self) -> None:
        """PEFT can train biases beside the factors."""
        if (value := self.entries.take("bias")) not in (None, "none"):
            self.not_carried.append(f"bias: {shown(value)}")

    def read_initialisation(self, key: str) -> None:
        """What A and B begin at: variants of LoRA differ in it."""
        value = self.entries.take(key)
        name = str(value).lower()
        if value is None or name in _PLAIN_INITIALISATIONS:
            return
        variant = _INITIALISATIONS.get(name.partition("_niter_")[0])
        if variant is None:
            self.not_carried.append(f"{key}: {shown(value)}")
        self.set_variant(variant)

    def read_rate_ratio(self, key: str) -> None:
        """LoRA+, whose ratio of rates is fixed in a study."""
        ratio = self.entries.number(key)
        if ratio is None:
            return
        self.set_variant("lora_plus")
        if ratio != RATE_RATIO:
            self.not_carried.append(f"{key}: {ratio:g}; LoRA+ is trained with {RATE_RATIO:g}")

    def read_optimizer(self, key: str) -> None:
        """Adapters are always trained with AdamW."""
        name = self.entries.take(key)
        if name is None or str(name) in _ADAMW:
            return
        is_adamw = "adamw" in str(name)
        more = "AdamW with float32 moments is used" if is_adamw else "AdamW is used"
        self.not_carried.append(f"{key}: {shown(name)}; {more}")

    def read_packing(self, *keys: str) -> None:
        """Packed sequences, of which a batch holds more rows than it has sequences."""
        packed = [self.entries.switch(key) for key in keys]
        if any(packed):
            self.to_check.append(
                "packing: a step saw as many rows as its sequences hold; a study counts rows, so "
                "raise train.gradient_accumulation_steps for as many"
            )

    def read_devices(self, key: str | None = None) -> None:
        """A step's rows come from all devices; a study trains on one."""
        devices = self.entries.whole(key) if key else None
        if devices and devices > 1:
            steps = self.fields.get("gradient_accumulation_steps") or 1
            self.fields["gradient_accumulation_steps"] = steps * devices
        elif devices is None:
            self.to_check.append(
                "devices: the number of devices is not given; with n of them multiply "
                "train.gradient_accumulation_steps by n"
            )

    def describe_rows(self, kind: str | None, *, learns_last: bool = False) -> None:
        """Say what the rows are, where ``train.data`` may want other columns.

        Args:
            kind: of rows.
            learns_last: of conversations the last turn of the assistant, and not every one.
        """
        is_learned = self.fields["loss_on"] != "all" and not self.fields.get("objective")
        if kind in ("sharegpt", "messages") and is_learned:
            self.fields["turns"] = "last" if learns_last else "all"
        if kind in ("alpaca", "sharegpt", "text"):
            self.to_check.append(
                f"train.data: the rows are {kind}'s ({_COLUMNS[kind]}); it takes prompt and "
                "completion, or messages"
            )

    def read_split(self, key: str, value: Any = None) -> None:
        """The first rows of the training split; another split is none of a study's.

        Args:
            key: as it is called in what is said about it.
            value: the split; None: the entry ``key``.
        """
        split = self.entries.take(key) if value is None else value
        first = re.fullmatch(r"train\[:(\d{1,9})\]", str(split))
        if first is not None:
            self.fields["max_examples"] = int(first[1])
        elif split not in (None, "train"):
            self.not_carried.append(f"{key}: {shown(split)}")

    def read_sets(self, key: str) -> dict[str, Any] | None:
        """Take the rows of a list's first data set; give what else is said of it, None without one.

        Args:
            key: of the list.
        """
        given = self.entries.take(key)
        sets = (
            [each for each in given if isinstance(each, Mapping)] if isinstance(given, list) else []
        )
        if not sets:
            if given is not None:
                problem = f"{key}: {shown(given)} is not a list of data sets; correct it"
                self.entries.problems.append(problem)
            return None
        first = {str(name): value for name, value in sets[0].items()}
        files, path = first.pop("data_files", None), first.pop("path", None)
        files = files[0] if isinstance(files, list) and files else files
        self.fields["data"] = path if files is None else files
        self.read_split(f"{key}[0].split", first.pop("split", None))
        self.not_carried += [
            f"{key}[{place}]: {shown(each.get('path'))}; a study trains on one"
            for place, each in enumerate(sets[1:], start=1)
        ]
        return first
