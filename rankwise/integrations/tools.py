"""A tool as a table: the keys in which it says what several tools say, and its own words."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.integrations.drafts import ConfigEntries, Draft, TrainingSetup, shown

LORA_KEYS = {
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
"""Keys of PEFT's ``LoraConfig``, which several tools pass on."""
TRAINER_KEYS = {
    "learning_rate": "learning_rate",
    "num_epochs": "num_train_epochs",
    "max_steps": "max_steps",
    "batch_size": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "schedule": "lr_scheduler_type",
    "warmup_ratio": "warmup_ratio",
    "warmup_steps": "warmup_steps",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "seed": "seed",
}
"""``warmup_ratio`` is of transformers before 5, where ``warmup_steps`` takes a share too."""
TRAINER_DEFAULTS = {
    "learning_rate": 5e-5,
    "epochs": 3,
    "batch_size": 8,
    "gradient_accumulation_steps": 1,
    "schedule": "linear",
    "warmup_ratio": 0.0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "seed": 42,
}
"""The defaults of transformers' ``TrainingArguments``."""

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
    r"(trl\.)?((wandb|mlflow|comet|swanlab|trackio|hub|logging|log|save|saves|eval|evals|dataloader|ddp|"
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
    r"(use_)?vllm(?!_structured)(_.*)?|ds3_gather_for_generation|num_generations_eval|"
    r"num_completions_to_print|"
    r"cache_implementation|(use_)?transformers_(paged|continuous_batching.*)|pad_to_multiple_of|"
    r"(.*_)?(hf|hub|wandb|api|access|auth)_(token|key)|.*(secret|password).*))"
)


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
        usage: how that file is used, with ``{stage}`` where the command names the objective; empty
            where the file cannot say so itself.
        objectives: those that a config can say here, beside the next token's loss.
        warmup_key: where a share of the steps is written.
        without_effect: more keys on which no result depends.
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
    objectives: tuple[str, ...] = ()
    warmup_key: str = "warmup_steps"
    without_effect: tuple[str, ...] = ()
    flat: Callable[[dict[str, Any]], dict[str, Any]] = dict
    arranged: Callable[[dict[str, Any]], dict[str, Any]] = dict


def read_draft(content: dict[str, Any], tool: Tool, folder: Path) -> Draft:
    """Read a tool's config as far as a study file goes; its problems are in ``entries``."""
    draft = Draft(ConfigEntries(tool.flat(content)), folder)
    entries, keys = draft.entries, tool.keys
    readers = {entries.whole: _WHOLE, entries.number: _NUMBERS, entries.text: _TEXTS}
    for read, fields in readers.items():
        draft.fields |= {field: read(keys[field]) if field in keys else None for field in fields}
    draft.fields["use_rslora"] = entries.switch(keys["use_rslora"])
    if entries.switch(keys["use_dora"]):
        draft.set_variant("dora")
    epochs, steps = entries.number(keys["num_epochs"]), entries.whole(keys["max_steps"])
    if steps is not None and steps > 0:  # the rows that they read, once
        draft.fields |= {"epochs": 1, "max_steps": steps}
    elif epochs is not None:
        whole = draft.fields["epochs"] = max(round(epochs), 1)
        if epochs <= 0:
            entries.problems.append(f"{keys['num_epochs']}: {epochs:g} is not above 0; correct it")
        elif epochs != whole:
            draft.to_check.append(
                f"{keys['num_epochs']}: {epochs:g} is not a whole number; train.epochs is {whole}"
            )
    _read_schedule(draft, tool)
    for key in tool.without_effect:
        entries.take(key)
    tool.read_own(draft)
    _take_defaults(draft, tool)
    _check_values(draft, tool)
    if draft.fields.get("is_full"):
        draft.fields["dropout"] = None
    draft.not_carried += entries.unread(WITHOUT_EFFECT)
    return draft


def _read_schedule(draft: Draft, tool: Tool) -> None:
    entries, keys = draft.entries, tool.keys
    name = entries.text(keys["schedule"])
    ratio, steps = entries.number(keys["warmup_ratio"]), entries.number(keys["warmup_steps"])
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
            if fields[field] is None:
                continue
            shown_value = ", ".join(value) if isinstance(value, tuple) else fields[field]
            taken.append(f"{field} {shown_value}")
    if taken:
        draft.to_check.append(f"not given, so {tool.title}'s defaults: {'; '.join(taken)}")
    accumulation = fields.get("gradient_accumulation_steps") or 1
    batch = (fields.get("batch_size") or 1) * accumulation
    steps, warmup = fields.pop("max_steps", None), fields.pop("warmup_steps", None)
    if steps:
        # GRPO may take several steps with the texts of one batch
        again = (fields.get("objective") or {}).get("grpo", {}).get("num_iterations") or 1
        rows = fields["max_examples"] = math.ceil(steps / again) * batch
        times = f", each read in {again} steps" if again > 1 else ""
        draft.to_check.append(
            f"{tool.keys['max_steps']}: {steps} steps of {batch} rows{times} are the first {rows} "
            "rows, once; with fewer rows set train.epochs"
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
    if setup.batch_size is not None:
        values["batch_size"] = setup.batch_size * setup.texts_per_row
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
    if setup.warmup_ratio is not None:
        entries[tool.warmup_key] = setup.warmup_ratio
    return tool.arranged(entries | tool.write_own(setup, folder))
