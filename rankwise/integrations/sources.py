"""From a file or a folder of a tool to the setup of a training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rankwise.errors import ConfigError
from rankwise.integrations.drafts import Draft, Tool, read_draft
from rankwise.integrations.entries import shown
from rankwise.integrations.files import read_content
from rankwise.integrations.peft import CONFIG_FILE, PEFT
from rankwise.integrations.setups import Reading, TrainingSetup
from rankwise.integrations.tools import TOOLS, tool_of
from rankwise.integrations.trainer_folders import WEIGHTS_FILE, read_trainer_folder


def read_source(path: Path) -> Reading:
    """Read the config of a training, or the folder that a training left.

    Args:
        path: a YAML or JSON file of one of the tools, or a folder with ``adapter_config.json``.

    Raises:
        ConfigError: with every problem: it cannot be read, is no known tool's, names no base
            model, or has values that no training can have.
    """
    if os.path.isdir(path):
        content, to_check = read_trainer_folder(path)
        draft, tool, folder = read_draft(content, PEFT, path), PEFT, path
        draft.to_check += to_check
    else:
        content, folder = read_content(path), path.parent
        tool = _known(content, path)
        draft = read_draft(content, tool, folder)
    _check_complete(draft, tool)
    if draft.entries.problems:
        raise ConfigError(str(path), draft.entries.problems)
    fields = {key: draft.fields[key] for key in TrainingSetup._fields if key in draft.fields}
    setup = TrainingSetup(**fields)
    is_adapter = (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()
    return Reading(
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


def _known(content: dict[str, Any], path: Path) -> Tool:
    tool = tool_of(content)
    if tool is not None:
        return tool
    keys = ", ".join(shown(key) for key in list(content)[:8]) or "none"
    looked = "; ".join(f"{each.title}: {', '.join(each.signs)}" for each in TOOLS)
    problem = f"the keys ({keys}) are no known tool's; one of these is needed: {looked}"
    raise ConfigError(str(path), [problem])


def _check_complete(draft: Draft, tool: Tool) -> None:
    """Without a base model, or the rank of an adapter, there is nothing to compare."""
    fields, problems = draft.fields, draft.entries.problems
    needed = ["base_model"] if fields["is_full"] else ["base_model", "rank", "alpha"]
    for field in needed:
        key = tool.keys[field]
        is_known = any(problem.startswith(f"{key}:") for problem in problems)
        if fields.get(field) is None and not is_known:
            problems.append(f"{key}: is missing; add it")
    data = fields.get("data")
    if data is not None and not isinstance(data, str):
        problems.append(f"the data {shown(data)} is no path and no name; correct it")


def _found(name: str, draft: Draft) -> str:
    """A path that leads somewhere from here or from the config, in full; else as it was given."""
    for place in draft.places(os.path.expanduser(name)):
        if os.path.exists(place):
            return os.path.abspath(place)
    return name
