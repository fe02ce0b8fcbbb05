"""Scored items in training rows: what is found, what is not, and training without these rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from rankwise.engine.models.loading import load_tokenizer
from rankwise.errors import PlanError
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from rankwise.tasks.overlap import Overlap, find_overlap, normalised_text
from rankwise.tasks.requests import prepare_task
from rankwise.tasks.resolution import LoadedTask
from rankwise.tasks.training_rows import TrainingRow, task_rows, trained_items, with_documents
from tests.support.observers import Silent
from tests.support.sentences import Sentences

LONG = "Which colour has the sky on a day without any clouds at all"
OTHER = "How many legs has a spider that has lost none of them so far"


class Tokenizer:
    all_special_tokens = ("<|end|>",)

    def get_added_vocab(self) -> dict[str, int]:
        return {"<|user|>": 1, "<|assistant|>": 2}


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    return load_tokenizer(tiny_model_folder)


def task_of(docs: list[dict[str, Any]], **changes: Any) -> LoadedTask:
    """A task that scores these documents, by default as "Question: ...", answered in words."""
    from lm_eval.api.task import ConfigurableTask

    config: dict[str, Any] = {
        "task": "asked",
        "dataset_path": "",
        "custom_dataset": lambda **_: DatasetDict({"test": Dataset.from_list(docs)}),
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    return LoadedTask("asked", ConfigurableTask(config=config | changes))


def found(
    rows: list[TrainingRow], docs: list[dict[str, Any]], tokenizer: Any, **changes: Any
) -> Overlap:
    prepared = prepare_task(
        task_of(docs, **changes),
        tokenizer,
        max_length=256,
        num_fewshot=0,
        limit=None,
        chat_template=False,
    )
    return find_overlap({"own": rows}, [prepared], Tokenizer())


def asked(question: str = LONG, answer: str = "blue") -> dict[str, Any]:
    return {"question": question, "answer": answer}


def test_normalised() -> None:
    assert normalised_text("  The ｆull-width_Ⅳ — “Été”!\n2+2") == "the full width iv été 2 2"


@pytest.mark.parametrize(
    "row",
    [
        TrainingRow(f"Question: {LONG}?\nAnswer:", " blue<|end|>"),
        TrainingRow(f"QUESTION - {LONG.upper()} ?!\n\n  answer", " red<|end|>"),
        TrainingRow(f"{LONG}\nThe answer is", " blue<|end|>"),  # another template, a line of it
        TrainingRow(f"Please solve this: {LONG}?\nSay why.", " blue<|end|>"),
        TrainingRow("Is it blue?", " yes<|end|>", texts=("x", f"  {LONG}")),  # of the document
        TrainingRow(f"<|user|>Question: {LONG}\nAnswer:<|end|><|assistant|>", "blue<|end|>"),
        TrainingRow(f"<|user|>\nuser\n{LONG}<|end|>\n<|assistant|>assistant\n", "blue<|end|>"),
    ],
    ids=["same", "case and marks", "a line", "a label", "a field", "a turn", "a named turn"],
)
def test_the_same_question_is_found_in_other_clothes(
    row: TrainingRow, tokenizer: Any, sentence: Sentences
) -> None:
    other = TrainingRow("Question: who?\nAnswer:", " me<|end|>")
    overlap = found([other, row], [asked(), asked(OTHER, "eight")], tokenizer)
    assert overlap.num_items == {"asked": 1}
    assert (overlap.rows, overlap.other_rows) == ({"own": [1]}, {"own": [0]})
    sentence(str(overlap), names=("1 of 2", "asked"))


@pytest.mark.parametrize(
    "row",
    [
        TrainingRow(f"Question: {OTHER}\nAnswer:", " blue<|end|>"),
        TrainingRow(f"Question: {LONG} today\nAnswer:", " blue<|end|>"),  # another question
        TrainingRow(f"Question: {LONG[:25]}\nAnswer:", " blue<|end|>"),
        TrainingRow("Answer:", f" {LONG[:-1]}<|end|>"),
    ],
)
def test_another_question_is_not_found(row: TrainingRow, tokenizer: Any) -> None:
    overlap = found([row], [asked()], tokenizer)
    assert (overlap.num_items, overlap.num_rows) == ({"asked": 0}, 0)


def test_a_short_question_needs_its_answer_too(tokenizer: Any) -> None:
    rows = [TrainingRow("Question: 2 + 2\nAnswer:", f" {n}<|end|>") for n in (0, 4)]
    # 2 - 2 and 2 + 2 are one normalised text
    overlap = found(
        rows, [asked("2 - 2", "0"), asked("2 + 2", "4"), asked("2 * 2", "5")], tokenizer
    )
    assert overlap.num_items == {"asked": 2}
    assert found(rows[:1], [asked("2 + 2", "4")], tokenizer).num_rows == 0


def test_a_question_that_several_items_share_needs_its_answer_too(tokenizer: Any) -> None:
    docs = [asked(answer="blue"), asked(answer="grey")]
    rows = [TrainingRow(f"Question: {LONG}\nAnswer:", " red<|end|>", texts=(LONG,))]
    assert found(rows, docs, tokenizer).num_rows == 0
    rows.append(TrainingRow(f"Question: {LONG}\nAnswer:", " Grey!<|end|>"))
    assert found(rows, docs, tokenizer).rows == {"own": [1]}
    assert found(rows, [*docs, asked(OTHER)], tokenizer).num_items == {"asked": 1}


def test_all_long_texts_of_a_prompt_must_be_in_one_row(tokenizer: Any) -> None:
    passage = "It was seen by everybody in the village in that summer."
    docs = [{"passage": passage, "question": LONG, "answer": "blue", "source": OTHER}]
    template = {"doc_to_text": "{{passage}}\n{{question}}"}
    one = TrainingRow("Another prompt", " no<|end|>", texts=(passage, OTHER))
    two = TrainingRow("Another prompt", " no<|end|>", texts=(LONG,))
    both = TrainingRow("Another prompt", " no<|end|>", texts=(LONG, passage))
    assert found([one, two], docs, tokenizer, **template).num_rows == 0
    assert found([one, both], docs, tokenizer, **template).rows == {"own": [1]}


def test_an_instruction_that_all_items_share_is_no_item(tokenizer: Any) -> None:
    text = "Translate the following word from English into French"
    docs = [{"task": text, "question": word, "answer": word} for word in ("sky", "sea", "sun")]
    template = {"doc_to_text": "{{task}}: {{question}}"}
    rows = [TrainingRow(f"{text}: moon", " lune<|end|>", texts=(text, "moon"))]
    assert found(rows, docs, tokenizer, **template).num_rows == 0


def test_prose_is_found_whole(tokenizer: Any) -> None:
    docs = [{"text": LONG}, {"text": OTHER}]
    prose = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
        "generation_kwargs": None,
    }
    rows = [TrainingRow("Write a sentence.", f" {LONG.lower()}.<|end|>")]
    assert found(rows, docs, tokenizer, **prose).num_items == {"asked": 1}


def test_many_rows_and_items(tokenizer: Any) -> None:
    def text(index: int) -> str:
        return (
            " ".join(f"word{(index * 7 + step * step) % 5003}" for step in range(40)) + f" {index}"
        )

    rows = [
        TrainingRow(f"Question: {text(n)}\nAnswer:", " a<|end|>", texts=(text(n),))
        for n in range(5_000)
    ]
    docs = [asked(text(n), "a") for n in range(4_500, 5_500)]
    assert found(rows, docs, tokenizer).num_items == {"asked": 500}


def overlapping(tasks_folder: Path) -> str:
    """The task colours with 4 test items in its 24 training rows, one in other letters."""
    text = (tasks_folder / "colours.py").read_text()
    marked = text.replace(
        "train=Dataset.from_list([_row(i) for i in range(24)])",
        "train=Dataset.from_list([_row(i) for i in range(20)] + [_shout(_row(30))]"
        " + [_row(i) for i in range(31, 34)])",
    )
    assert marked != text
    shout = '\n\ndef _shout(row):\n    return row | {"question": row["question"].upper() + "!"}\n'
    (tasks_folder / "colours.py").write_text(marked + shout)
    return "colours"


def test_a_plan_counts_the_overlap_and_warns(
    study_file: Path, tasks_folder: Path, sentence: Sentences
) -> None:
    overlapping(tasks_folder)
    plan = plan_study(load_config(study_file))
    assert plan.record.overlaps == {"colours": {"colours": 4, "sums": 0, "small_prose": 0}}
    assert plan.record.runs[0].num_examples == 24
    (warning,) = [text for text in plan.record.warnings if "contain scored items" in text]
    sentence(warning, names=("train: ", "colours", "4 of 24"))
    assert "train.drop_overlapping=true" in warning


def test_a_plan_without_overlap_says_so_in_its_record_alone(study_file: Path) -> None:
    record = plan_study(load_config(study_file)).record
    assert record.overlaps == {"colours": {"colours": 0, "sums": 0, "small_prose": 0}}
    assert not any("contain scored items" in text for text in record.warnings)


def test_a_study_trains_without_the_rows_and_scores_all_items(
    study_file: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    overlapping(tasks_folder)
    overrides = ["methods.lora.ranks=[2]", "methods.full=null", "train.epochs=1"]
    overrides += ["analysis={spectra: false, heads: false}"]
    kept = plan_study(load_config(study_file, overrides)).record
    overrides += ["train.drop_overlapping=true", "evaluation.num_train_items=22"]
    plan = plan_study(load_config(study_file, overrides))
    assert plan.record.overlaps["colours"]["colours"] == 0
    assert plan.record.runs[0].num_examples == 20
    assert plan.record.runs[0].fingerprint != kept.runs[0].fingerprint
    assert plan.record.task_fingerprints["colours"] == kept.task_fingerprints["colours"]
    assert any(
        "of colours 4 of 24 training rows contain scored items" in text and "left out" in text
        for text in plan.record.warnings
    )
    outcome = run_study(plan, StudyFolder(tmp_path / "study"), Silent())
    assert outcome.results.base.evaluations["colours"].num_examples == 26
    assert outcome.results.base.evaluations["colours@train"].num_examples == 20
    assert not any(each.name == "items_in_training" for each in outcome.findings.signatures)


def test_the_option_changes_nothing_where_nothing_overlaps(study_file: Path) -> None:
    plans = [
        plan_study(load_config(study_file, [f"train.drop_overlapping={value}"]))
        for value in ("true", "false")
    ]
    same = {"estimated_memory_bytes": 0}  # the process is in it
    first, second = ([run.model_copy(update=same) for run in p.record.runs] for p in plans)
    assert first == second


def test_nothing_left_to_train_on_is_a_problem(
    study_file: Path, tasks_folder: Path, sentence: Sentences
) -> None:
    text = (tasks_folder / "colours.py").read_text()
    text = text.replace("for i in range(24)]", "for i in range(24, 30)]")
    (tasks_folder / "colours.py").write_text(text)
    with pytest.raises(PlanError) as caught:
        plan_study(load_config(study_file, ["train.drop_overlapping=true"]))
    sentence(caught.value, names=("train.drop_overlapping", "6 of 6"))


def test_own_rows_are_held_against_the_tasks_that_they_are_scored_on(
    study_file: Path, tasks_folder: Path
) -> None:
    things = ["Sky", "grass", "SNOW"]  # test items 30 to 32
    rows = [
        {"prompt": f"Tell me: which colour has the great {thing}??", "completion": " some colour"}
        for thing in things
    ]
    rows += [{"prompt": f"Say {number}.", "completion": f" {number}"} for number in range(30)]
    path = study_file.parent / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    settings = [
        "train.task=null",
        f"train.data={path}",
        "evaluation.out_of_domain=[colours]",
        "train.held_out_fraction=0.05",
    ]
    record = plan_study(load_config(study_file, settings)).record
    assert record.overlaps == {"mine": {"data_mine": 0, "colours": 3, "small_prose": 0}}


def test_trained_items_are_those_that_are_left(tokenizer: Any, tasks_folder: Path) -> None:
    from rankwise.tasks.resolution import load_tasks

    loaded = load_tasks(["colours"], [tasks_folder], allow_code=True)["colours"][0]  # type: ignore[index]
    seen = with_documents(trained_items(loaded, None), [0, 3, 5])
    rows = task_rows(loaded, tokenizer, chat_template=False, max_examples=None)
    prepared = prepare_task(
        seen,
        tokenizer,
        max_length=256,
        num_fewshot=0,
        limit=2,
        chat_template=False,
        doc_ids=range(2),
    )
    assert seen.name == "colours@train"
    assert [i.args[0] for i in prepared.instances if i.idx == 0] == [rows[0].prompt, rows[3].prompt]
