"""The tools whose configs are read and written, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankwise.integrations.axolotl import AXOLOTL
from rankwise.integrations.drafts import Tool
from rankwise.integrations.llama_factory import LLAMA_FACTORY
from rankwise.integrations.peft import PEFT
from rankwise.integrations.trl import TRL
from rankwise.integrations.unsloth import UNSLOTH

TOOLS: tuple[Tool, ...] = (PEFT, AXOLOTL, LLAMA_FACTORY, UNSLOTH, TRL)
"""Those with keys of their own come before those whose keys are everybody's."""


def tool_of(content: Mapping[str, Any]) -> Tool | None:
    """The tool whose config this is; None where no key is a known tool's."""
    return next((tool for tool in TOOLS if tool.says(content)), None)
