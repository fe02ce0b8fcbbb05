"""A study file made from the setup of one training: that setup, and ranks around it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import ValidationError

from rankwise.errors import ConfigError
from rankwise.integrations.drafts import ConfigReading, TrainingSetup, shown
from rankwise.records.axes import rate_label
from rankwise.records.config.methods import LoraConfig
from rankwise.records.config.study import StudyConfig
from rankwise.records.config.training import LearningRateConfig
from rankwise.records.p_right import P_RIGHT
from rankwise.records.study_file import margins_text, problems_of

NO_DATA = "my_rows.jsonl"
"""Stands where a config names no data."""
MOST_RANK = 256
"""No larger one is added by itself: the largest that TRL's guide to LoRA advises."""
_RETENTION = ("capitals", "continents", "elements")
_HELD_OUT_TEXT = ("pydoc_topics",)
_SECTIONS = ("train", "train.learning_rate", "methods", "methods.lora", "evaluation")
_TRAIN = (
    *(
        "data",
        "objective",
        "judged_by",
        "max_examples",
        "epochs",
        "batch_size",
        "gradient_accumulation_steps",
    ),
    *("learning_rate", "schedule", "warmup_ratio", "dropout", "weight_decay", "max_grad_norm"),
    *("precision", "base_precision", "loss_on", "turns", "chat_template", "max_length"),
)
_PLAIN = re.compile(r"(?:[A-Za-z/]|\.{1,2}/)[A-Za-z0-9_./-]*")
_NO_TEXT = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def ranks_around(rank: int) -> tuple[int, ...]:
    """A quarter, a half, the rank itself, and twice it; no more than ``MOST_RANK`` is added."""
    twice = min(2 * rank, max(rank, MOST_RANK))
    return tuple(sorted({max(rank // 4, 1), max(rank // 2, 1), rank, twice}))


class StudyText(NamedTuple):
    """A study file, and in sentences what it does not say and what may differ."""

    text: str
    not_carried: tuple[str, ...]
    to_check: tuple[str, ...]


def study_text(reading: ConfigReading, folder: Path) -> StudyText:
    """The study file of a reading: its setup, and ranks around it.

    Args:
        reading: of a tool's config.
        folder: of the study file; paths below it are written relative to it.

    Raises:
        ConfigError: the values make no study.
    """
    not_carried, to_check = list(reading.not_carried), list(reading.to_check)
    setup = reading.setup
    if setup.variant is not None:  # trained without dropout, on a base that is not quantised
        if setup.dropout:
            not_carried.append(f"dropout {setup.dropout:g}: variants are trained without it")
        if setup.base_precision:
            not_carried.append(
                f"{setup.base_precision}: variants are trained on a base that is not quantised"
            )
        setup = setup._replace(dropout=None, base_precision=None)
    if setup.data is None:
        to_check.append(f"train.data: no data is named; write your own in place of {NO_DATA}")
        setup = setup._replace(data=NO_DATA)
    elif not os.path.exists(folder / setup.data):
        to_check.append(
            f"train.data: {shown(setup.data)} is not a file here; it takes JSON Lines, so save the "
            "rows of a hub's data set as such"
        )
    content = _content(setup, reading, folder)
    try:
        StudyConfig.model_validate(content, context={"is_study_file": True})
    except ValidationError as error:
        problems = list(problems_of(error, content, StudyConfig))
        raise ConfigError(str(reading.source), problems) from error
    if setup.is_full:
        rate = rate_label(LearningRateConfig().lora[0])
        to_check.append(f"train.learning_rate.lora: none is given; {rate} is the default")
    what = "full fine-tuning" if setup.is_full else f"rank {setup.rank}"
    lines = [
        f"# From {shown(reading.source.name)} ({reading.tool}): your {what}, and ranks around it."
    ]
    for title, sentences in (("Not carried over", not_carried), ("To check", to_check)):
        if sentences:
            lines += [f"#\n# {title}:", *(f"#   - {_on_a_line(said)}" for said in sentences)]
    lines += ["", *yaml_lines(content, _SECTIONS, _comments(setup))]
    # your rows are judged by their loss, pairs of answers by preference, what is written by a check
    in_points = setup.stage in ("dpo", "grpo")
    margins = margins_text("points", "acc") if in_points else margins_text("nats", P_RIGHT)
    said = (tuple(map(_on_a_line, sentences)) for sentences in (not_carried, to_check))
    return StudyText("\n".join(lines) + f"\n{margins}", *said)


def _content(setup: TrainingSetup, reading: ConfigReading, folder: Path) -> dict[str, Any]:
    base, rate = _beside(setup.base_model, folder), setup.learning_rate
    revision = None if setup.revision == "main" else setup.revision
    train = setup._asdict() | {
        "data": _beside(setup.data or NO_DATA, folder),
        "learning_rate": None if rate is None else {"full" if setup.is_full else "lora": rate},
        "objective": setup.objective or None,
    }
    content: dict[str, Any] = {
        "base_model": base if revision is None else {"name": base, "revision": revision},
        "train": {key: train[key] for key in _TRAIN if train[key] is not None},
        "methods": _methods(setup, reading, folder),
        "evaluation": {"retention": list(_RETENTION), "held_out_text": list(_HELD_OUT_TEXT)},
    }
    if setup.seed is not None:
        content["seeds"] = [setup.seed]
    return content


def _methods(setup: TrainingSetup, reading: ConfigReading, folder: Path) -> dict[str, Any]:
    if setup.is_full or setup.rank is None or setup.alpha is None:
        return {"lora": {"ranks": list(LoraConfig().ranks)}, "full": {}}
    alpha: dict[str, Any] = {"policy": "proportional", "ratio": setup.alpha / setup.rank}
    if setup.use_rslora:
        alpha = {"policy": "rslora", "alpha": setup.alpha}
    lora: dict[str, Any] = {"ranks": list(ranks_around(setup.rank)), "alpha": alpha}
    if setup.target_modules:
        lora["target_modules"] = list(setup.target_modules)
    methods: dict[str, Any] = {"lora": lora, "full": None}
    if setup.variant is not None:
        methods["variants"] = {"names": [setup.variant], "ranks": [setup.rank]}
    if reading.adapter is not None:
        place = _beside(os.path.abspath(reading.adapter), folder)
        methods["imported"] = [{"adapter": place, "name": "yours"}]
    return methods


def _beside(name: str, folder: Path) -> str:
    """A path below the study file's folder as from there; another as it is."""
    root = os.path.abspath(folder)
    if not os.path.isabs(name) or not name.startswith(root + os.sep):
        return name
    return f"./{Path(os.path.relpath(name, root)).as_posix()}"


def _comments(setup: TrainingSetup) -> dict[str, str]:
    """Key with dots -> what is said behind it."""
    comments = {
        "evaluation.retention": "what the base knows: any task of lm-evaluation-harness",
        "methods.full": "{} trains all weights too; train.learning_rate.full is its rate",
    }
    if setup.is_full:
        return comments | {"methods.full": "yours", "methods.lora.ranks": "beside yours"}
    name = "yours" if setup.variant is None else f"yours is {setup.variant} at"
    return comments | {
        "methods.lora.ranks": f"{name}: {setup.rank}",
        "train.learning_rate.lora": "as yours, at every rank; see `rankwise init` for a rule",
    }


def _on_a_line(sentence: str) -> str:
    """A sentence without what would end its line."""
    return " ".join("".join(c if c.isprintable() else " " for c in sentence).split())


def yaml_lines(
    content: Mapping[str, Any],
    sections: Collection[str] | None = None,
    comments: Mapping[str, str] = MappingProxyType({}),
    above: str = "",
) -> Iterator[str]:
    """A mapping as YAML; mappings that are sections are blocks, others stand on one line.

    Args:
        content: what is written.
        sections: keys, with the keys above them and dots between; None: every mapping in it, and
            none in these.
        comments: key with dots -> what is said behind it.
        above: the keys above these, with a dot behind them.
    """
    sections = content.keys() if sections is None else sections
    indent = "  " * above.count(".")
    for key, value in content.items():
        place = f"{above}{key}"
        comment = f"  # {comments[place]}" if place in comments else ""
        if isinstance(value, dict) and place in sections:
            yield f"{indent}{key}:{comment}"
            yield from yaml_lines(value, sections, comments, f"{place}.")
        else:
            yield f"{indent}{key}: {_flow(value)}{comment}"


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_flow(each)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _NO_TEXT:
        return value
    text = json.dumps(value, ensure_ascii=False)
    # YAML 1.1, which most tools read, takes 5e-05 for text, and 5.0e-05 for a number
    return re.sub(r"^(-?\d+)e", r"\1.0e", text) if isinstance(value, float) else text
