"""More seeds, items or ranks for a study that is there: only what is new is done."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from pydantic import ValidationError

from rankwise.errors import ConfigError
from rankwise.records.config.study import StudyConfig
from rankwise.records.study_file import problems_of


class Extension(NamedTuple):
    """What to add: numbers of seeds and of items per task, and ranks by name."""

    num_seeds: int = 0
    num_items: int = 0
    ranks: tuple[int, ...] = ()


def extended(config: StudyConfig, extension: Extension) -> StudyConfig:
    """The config of a study with more seeds, items or ranks.

    New seeds are the smallest whole numbers that the study does not have. Items are added to
    ``evaluation.limit``. Variants stay beside the ranks that they are beside.

    Raises:
        ConfigError: nothing is added, or the study cannot be extended so.
    """
    problems: list[str] = []
    if not any(extension):
        problems.append("nothing to add; give --seeds, --items or --ranks")
    if min(extension.num_seeds, extension.num_items, *extension.ranks, 0) < 0:
        problems.append("a study is extended by whole numbers of at least 1")
    limit, lora = config.evaluation.limit, config.methods.lora
    if extension.num_items and limit is None:
        problems.append("--items: every item of every task is scored already (no limit is set)")
    if extension.ranks and lora is None:
        problems.append("--ranks: the study trains no LoRA rank; set methods.lora in its file")
    if extension.ranks and lora is not None and any(pair.rank for pair in lora.paired):
        problems.append("--ranks: the study pairs ranks with other settings in '_'; add them there")
    known = () if lora is None else lora.ranks
    problems += [f"--ranks: rank {r} is in the study" for r in extension.ranks if r in known]
    if problems:
        raise ConfigError(config.name, problems)
    data = config.model_dump(by_alias=True)
    unused = (seed for seed in itertools.count() if seed not in config.seeds)
    data["seeds"] = (*config.seeds, *itertools.islice(unused, extension.num_seeds))
    if limit is not None:
        data["evaluation"]["limit"] = limit + extension.num_items
    if extension.ranks:
        data["methods"]["lora"]["ranks"] = tuple(sorted((*known, *extension.ranks)))
        if config.methods.variants is not None:
            data["methods"]["variants"]["ranks"] = config.methods.variant_ranks
    try:
        return StudyConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(config.name, list(problems_of(error, data, StudyConfig))) from error
