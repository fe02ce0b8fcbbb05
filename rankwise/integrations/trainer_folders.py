"""What transformers' Trainer leaves beside an adapter: the card, and how far it came.

``training_args.bin`` is never read: it is a pickle, and a pickle is a program.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rankwise.errors import ConfigError
from rankwise.integrations.files import read_content
from rankwise.integrations.peft import CONFIG_FILE
from rankwise.records.yaml_reading import PlainLoader, YamlError, parse_yaml, read_yaml_text

STATE_FILE, CARD_FILE = "trainer_state.json", "README.md"
WEIGHTS_FILE = "adapter_model.safetensors"
_LINE = re.compile(r"^- ([a-z_]{1,40}): (.{1,200})$", re.MULTILINE)
_HEADING = "### Training hyperparameters"
_LINES = (
    *("learning_rate", "train_batch_size", "seed", "num_devices", "gradient_accumulation_steps"),
    *("lr_scheduler_type", "lr_scheduler_warmup_ratio", "lr_scheduler_warmup_steps"),
    *("training_steps", "num_epochs"),
)

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
    place = _with_state(folder)
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


def _with_state(folder: Path) -> Path | None:
    """The folder, or its latest checkpoint, that has the Trainer's state."""
    checkpoints = sorted(
        (each for each in folder.glob("checkpoint-*") if each.name[11:].isdecimal()),
        key=lambda each: int(each.name[11:]),
        reverse=True,
    )
    return next((each for each in (folder, *checkpoints) if (each / STATE_FILE).is_file()), None)


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
