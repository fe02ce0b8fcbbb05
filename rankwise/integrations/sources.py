"""From a file or a folder of a tool to the setup of a training.

``training_args.bin`` is never read: it is a pickle, and a pickle is a program.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from rankwise.errors import ConfigError
from rankwise.integrations.axolotl import AXOLOTL
from rankwise.integrations.drafts import ConfigReading, Draft, TrainingSetup, read_content, shown
from rankwise.integrations.llama_factory import LLAMA_FACTORY
from rankwise.integrations.peft import CONFIG_FILE, OF_CARD, PEFT
from rankwise.integrations.tools import Tool, read_draft
from rankwise.integrations.trl import TRL
from rankwise.integrations.unsloth import UNSLOTH
from rankwise.records.yaml_reading import PlainLoader, YamlError, parse_yaml, read_yaml_text

STATE_FILE, CARD_FILE = "trainer_state.json", "README.md"
WEIGHTS_FILE = "adapter_model.safetensors"
_LINE = re.compile(r"^- ([a-z_]{1,40}): (.{1,200})$", re.MULTILINE)
_HEADING = "### Training hyperparameters"
_LINES = {"num_devices", *OF_CARD.values()}

# A card has no line of these.
_NOT_IN_A_CARD = {
    "num_devices": 1,
    "gradient_accumulation_steps": 1,
    "lr_scheduler_warmup_steps": 0,
}


def read_trainer_folder(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The entries that a Trainer's files have, by PEFT's keys and those of the card; what to check.

    The card is believed before the state, which has rates only where they were logged.

    Raises:
        ConfigError: the folder has neither an adapter's config nor a card that names a base.
    """
    checkpoints = sorted(
        (each for each in folder.glob("checkpoint-*") if each.name[11:].isdecimal()),
        key=lambda each: int(each.name[11:]),
        reverse=True,
    )
    # the folder, or its latest checkpoint, that has the Trainer's state
    place = next((each for each in (folder, *checkpoints) if (each / STATE_FILE).is_file()), None)
    content, to_check = _state(place / STATE_FILE) if place is not None else ({}, [])
    card, problems = _card(folder / CARD_FILE)
    if "learning_rate" in card:
        to_check = []
    content |= card
    config = next(
        (each / CONFIG_FILE for each in (folder, place) if each and (each / CONFIG_FILE).is_file()),
        None,
    )
    if config is not None:
        content |= {key: value for key, value in read_content(config).items() if value is not None}
    elif "base_model_name_or_path" not in content:
        problem = (
            f"the folder has no {CONFIG_FILE}, and no {CARD_FILE} that names a base_model; give "
            "the output folder of a training, or the config that it was started with"
        )
        raise ConfigError(str(folder), [problem])
    return content, [*to_check, *problems]


def _state(path: Path) -> tuple[dict[str, Any], list[str]]:
    state = read_content(path)
    content: dict[str, Any] = {
        "num_epochs": state.get("num_train_epochs"),
        "train_batch_size": state.get("train_batch_size"),
    }
    logged = state.get("log_history")
    rates = [
        line["learning_rate"]
        for line in (logged if isinstance(logged, list) else ())
        if isinstance(line, dict) and isinstance(line.get("learning_rate"), int | float)
    ]
    if not rates:
        return content, []
    content["learning_rate"] = max(rates)
    remark = (
        f"train.learning_rate: {max(rates):g} is the largest rate that was logged; "
        "the peak may be above it, and how many batches a step had is not known"
    )
    return content, [remark]


def _card(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Lines of the card, and what its front matter says of the base and the data."""
    if not path.is_file():
        return {}, []
    try:
        text = read_yaml_text(path)
        matter = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        front = parse_yaml(matter[1], PlainLoader) if matter is not None else {}
    except YamlError as error:
        return {}, [f"{CARD_FILE}: {error}"]
    lines = _LINE.findall(text.partition(_HEADING)[2])
    content: dict[str, Any] = {key: value.strip() for key, value in lines if key in _LINES}
    if content:
        content = _NOT_IN_A_CARD | content
    if isinstance(front, dict):
        base, data = front.get("base_model"), front.get("datasets")
        content["base_model_name_or_path"] = base
        content["dataset"] = data[0] if isinstance(data, list) and data else data
    return {key: value for key, value in content.items() if value is not None}, []


TOOLS: tuple[Tool, ...] = (PEFT, AXOLOTL, LLAMA_FACTORY, UNSLOTH, TRL)
"""Those with keys of their own come before those whose keys are everybody's."""


def read_source(path: Path) -> ConfigReading:
    """Read the config of a training, or the folder that a training left.

    Args:
        path: a YAML or JSON file of one of the tools, or a folder with ``adapter_config.json``.

    Raises:
        ConfigError: with every problem: it cannot be read, is not a known tool's, names no base
            model, or has values that no training can have.
    """
    if os.path.isdir(path):
        content, to_check = read_trainer_folder(path)
        draft, tool, folder = read_draft(content, PEFT, path), PEFT, path
        draft.to_check += to_check
    else:
        content, folder = read_content(path), path.parent
        tool = _tool_of(content, path)
        draft = read_draft(content, tool, folder)
    problems = draft.entries.problems
    # without a base model, or the rank of an adapter, there is nothing to compare
    for field in ("base_model",) if draft.fields["is_full"] else ("base_model", "rank", "alpha"):
        key = tool.keys[field]
        is_known = any(problem.startswith(f"{key}:") for problem in problems)
        if draft.fields.get(field) is None and not is_known:
            problems.append(f"{key}: is missing; add it")
    data = draft.fields.get("data")
    if data is not None and not isinstance(data, str):
        problems.append(f"the data {shown(data)} is no path and no name; correct it")
    if problems:
        raise ConfigError(str(path), problems)
    fields = {key: draft.fields[key] for key in TrainingSetup._fields if key in draft.fields}
    setup = TrainingSetup(**fields)
    is_adapter = (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()
    return ConfigReading(
        tool=tool.title,
        source=path,
        setup=setup._replace(
            base_model=_found(setup.base_model, draft),
            data=None if setup.data is None else _found(setup.data, draft),
        ),
        not_carried=tuple(dict.fromkeys(draft.not_carried)),
        to_check=tuple(dict.fromkeys(draft.to_check)),
        adapter=folder if is_adapter and tool is PEFT and setup.variant is None else None,
    )


def _tool_of(content: dict[str, Any], path: Path) -> Tool:
    """The tool whose config this is."""
    for tool in TOOLS:
        if any(sign in content for sign in tool.signs):
            return tool
    keys = ", ".join(shown(key) for key in list(content)[:8]) or "none"
    looked = "; ".join(f"{each.title}: {', '.join(each.signs)}" for each in TOOLS)
    problem = f"the keys ({keys}) are no known tool's; one of these is needed: {looked}"
    raise ConfigError(str(path), [problem])


def _found(name: str, draft: Draft) -> str:
    """A path that leads somewhere from here or from the config, in full; else as it was given."""
    for place in draft.places(os.path.expanduser(name)):
        if os.path.exists(place):
            return os.path.abspath(place)
    return name
