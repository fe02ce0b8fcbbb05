"""``methods.truncated``: which ranks the largest adapter is truncated to."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankwise.errors import ConfigError
from rankwise.records.config.study import StudyConfig
from rankwise.records.study_file import load_config

HEAD = "base_model: m\ntrain: {task: t}\n"


def loaded(folder: Path, methods: str) -> StudyConfig:
    path = folder / "study.yaml"
    path.write_text(f"{HEAD}methods: {methods}\n")
    return load_config(path)


def test_by_default_nothing_is_truncated(tmp_path: Path) -> None:
    assert loaded(tmp_path, "{}").methods.truncated_ranks == ()


@pytest.mark.parametrize(
    ("methods", "ranks"),
    [
        ("{lora: {ranks: [32, 8, 16]}, truncated: {}}", (8, 16)),
        ("{lora: {ranks: [64]}, truncated: {ranks: [32, 4]}}", (4, 32)),
        ("{lora: {ranks: [8, 64]}, truncated: {ranks: 16}}", (16,)),
        ("{lora: {_: [{rank: 4}, {rank: 48}]}, truncated: {}}", (4,)),
    ],
)
def test_every_smaller_rank_or_those_that_are_named(
    methods: str, ranks: tuple[int, ...], tmp_path: Path
) -> None:
    assert loaded(tmp_path, methods).methods.truncated_ranks == ranks


@pytest.mark.parametrize(
    ("methods", "problem"),
    [
        (
            "{lora: {ranks: [4, 16]}, truncated: {ranks: [8, 16]}}",
            "methods: truncated.ranks: 16 is not below the largest LoRA rank, 16",
        ),
        (
            "{lora: {ranks: [16]}, truncated: {}}",
            "methods: truncated: rank 16 is the only one; name ranks below it",
        ),
        (
            "{lora: null, truncated: {}}",
            "methods: truncated: 'lora' is null, and only LoRA's adapters are truncated",
        ),
        ("{truncated: {refine: 1}}", "methods.truncated.refine: 1 given"),
        ("{truncated: {ranks: [0]}}", "methods.truncated.ranks[0]: 0 is not a rank"),
    ],
)
def test_what_cannot_be_truncated_is_refused(methods: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, methods)
    (found,) = caught.value.problems
    assert found.startswith(problem)


def test_truncated_adapters_count_among_the_runs(tmp_path: Path) -> None:
    many = "{lora: {ranks: [64], alpha: [%s]}, truncated: {ranks: [%s]}, full: null}"
    alphas = ", ".join(f"{{policy: fixed, alpha: {a}}}" for a in range(1, 101))
    assert loaded(tmp_path, many % (alphas, "1, 2")).methods.truncated_ranks == (1, 2)
    with pytest.raises(ConfigError, match="10,100 runs are more than 10,000"):
        loaded(tmp_path, many % (alphas, ", ".join(map(str, range(1, 51)))))
