"""YAML and JSON files of other tools, read as data: no tags, no bombs, mappings only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rankwise.errors import ConfigError
from rankwise.records.yaml_reading import PlainLoader, YamlError, parse_yaml, read_yaml_text


def read_content(path: Path) -> dict[str, Any]:
    """The keys and values of a file; one that ends in ``.json`` is JSON, any other YAML.

    Raises:
        ConfigError: it cannot be read, is neither, or is no mapping.
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
        problem = "the file is no mapping of keys to values; give the config of a training"
        raise ConfigError(str(path), [problem])
    return content  # pyright: ignore[reportUnknownVariableType]
