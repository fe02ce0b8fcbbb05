"""What planning finds wrong or worth knowing, collected so that all of it is said at once."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass, field

from rankwise.errors import DataError, ModelError, PlanError, TaskError


@dataclass(frozen=True)
class Issues:
    """Problems stop a study; warnings do not. Each is a sentence that begins with a key."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def refuse(self, study: str, base_model: str) -> None:
        """Raises ``PlanError`` where there are problems, with the names of study and model."""
        if self.problems:
            raise PlanError(study, base_model, self.problems, self.warnings)

    @contextlib.contextmanager
    def of(self, place: str) -> Generator[None]:
        """An error about tasks, data or a model ends the block, and is a problem of this place."""
        try:
            yield
        except (TaskError, DataError, ModelError) as error:
            self.problems.append(f"{place}: {error}")
