"""How one training is set up, read from the entries of a tool's config by one table of keys."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rankwise.errors import ConfigError, redacted
from rankwise.records.config.variants import VariantName
from rankwise.records.yaml_reading import PlainLoader, YamlError, parse_yaml, read_yaml_text

Schedule = Literal["linear", "cosine", "constant"]
Rows = Literal["messages", "prompt", "pairs"]
"""What a row of a data file is: a conversation, a prompt and its completion, or two answers."""


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
        chat_template: whether plain prompts are written as conversations.
        dpo: settings of DPO, as ``train.objective.dpo`` has them; None: the next token is learned.
    """

    base_model: str
    revision: str | None = None
    data: str | None = None
    rows: Rows | None = None
    is_full: bool = False
    rank: int | None = None
    alpha: float | None = None
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
    chat_template: bool | None = None
    dpo: Mapping[str, Any] | None = None


class Reading(NamedTuple):
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


def shown(value: Any) -> str:
    """A value on a part of a line, without characters that would end it."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"
    text = " ".join(text.split())
    text = redacted("".join(c for c in text if unicodedata.category(c)[0] != "C"))
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


class Entries:
    """Keys and values of a config; those that are null or empty count as not given.

    Attributes:
        problems: of the values that were read, one sentence each.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = {str(key): value for key, value in content.items()}
        self._read: set[str] = set()
        self.problems: list[str] = []

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
        """A list of names, or names with commas between them."""
        value = self.take(key)
        if value is None:
            return ()
        names = value.split(",") if isinstance(value, str) else value
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
        self._problem(key, value, "is not a list of names")
        return ()

    def unread(self, without_effect: re.Pattern[str]) -> list[str]:
        """``key: value`` of what is given and was not read, but for keys that change no result."""
        return [
            f"{shown(key)}: {shown(value)}"
            for key, value in self._content.items()
            if key not in self._read
            and value not in (*_NOTHING, False)
            and not without_effect.fullmatch(key)
        ]

    def _problem(self, key: str, value: Any, what: str) -> None:
        self.problems.append(f"{key}: {shown(value)} {what}; correct it")


SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant_with_warmup": "constant"}
"""transformers' names -> a study file's, whose ``constant`` has a warm-up too."""

_NAMES = {ours: theirs for theirs, ours in SCHEDULES.items()}
_WHOLE = ("rank", "batch_size", "gradient_accumulation_steps", "seed", "max_length")
_NUMBERS = ("alpha", "dropout", "learning_rate", "weight_decay", "max_grad_norm")
_TEXTS = ("base_model", "revision")
_BOUNDS: dict[str, tuple[float, str]] = {
    "rank": (1, "is not a rank; use a whole number of at least 1"),
    "batch_size": (1, "is not a batch size; use a whole number of at least 1"),
    "gradient_accumulation_steps": (1, "is not a number of steps; use at least 1"),
    "max_length": (1, "is not a length; use at least 1"),
    "seed": (0, "is not a seed; use 0 or more"),
}

# Where and how often something is written, how fast it goes, and passwords, which are never shown:
# no result depends on these.
WITHOUT_EFFECT = re.compile(
    r"(wandb|mlflow|comet|swanlab|trackio|hub|logging|log|save|saves|eval|evals|dataloader|ddp|"
    r"tokenized|dataset_prepared|fsdp|deepspeed|gradient_checkpointing|torch_compile|push_to)_.*|"
    r"(fsdp|deepspeed|debug|strict|output_dir|overwrite_output_dir|overwrite_cache|plot_loss|"
    r"report_to|run_name|tf32|gradient_checkpointing|use_gradient_checkpointing|flash_attn|"
    r"(.*_)?attention|attn_implementation|xformers|use_reentrant_gc|use_unsloth|use_unsloth_gc|"
    r"enable_liger_kernel|use_liger_kernel|liger_.*|lora_(mlp|qkv|o)_kernel|torch_compile|plugins|"
    r"do_train|do_eval|do_predict|val_set_size|val_size|val_.*|test_.*|auto_resume_.*|"
    r"(.*_)?num_workers|(.*_)?num_proc|per_device_eval_batch_size|local_rank|resume_from_.*|"
    r"remove_unused_columns|disable_tqdm|cache_dir|trust_remote_code|ray_.*|env|evaluation_strategy|"
    r"prediction_loss_only|bf16_full_eval|loss_watchdog_.*|low_cpu_mem_usage|device_map|"
    r"pad_to_sequence_len|tensorboard_dir|early_stopping_patience|enable_.*|"
    r"(.*_)?(hf|hub|wandb|api|access|auth)_(token|key)|.*(secret|password).*)"
)


class Draft:
    """A setup in the making.

    Attributes:
        entries: of the config.
        folder: of the config.
        fields: of the setup, as far as they are known.
        not_carried: what a study file cannot say.
        to_check: what may differ.
    """

    def __init__(self, entries: Entries, folder: Path) -> None:
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


class Tool(NamedTuple):
    """A tool and its words.

    Attributes:
        name: as an option of the command.
        title: as its makers write it.
        signs: keys of which any tells its configs from those of the tools after it.
        keys: field of a setup -> key of the config. Beside fields: ``num_epochs``, ``max_steps``,
            ``schedule``, ``warmup_steps`` and ``warmup_ratio``.
        defaults: field -> what the tool takes where its key is not given.
        read_own: reads what is said in the tool's own way.
        write_own: the entries that say it, for a file in this folder.
        file_name: of a config that is written.
        usage: how that file is used, with ``{stage}`` where the command says whether it is sft or
            dpo; empty where the file cannot say so itself.
        has_dpo: whether a config can say DPO here.
        warmup_key: where a share of the steps is written.
        flat: the config without its sections.
        arranged: the entries in their sections.
    """

    name: str
    title: str
    signs: tuple[str, ...]
    keys: Mapping[str, str]
    defaults: Mapping[str, Any]
    read_own: Callable[[Draft], None]
    write_own: Callable[[TrainingSetup, Path], dict[str, Any]]
    file_name: str
    usage: str = ""
    has_dpo: bool = False
    warmup_key: str = "warmup_steps"
    flat: Callable[[dict[str, Any]], dict[str, Any]] = dict
    arranged: Callable[[dict[str, Any]], dict[str, Any]] = dict

    def says(self, content: Mapping[str, Any]) -> bool:
        """Whether a config is this tool's."""
        return any(sign in content for sign in self.signs)


def read_draft(content: dict[str, Any], tool: Tool, folder: Path) -> Draft:
    """Read a tool's config as far as a study file goes; its problems are in ``entries``."""
    draft = Draft(Entries(tool.flat(content)), folder)
    entries, keys = draft.entries, tool.keys
    readers = {entries.whole: _WHOLE, entries.number: _NUMBERS, entries.text: _TEXTS}
    for read, fields in readers.items():
        draft.fields |= {field: read(keys[field]) if field in keys else None for field in fields}
    draft.fields["use_rslora"] = entries.switch(keys["use_rslora"])
    if entries.switch(keys["use_dora"]):
        draft.set_variant("dora")
    _read_steps(draft, tool)
    _read_schedule(draft, tool)
    tool.read_own(draft)
    _take_defaults(draft, tool)
    _check_values(draft, tool)
    if draft.fields.get("is_full"):
        draft.fields["dropout"] = None
    draft.not_carried += entries.unread(WITHOUT_EFFECT)
    return draft


def _read_steps(draft: Draft, tool: Tool) -> None:
    """Epochs, or the rows that a number of steps reads."""
    epochs = draft.entries.number(tool.keys["num_epochs"])
    steps = draft.entries.whole(tool.keys["max_steps"])
    if steps is not None and steps > 0:
        draft.fields["epochs"] = 1
        draft.fields["max_steps"] = steps
    elif epochs is not None:
        draft.fields["epochs"] = max(round(epochs), 1)
        if epochs != draft.fields["epochs"]:
            draft.to_check.append(
                f"{tool.keys['num_epochs']}: {epochs:g} is not a whole number; "
                f"train.epochs is {draft.fields['epochs']}"
            )


def _read_schedule(draft: Draft, tool: Tool) -> None:
    entries, keys = draft.entries, tool.keys
    name = entries.text(keys["schedule"]) if "schedule" in keys else None
    ratio = entries.number(keys["warmup_ratio"]) if "warmup_ratio" in keys else None
    steps = entries.number(keys["warmup_steps"]) if "warmup_steps" in keys else None
    if steps is not None and 0 < steps < 1:  # transformers 5 takes a share there too
        steps, ratio = None, steps
    if steps:
        draft.fields["warmup_steps"] = round(steps)
    elif ratio is not None or steps == 0:
        draft.fields["warmup_ratio"] = ratio or 0.0
    if name == "constant":  # transformers' has no warm-up
        draft.fields |= {"schedule": "constant", "warmup_ratio": 0.0}
        draft.fields.pop("warmup_steps", None)
    elif name in SCHEDULES:
        draft.fields["schedule"] = SCHEDULES[name]
    elif name is not None:
        nearest = "cosine" if "cosine" in name else "linear"
        draft.fields["schedule"] = nearest
        draft.not_carried.append(f"{keys['schedule']}: {shown(name)}; {nearest} is used")


def _take_defaults(draft: Draft, tool: Tool) -> None:
    """What the config does not say, as the tool would take it."""
    fields = draft.fields
    taken: list[str] = []
    for field, value in tool.defaults.items():
        if field == "warmup_ratio" and "warmup_steps" in fields:
            continue
        is_of_lora = field in ("rank", "alpha", "dropout", "target_modules")
        if fields.get(field) in (None, ()) and not (is_of_lora and fields.get("is_full")):
            fields[field] = value(fields) if callable(value) else value
            shown_value = ", ".join(value) if isinstance(value, tuple) else fields[field]
            taken.append(f"{field} {shown_value}")
    if taken:
        draft.to_check.append(f"not given, so {tool.title}'s defaults: {'; '.join(taken)}")
    accumulation = fields.get("gradient_accumulation_steps") or 1
    batch = (fields.get("batch_size") or 1) * accumulation
    steps, warmup = fields.pop("max_steps", None), fields.pop("warmup_steps", None)
    if steps:
        fields["max_examples"] = steps * batch
        draft.to_check.append(
            f"{tool.keys['max_steps']}: {steps} steps of {batch} rows are the first "
            f"{steps * batch} rows, once; with fewer rows set train.epochs"
        )
    if warmup and steps:
        fields["warmup_ratio"] = min(warmup / steps, 0.99)
    elif warmup:
        draft.to_check.append(
            f"{tool.keys['warmup_steps']}: {warmup} steps; a study file takes a share, so set "
            f"train.warmup_ratio to {warmup} over the steps that rankwise plan shows"
        )


def _check_values(draft: Draft, tool: Tool) -> None:
    """Problems of values that no training can have, under the config's own keys."""
    for field, (least, what) in _BOUNDS.items():
        value = draft.fields.get(field)
        if value is not None and value < least and field in tool.keys:
            draft.entries.problems.append(f"{tool.keys[field]}: {value} {what}")
    for field in ("alpha", "learning_rate", "max_grad_norm"):
        value = draft.fields.get(field)
        if value is not None and value <= 0:
            if field == "max_grad_norm":  # 0 turns it off
                draft.not_carried.append(f"{tool.keys[field]}: {value:g}, no limit; 1 is used")
                draft.fields[field] = None
                continue
            draft.entries.problems.append(
                f"{tool.keys[field]}: {value:g} is not above 0; correct it"
            )


def written_entries(setup: TrainingSetup, tool: Tool, folder: Path) -> dict[str, Any]:
    """The config of a tool that says this setup; ``folder`` is that of the file."""
    values = setup._asdict() | {"num_epochs": setup.epochs}
    if setup.schedule is not None:
        values["schedule"] = _NAMES[setup.schedule]
    if setup.is_full:
        values |= dict.fromkeys(("rank", "alpha", "dropout"))
    values |= {"use_rslora": setup.use_rslora or None}
    entries = {
        # a whole number without its point: some tools take no other alpha
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for field, key in tool.keys.items()
        if field != "warmup_ratio" and (value := values.get(field)) is not None
    }
    if setup.warmup_ratio is not None and "warmup_ratio" in tool.keys:
        entries[tool.warmup_key] = setup.warmup_ratio
    return tool.arranged(entries | tool.write_own(setup, folder))
