"""Items are taken in one random order, with the prompts that the whole task has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from lm_eval.api.samplers import ContextSampler
from lm_eval.api.task import ConfigurableTask

from rankwise.engine.models.loading import load_tokenizer
from rankwise.errors import TaskError
from rankwise.records.config.study import EvaluationConfig
from rankwise.tasks.item_order import in_random_order
from rankwise.tasks.requests import FEWSHOT_SEED, PreparedTask, prepare_task, prepared_task
from rankwise.tasks.resolution import LoadedTask, load_tasks, quiet_lm_eval
from rankwise.tasks.training_rows import trained_items

NUM_DOCS = 300
SUBJECTS = ["anatomy", "botany", "chess"]  # in this order in the file, a third of it each


@pytest.fixture
def tokenizer(tiny_model_folder: Path) -> Any:
    return load_tokenizer(tiny_model_folder)


def sorted_task(kind: type[ConfigurableTask] = ConfigurableTask, **changes: Any) -> LoadedTask:
    """Documents sorted by subject and by length."""
    docs = [
        {
            "subject": SUBJECTS[3 * i // NUM_DOCS],
            "question": "long " * (1 + i // 10),
            "label": i % 2,
        }
        for i in range(NUM_DOCS)
    ]
    examples = [{"subject": "example", "question": f"example {i}", "label": 0} for i in range(40)]
    config: dict[str, Any] = {
        "task": "sorted",
        "dataset_path": "",
        "custom_dataset": lambda **_: DatasetDict(
            train=Dataset.from_list(examples), test=Dataset.from_list(docs)
        ),
        "training_split": "train",
        "test_split": "test",
        "fewshot_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}?",
        "doc_to_choice": ["yes", "no"],
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    with quiet_lm_eval():
        return LoadedTask("sorted", kind(config=config | changes))


def prepared(task: LoadedTask, tokenizer: Any, limit: int | None, **options: Any) -> PreparedTask:
    settings: dict[str, Any] = {"max_length": 4000, "num_fewshot": 0, "chat_template": False}
    return prepare_task(task, tokenizer, limit=limit, **(settings | options))


def prompts(task: PreparedTask) -> dict[int, list[Any]]:
    """Number of a document -> what is asked about it."""
    found: dict[int, list[Any]] = {}
    for instance in task.instances:
        found.setdefault(instance.doc_id, []).append(instance.args)
    return found


def test_a_limit_takes_a_sample_of_a_sorted_file(tokenizer: Any) -> None:
    task = prepared(sorted_task(), tokenizer, 60)
    docs = {instance.doc_id: instance.doc for instance in task.instances}
    assert (len(docs), task.num_items, task.limit) == (60, 60, 60)
    counts = [sum(doc["subject"] == name for doc in docs.values()) for name in SUBJECTS]
    assert min(counts) >= 12  # 20 in the mean, standard deviation 3.3; the first 60 are anatomy
    places = [doc_id // 100 for doc_id in task.doc_ids[:20]]
    assert set(places) == {0, 1, 2}
    assert places != sorted(places)


def test_documents_keep_their_numbers_and_the_file_its_order(tokenizer: Any) -> None:
    loaded = sorted_task()
    task = prepared(loaded, tokenizer, 25)
    found = list(prompts(task))
    assert found == sorted(task.doc_ids) != list(task.doc_ids)
    for instance in task.instances:
        assert instance.doc == loaded.task.eval_docs[instance.doc_id]
        assert instance.metadata == ("sorted", instance.doc_id, 1)


def test_a_longer_study_begins_with_a_shorter_one_s_items(tokenizer: Any) -> None:
    few, more = (prepared(sorted_task(), tokenizer, limit) for limit in (20, 40))
    whole = prepared(sorted_task(), tokenizer, None)
    assert few.doc_ids == more.doc_ids[:20]
    assert whole.doc_ids == tuple(range(NUM_DOCS))
    assert prepared(sorted_task(), tokenizer, NUM_DOCS).doc_ids == whole.doc_ids
    for part in (few, more):
        assert whole.digest_of(part.doc_ids) == part.digest
    assert more.digest_of(few.doc_ids) == few.digest != more.digest
    assert [r.context for r in more.requests_in_turn[:40]] == [
        r.context for r in few.requests_in_turn
    ]


def test_the_order_does_not_depend_on_the_number_of_documents() -> None:
    order = in_random_order(range(1000))
    assert sorted(order) == list(range(1000))
    assert in_random_order(range(500)) == [doc_id for doc_id in order if doc_id < 500]
    assert in_random_order([3, 1, 2]) == in_random_order([1, 2, 3])
    assert order[:5] == [619, 307, 608, 785, 453]  # in every version: limited studies stand on it


class Echo(ConfigurableTask):
    """Draws its examples in a way of its own."""

    def fewshot_context(self, doc: Any, num_fewshot: int, *args: Any, **options: Any) -> Any:
        number = self.sampler.rnd.random()  # pyright: ignore[reportOptionalMemberAccess]
        return f"{number} {super().fewshot_context(doc, num_fewshot, *args, **options)}"


class Backwards(ContextSampler):
    def sample(self, n: int, eval_doc: Any = None, df: Any = None, **kwargs: Any) -> Any:
        return list(super().sample(n, eval_doc, df, **kwargs))[::-1]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (ConfigurableTask, {}),
        (ConfigurableTask, {"fewshot_split": "test"}),  # a document is no example of itself
        (ConfigurableTask, {"fewshot_config": {"sampler": "first_n"}}),
        (ConfigurableTask, {"fewshot_config": {"sampler": Backwards}}),
        (Echo, {}),
    ],
)
def test_few_shot_examples_are_those_of_the_whole_task(
    tokenizer: Any, kind: type[ConfigurableTask], changes: dict[str, Any]
) -> None:
    task = sorted_task(kind, **changes)
    theirs = sorted_task(kind, **changes).task
    theirs.set_config(key="num_fewshot", value=3)
    theirs.set_fewshot_seed(FEWSHOT_SEED)
    with quiet_lm_eval():
        theirs.build_all_requests()
    whole: dict[int, list[Any]] = {}
    for instance in theirs.instances:
        whole.setdefault(instance.doc_id, []).append(instance.args)
    for limit in (2, 30):
        found = prompts(prepared(task, tokenizer, limit, num_fewshot=3))
        assert len(found) == limit
        assert found == {doc_id: whole[doc_id] for doc_id in found}
    assert isinstance(task.task.sampler, ContextSampler)  # its own again


def test_another_task_of_the_same_documents_asks_about_the_same(
    tasks_folder: Path, tokenizer: Any
) -> None:
    chosen: list[tuple[int, ...]] = []
    for name in ("colours", "hues"):
        found = load_tasks([name], [tasks_folder], allow_code=True)[name]
        assert not isinstance(found, TaskError)
        assert isinstance(found, tuple)
        chosen.append(prepared(found[0], tokenizer, 7).doc_ids)
    assert chosen[0] == chosen[1]


def test_named_documents_are_scored_whatever_the_limit_says(tokenizer: Any) -> None:
    task = trained_items(sorted_task(), "train")
    evaluation = EvaluationConfig(limit=4, num_fewshot=0)
    made = prepared_task(task, tokenizer, 4000, evaluation, limit=9, doc_ids=range(9))
    assert (made.doc_ids, made.limit) == (tuple(range(9)), 9)
    assert [doc[0][0] for doc in prompts(made).values()] == [f"example {i}?" for i in range(9)]
