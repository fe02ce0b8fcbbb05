"""Tasks in the format that a model was trained in: the same questions, asked the other way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rankwise.engine.models.loading import load_tokenizer
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from rankwise.tasks.formats import (
    TrainedFormat,
    in_trained_format,
    options_of,
    with_letters,
    without_letters,
)
from rankwise.tasks.requests import prepare_task
from rankwise.tasks.resolution import load_tasks
from tests.support.tiny_tasks import LETTERS_YAML


@pytest.fixture
def both_tasks(tasks_folder: Path) -> Path:
    (tasks_folder / "colours_letters.yaml").write_text(LETTERS_YAML)
    return tasks_folder


def load(folder: Path, name: str) -> Any:
    return load_tasks([name], [folder], allow_code=True)[name][0]


def test_letters_are_put_before_the_cue() -> None:
    assert with_letters("Question: why?\nAnswer:", [" this", "that "]) == (
        "Question: why?\nA. this\nB. that\nAnswer:"
    )


def test_a_prompt_without_a_cue_gets_one() -> None:
    assert with_letters("The cat sat on", ["a mat", "a dog"]) == (
        "The cat sat on\nA. a mat\nB. a dog\nAnswer:"
    )


@pytest.mark.parametrize("mark", ["A. ", "(A) ", "A) ", "A: "])
def test_letters_are_taken_out_again(mark: str) -> None:
    second = mark.replace("A", "B")
    prompt = f"Question: why?\n{mark}this\nand more\n{second}that\nAnswer:"
    assert without_letters(prompt, 2) == ("Question: why?\nAnswer:", ["this\nand more", "that"])


@pytest.mark.parametrize(
    "prompt", ["Question: why?\nAnswer:", "Q\nA. one\nAnswer:", "Q\nA. \nB. two\nAnswer:"]
)
def test_a_prompt_that_lists_no_options_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="does not list its 2 options"):
        without_letters(prompt, 2)


def test_options_are_letters_only_if_all_are() -> None:
    assert options_of([["A", "B"], [" A", " B", " C"]]) == "letters"
    assert options_of([["A", "B"], ["yes", "no"]]) == "cloze"
    assert options_of([["B", "A"]]) == "cloze"


@pytest.mark.parametrize(
    ("name", "other", "options"),
    [("colours", "colours_letters", "letters"), ("colours_letters", "colours", "cloze")],
)
def test_the_other_format_is_the_task_that_somebody_wrote_by_hand(
    tiny_model_folder: Path, both_tasks: Path, name: str, other: str, options: Any
) -> None:
    """The derived task asks and judges exactly as the hand-written one of that format."""
    loaded = load(both_tasks, name)
    made = in_trained_format(
        loaded, TrainedFormat(options, False), chat_template=False, num_fewshot=0
    )
    assert not isinstance(made, str)
    assert made is not None
    assert made.name == f"{name}@{options}"
    tokenizer = load_tokenizer(tiny_model_folder)
    settings: Any = {"max_length": 256, "num_fewshot": 0, "limit": None, "chat_template": False}
    ours = prepare_task(made, tokenizer, **settings)
    by_hand = prepare_task(load(both_tasks, other), tokenizer, **settings)
    assert [r[1:] for r in ours.requests] == [r[1:] for r in by_hand.requests]
    docs = list(loaded.task.test_docs())
    assert [made.task.doc_to_target(doc) for doc in docs] == [doc["label"] for doc in docs]
    assert loaded.task.doc_to_choice(docs[0]) != made.task.doc_to_choice(docs[0])


def test_nothing_differs_nothing_is_made(both_tasks: Path) -> None:
    loaded = load(both_tasks, "colours")
    same = {"chat_template": False, "num_fewshot": 0}
    assert in_trained_format(loaded, TrainedFormat("cloze", False), **same) is None
    assert in_trained_format(loaded, TrainedFormat(None, False), **same) is None
    prose = load(both_tasks, "small_prose")
    assert in_trained_format(prose, TrainedFormat("letters", True), **same) is None


def test_every_difference_is_named(both_tasks: Path) -> None:
    made = in_trained_format(
        load(both_tasks, "colours"),
        TrainedFormat("letters", True),
        chat_template=False,
        num_fewshot=2,
    )
    assert not isinstance(made, str)
    assert made is not None
    assert made.name == "colours@letters-chat-zero-shot"
    plain = in_trained_format(
        load(both_tasks, "sums"), TrainedFormat("letters", False), chat_template=True, num_fewshot=0
    )
    assert not isinstance(plain, str)
    assert plain is not None
    assert plain.name == "sums@plain"


def test_a_fingerprint_of_the_format_is_stable(tiny_model_folder: Path, both_tasks: Path) -> None:
    def digest() -> str:
        made: Any = in_trained_format(
            load(both_tasks, "colours"),
            TrainedFormat("letters", False),
            chat_template=False,
            num_fewshot=0,
        )
        tokenizer = load_tokenizer(tiny_model_folder)
        return prepare_task(
            made, tokenizer, max_length=256, num_fewshot=0, limit=4, chat_template=False
        ).digest

    assert digest() == digest()


def test_a_plan_scores_both_formats_and_says_so(study_file: Path, both_tasks: Path) -> None:
    overrides = ["train.task=colours_letters", "evaluation.retention=[colours]"]
    record = plan_study(load_config(study_file, overrides)).record
    assert record.trained_formats == {"colours_letters": {"colours": "colours@letters"}}
    assert record.tasks["colours_letters"]["retention"] == ("colours",)
    assert "colours@letters" in record.scored_tasks()
    assert "colours@letters" in record.task_fingerprints
    assert any("colours@letters" in warning for warning in record.warnings)
    alone = plan_study(load_config(study_file, [*overrides, "evaluation.trained_format=false"]))
    assert alone.record.trained_formats == {"colours_letters": {}}


def test_both_formats_are_judged_by_one_metric(study_file: Path, both_tasks: Path) -> None:
    """Else their difference would be one of metrics; the end of rows has metrics of its own."""
    config = load_config(study_file, ["evaluation.metric.colours=acc_norm"])
    assert config.evaluation.scored_by("colours") == "acc_norm"
    assert config.evaluation.scored_by("colours@letters-chat") == "acc_norm"
    assert config.evaluation.scored_by("colours@train") == "acc_norm"
    assert config.evaluation.scored_by("colours@end") is None
    assert config.evaluation.scored_by("sums@letters") is None
    own = load_config(study_file, ["evaluation.metric={colours: acc, colours@train: acc_norm}"])
    assert own.evaluation.scored_by("colours@train") == "acc_norm"
    asked = load_config(study_file, ["evaluation.metric.colours=p_right"])
    assert asked.evaluation.metric_of("colours@letters") == "p_right"
    assert asked.evaluation.scored_by("colours@letters") is None  # made when answers are read


def test_a_task_that_cannot_be_put_into_the_format_is_named(
    study_file: Path, both_tasks: Path
) -> None:
    bare = LETTERS_YAML.replace("{{'ABC'[loop.index0]}}. {{c}}\\n", "{{c}}\\n")
    (both_tasks / "bare.yaml").write_text(bare.replace("colours_letters", "bare"))
    record = plan_study(load_config(study_file, ["evaluation.retention=[bare]"])).record
    assert "bare" not in record.trained_formats["colours"]
    assert any("bare cannot be written with cloze" in warning for warning in record.warnings)
