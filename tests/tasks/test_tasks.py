"""Tasks: found by name, trained on as they are scored, and tokenised as lm-eval does it."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest

from rankwise.engine.models.loading import load_tokenizer
from rankwise.errors import DataError, TaskError
from rankwise.tasks.requests import prepare_task
from rankwise.tasks.resolution import (
    LoadedTask,
    TaskNotFound,
    list_tasks,
    lm_evals_own,
    load_tasks,
    quiet_lm_eval,
)
from rankwise.tasks.training_rows import task_rows
from tests.support import tiny_tasks
from tests.support.sentences import Sentences

END = "<|im_end|>"
CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_choice": "options",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
GENERATION: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
ROW = {"question": "Is it?", "options": ["yes", "no"], "label": 1}


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    return load_tokenizer(tiny_model_folder)


def task_of(
    train: list[dict[str, Any]], test: list[dict[str, Any]] | None = None, **config: Any
) -> LoadedTask:
    """A lm-eval task over these rows; an empty list is a split without rows."""
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    test = train if test is None else test
    filled = Dataset.from_list(train or test)

    def split(rows: list[dict[str, Any]]) -> Dataset:
        return Dataset.from_list(rows) if rows else filled.select([])

    settings = {
        "task": "own",
        "dataset_path": "",
        "custom_dataset": lambda **_: DatasetDict(train=split(train), test=split(test)),
        "training_split": "train",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "metadata": {"version": 1.0},
    }
    with quiet_lm_eval():
        return LoadedTask("own", ConfigurableTask(config=settings | config))


def rows_of(task: LoadedTask, tokenizer: Any, **options: Any) -> list[Any]:
    settings: dict[str, Any] = {"chat_template": False, "max_examples": None}
    return task_rows(task, tokenizer, **(settings | options))


def pairs_of(loaded: Any, tokenizer: Any) -> list[tuple[str, ...]]:
    """The same as (prompt, completion)."""
    return [row[:2] for row in rows_of(loaded, tokenizer)]


def prepared(task: LoadedTask, tokenizer: Any, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "max_length": 256,
        "num_fewshot": 0,
        "limit": None,
        "chat_template": False,
    }
    return prepare_task(task, tokenizer, **(settings | options))


def loaded(name: str, folder: Path) -> LoadedTask:
    found = load_tasks([name], [folder], allow_code=True)[name]
    if isinstance(found, TaskError):
        raise found
    assert isinstance(found, tuple), found
    (task,) = found
    return task


# finding


def test_local_names_need_no_index_of_lm_eval(
    tasks_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks

    built: list[bool] = []
    manager = lm_eval.tasks.TaskManager

    def recorded(*args: Any, include_defaults: bool = True, **kwargs: Any) -> Any:
        built.append(include_defaults)
        return manager(*args, include_defaults=include_defaults, **kwargs)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", recorded)
    found = load_tasks(["colours", "kinship", "small_prose"], [tasks_folder], allow_code=True)
    assert built == [False]
    kinds = {name: [task.output_type for task in tasks] for name, tasks in found.items()}  # type: ignore[union-attr]
    assert kinds == {
        "colours": ["multiple_choice"],
        "kinship": ["multiple_choice"],
        "small_prose": ["loglikelihood_rolling"],
    }
    (colours,) = found["colours"]
    assert (colours.domain, colours.version) == ("knowledge", "1.0")
    listing = {(line.name, line.source) for line in list_tasks([tasks_folder])}
    assert built == [False, False]
    assert {("kinship", "rankwise"), ("colours", "tasks_path")} <= listing


def test_names_of_lm_eval_and_misspelt_names(tasks_folder: Path, sentence: Sentences) -> None:
    """The one test that builds lm-eval's whole index: about ten seconds."""
    found = load_tasks(["colors", "arc-easy", "qqqqqqqqq"], [tasks_folder], allow_code=True)
    assert found["colors"] == TaskNotFound("colors", "colours")
    sentence(str(found["arc-easy"]), "arc-easy", names=("arc-easy", "arc_easy"))
    sentence(str(found["qqqqqqqqq"]), "qqqqqqqqq", names=("qqqqqqqqq",))
    (tasks_folder / "own.yaml").write_text(tiny_tasks.SUMS_YAML.replace("sums", "arc_easy", 1))
    listing = {line.name: line.source for line in list_tasks([tasks_folder], everything=True)}
    assert listing["arc_easy"] == listing["colours"] == "tasks_path"
    assert listing["arc_challenge"] == "lm-eval"
    assert lm_evals_own.cache_info().misses == 1
    assert "colours" not in lm_evals_own()


def test_a_group_of_the_folder_maps_to_its_tasks(tasks_folder: Path) -> None:
    (tasks_folder / "both.yaml").write_text("group: both\ntask: [colours, sums]\n")
    found = load_tasks(["both"], [tasks_folder], allow_code=True)["both"]
    assert [task.name for task in found] == ["colours", "sums"]  # type: ignore[union-attr]


def test_a_missing_folder_is_named(tmp_path: Path, sentence: Sentences) -> None:
    with pytest.raises(TaskError) as caught:
        load_tasks(["kinship"], [tmp_path / "nowhere"])
    sentence(caught.value, names=("tasks_path",))


LIBRARY = r"(?<=loaded: ).*(?=\. Check its data)"
"""What lm-eval and datasets say, in words of their version."""


@pytest.mark.parametrize(
    ("right", "wrong", "named"),
    [
        ("{{question}}", "{{qestion}}", "'qestion'"),
        ("{{question}}", "{{question", "doc_to_text: line 2"),
        ("output_type: multiple_choice", "output_type: choice", "'choice'"),
        ("test_split: test", "test_splitt: test", "'test_splitt'"),
        ("test_split: test", "test_split: tset", "'tset'"),
        ("!function colours.load", "!function colours.nothing", "'nothing'"),
        ("!function colours.load", "!function colors.load", "'colors'"),
        (
            'custom_dataset: !function colours.load\ndataset_path: ""',
            "dataset_path: json\ndataset_kwargs: {data_files: {test: nope.jsonl}}",
            "nope.jsonl",
        ),
        (
            'custom_dataset: !function colours.load\ndataset_path: ""',
            "dataset_path: nobody/nothing",
            "nobody/nothing",
        ),
    ],
    ids=[
        *("a field", "a template", "a kind", "a key", "a split"),
        *("a function", "a module", "a file", "a data set"),
    ],
)
def test_a_task_file_that_is_wrong(
    tasks_folder: Path, right: str, wrong: str, named: str, sentence: Sentences
) -> None:
    assert right in tiny_tasks.COLOURS_YAML
    (tasks_folder / "colours.yaml").write_text(tiny_tasks.COLOURS_YAML.replace(right, wrong))
    with pytest.raises(TaskError) as caught:
        loaded("colours", tasks_folder)
    sentence(caught.value, names=("'colours'", "colours.yaml", named), LIBRARY=LIBRARY)


def test_a_task_without_rows_to_score(tasks_folder: Path, sentence: Sentences) -> None:
    text = (tasks_folder / "colours.py").read_text()
    (tasks_folder / "colours.py").write_text(text.replace("range(24, 50)", "range(0)"))
    with pytest.raises(TaskError) as caught:
        loaded("colours", tasks_folder)
    sentence(caught.value, names=("'colours'",), LIBRARY=LIBRARY)


# training rows


@pytest.mark.parametrize("chat_template", [False, True])
def test_what_is_trained_is_what_is_scored_for_the_right_option(
    tasks_folder: Path, tokenizer: Any, chat_template: bool
) -> None:
    yaml = tiny_tasks.COLOURS_YAML.replace("test_split: test", "test_split: train")
    (tasks_folder / "colours.yaml").write_text(yaml)
    task = loaded("colours", tasks_folder)
    rows = rows_of(task, tokenizer, chat_template=chat_template)
    scored = prepared(task, tokenizer, chat_template=chat_template)
    right = {
        instance.doc_id: instance.args
        for instance in scored.instances
        if instance.idx == instance.doc["label"]
    }
    assert len(rows) == len(right) == 24
    for index, row in enumerate(rows):
        prompt, option = right[index]
        assert row.prompt == prompt
        assert row.completion == option + END
        assert row.completion.count(END) == 1
    if chat_template:
        assert rows[0].prompt == (
            "<|im_start|>user\nQuestion: which colour has the old sky?\nAnswer:<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        assert rows[0].completion == f"blue{END}"
    else:
        assert rows[0][:2] == ("Question: which colour has the old sky?\nAnswer:", f" blue{END}")


@pytest.mark.parametrize("chat_template", [False, True])
def test_tokens_of_training_and_scoring_have_the_same_boundary(
    tasks_folder: Path, tokenizer: Any, chat_template: bool
) -> None:
    from rankwise.records.config.training import TrainConfig
    from rankwise.tasks.training_rows import tokenise_rows

    yaml = tiny_tasks.COLOURS_YAML.replace("test_split: test", "test_split: train")
    (tasks_folder / "colours.yaml").write_text(yaml)
    task = loaded("colours", tasks_folder)
    rows = rows_of(task, tokenizer, chat_template=chat_template)
    examples = tokenise_rows(rows, tokenizer, TrainConfig(task="colours"), 256)
    scored = prepared(task, tokenizer, chat_template=chat_template)
    right = [
        request
        for request in scored.requests
        if scored.instances[request.instance].idx == scored.instances[request.instance].doc["label"]
    ]
    for example, request in zip(examples, right, strict=True):
        assert example.tokens == (
            request.context + request.continuation + (tokenizer.eos_token_id,)
        )
        assert example.num_loss_tokens == len(request.continuation) + 1
    assert not any(row.is_written for row in rows)


@pytest.mark.parametrize("chat_template", [False, True])
def test_a_generation_is_trained_behind_the_prompt_that_is_continued(
    tasks_folder: Path, tokenizer: Any, chat_template: bool
) -> None:
    yaml = tiny_tasks.SUMS_YAML.replace("test_split: test", "test_split: train")
    (tasks_folder / "sums.yaml").write_text(yaml)
    task = loaded("sums", tasks_folder)
    rows = rows_of(task, tokenizer, chat_template=chat_template)
    prompts = [i.args[0] for i in prepared(task, tokenizer, chat_template=chat_template).instances]
    assert [row.prompt for row in rows] == prompts
    assert all(row.is_written for row in rows)
    space = "" if chat_template else " "
    sums = [a + b for a in range(4) for b in range(4)]
    assert [row.completion for row in rows] == [f"{space}{value}{END}" for value in sums]


def test_a_prefix_of_the_answer_is_part_of_the_prompt(tokenizer: Any) -> None:
    generation = task_of([{"question": "2+2?", "answer": "4"}], gen_prefix="It is", **GENERATION)
    for chat_template in (False, True):
        (row,) = rows_of(generation, tokenizer, chat_template=chat_template)
        assert row.prompt.endswith("It is")
        assert row.completion == f" 4{END}"
    (row,) = rows_of(task_of([ROW], gen_prefix="So", **CHOICE), tokenizer, chat_template=True)
    assert row.prompt.endswith("<|im_start|>assistant\nSo")
    assert row.completion == f" no{END}"


def test_a_description_is_the_system_s_turn(tokenizer: Any) -> None:
    task = task_of([ROW], description="Be brief.", **CHOICE)
    (row,) = rows_of(task, tokenizer, chat_template=True)
    assert row.prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nIs i")
    assert row.prompt == prepared(task, tokenizer, chat_template=True).instances[0].args[0]


def test_targets_that_are_texts_lists_or_options_of_the_prompt(tokenizer: Any) -> None:
    by_text = task_of([ROW | {"label": "no"}], **CHOICE)
    assert pairs_of(by_text, tokenizer) == [("Is it?", f" no{END}")]
    several = task_of(
        [{"question": "Q?", "answer": ["one", "1"]}], **(GENERATION | {"doc_to_target": "answer"})
    )
    assert pairs_of(several, tokenizer) == [("Q?", f" one{END}")]
    end_is_given = {
        "doc_to_text": "{{label}}",
        "doc_to_target": "{{ending}}",
        "doc_to_choice": "{{options}}",
    }
    row = {"options": ["The cup", "The jar"], "label": 1, "ending": "was big."}
    by_context = task_of([row], **(CHOICE | end_is_given))
    assert pairs_of(by_context, tokenizer) == [("The jar", f" was big.{END}")]


def test_max_examples_takes_the_first(tasks_folder: Path, tokenizer: Any) -> None:
    task = loaded("colours", tasks_folder)
    everything = rows_of(task, tokenizer)
    assert rows_of(task, tokenizer, max_examples=3) == everything[:3]
    assert rows_of(task, tokenizer, max_examples=999) == everything


def test_a_task_without_a_training_split(
    tasks_folder: Path, tokenizer: Any, sentence: Sentences
) -> None:
    yaml = tiny_tasks.COLOURS_YAML.replace("training_split: train\n", "")
    (tasks_folder / "colours.yaml").write_text(yaml)
    with pytest.raises(TaskError) as caught:
        rows_of(loaded("colours", tasks_folder), tokenizer)
    sentence(caught.value, names=("colours", "train.data"))


def test_a_training_split_that_the_data_do_not_have(
    tasks_folder: Path, tokenizer: Any, sentence: Sentences
) -> None:
    yaml = tiny_tasks.COLOURS_YAML.replace("training_split: train", "training_split: trian")
    (tasks_folder / "colours.yaml").write_text(yaml)
    with pytest.raises(TaskError) as caught:
        rows_of(loaded("colours", tasks_folder), tokenizer)
    sentence(caught.value, names=("colours",))


def test_prose_and_an_empty_split_cannot_be_trained_on(
    tasks_folder: Path, tokenizer: Any, sentence: Sentences
) -> None:
    yaml = tiny_tasks.PROSE_YAML.replace(
        "test_split: test", "test_split: test\ntraining_split: test"
    )
    (tasks_folder / "small_prose.yaml").write_text(yaml)
    with pytest.raises(TaskError) as caught:
        rows_of(loaded("small_prose", tasks_folder), tokenizer)
    sentence(caught.value, "small_prose", names=("small_prose",))
    with pytest.raises(DataError) as caught:
        rows_of(task_of([], [ROW], **CHOICE), tokenizer)
    sentence(caught.value, "own", names=("own",))


@pytest.mark.parametrize(
    ("row", "config", "named"),
    [
        (ROW | {"label": 2}, CHOICE, "target 2 of 2"),
        (ROW | {"label": -1}, CHOICE, "target -1 of 2"),
        (ROW | {"label": None}, CHOICE, "target None of 2"),
        (ROW | {"options": []}, CHOICE, "target 1 of 0"),
        (ROW | {"options": ["yes", " "]}, CHOICE, "empty"),
        ({"question": "Q?", "answer": ""}, GENERATION, "empty"),
        (
            {"question": "Q?", "answer": None},
            GENERATION | {"doc_to_target": "answer"},
            "empty",
        ),
    ],
    ids=["too large", "negative", "none", "no options", "blank option", "empty", "no target"],
)
def test_a_row_without_an_answer_names_task_and_row(
    tokenizer: Any, row: dict[str, Any], config: dict[str, Any], named: str, sentence: Sentences
) -> None:
    good = {"question": "Q?", "answer": "4"} if config["output_type"] != "multiple_choice" else ROW
    with pytest.raises(DataError) as caught:
        rows_of(task_of([good, good, row], **config), tokenizer)
    sentence(caught.value, names=("row 2", "'own'", named))
    rows = rows_of(task_of([good, good, row], **config), tokenizer, max_examples=2)
    assert len(rows) == 2  # what is not used is not complained about


# requests


def test_chance_is_the_item_mean_of_one_over_options(tokenizer: Any) -> None:
    rows = [ROW, ROW | {"options": ["a", "b", "c", "d"]}, ROW | {"options": ["a", "b", "c"]}]
    assert prepared(task_of(rows, **CHOICE), tokenizer).chance == pytest.approx(13 / 36)
    generation = task_of([{"question": "Q?", "answer": "4"}], **GENERATION)
    assert prepared(generation, tokenizer).chance == 0.0


def test_prose_has_no_chance(tasks_folder: Path, tokenizer: Any) -> None:
    assert prepared(loaded("small_prose", tasks_folder), tokenizer).chance is None


def test_a_limit_changes_nothing_in_what_is_asked(tasks_folder: Path, tokenizer: Any) -> None:
    everything = prepared(loaded("colours", tasks_folder), tokenizer)
    few = prepared(loaded("colours", tasks_folder), tokenizer, limit=4)
    assert (everything.num_items, few.num_items, few.limit) == (26, 4, 4)
    chosen = [
        r for r in everything.requests if everything.instances[r.instance].doc_id in few.doc_ids
    ]
    assert [r._replace(instance=0) for r in few.requests] == [
        r._replace(instance=0) for r in chosen
    ]
    assert prepared(loaded("colours", tasks_folder), tokenizer, limit=999).num_items == 26


def test_tokens_are_counted_and_say_the_prompt(tasks_folder: Path, tokenizer: Any) -> None:
    task = prepared(loaded("colours", tasks_folder), tokenizer)
    for request, instance in zip(task.requests, task.instances, strict=True):
        assert tokenizer.decode(request.context + request.continuation) == "".join(instance.args)
        assert tokenizer.decode(request.continuation) == instance.args[1]
    texts = [tokenizer.encode("".join(instance.args)) for instance in task.instances]
    assert task.num_tokens == sum(len(tokens) - 1 for tokens in texts)
    prefixes = {tuple(tokens[:end]) for tokens in texts for end in range(1, len(tokens))}
    assert task.num_distinct_tokens == len(prefixes) < task.num_tokens


@pytest.mark.parametrize("shots", [0, 1, 3])
def test_few_shot_examples_stand_before_the_question(
    tasks_folder: Path, tokenizer: Any, shots: int
) -> None:
    task = prepared(loaded("colours", tasks_folder), tokenizer, num_fewshot=shots)
    assert task.num_fewshot == shots
    for prompt, _ in (instance.args for instance in task.instances):
        assert len(re.findall(r"Answer: \w+\n\n", prompt)) == shots
        assert prompt.count("Question:") == shots + 1


def test_the_task_s_own_number_of_shots(tasks_folder: Path, tokenizer: Any) -> None:
    (tasks_folder / "colours.yaml").write_text(f"{tiny_tasks.COLOURS_YAML}num_fewshot: 2\n")
    assert prepared(loaded("colours", tasks_folder), tokenizer, num_fewshot=None).num_fewshot == 2
    assert prepared(loaded("colours", tasks_folder), tokenizer, num_fewshot=1).num_fewshot == 1
    (tasks_folder / "colours.yaml").write_text(f"{tiny_tasks.COLOURS_YAML}num_fewshot: 0\n")
    assert prepared(loaded("colours", tasks_folder), tokenizer, num_fewshot=1).num_fewshot == 0
    (tasks_folder / "colours.yaml").write_text(tiny_tasks.COLOURS_YAML)
    assert prepared(loaded("colours", tasks_folder), tokenizer, num_fewshot=None).num_fewshot == 0


def test_few_shot_examples_as_turns_of_their_own(tasks_folder: Path, tokenizer: Any) -> None:
    options = {"num_fewshot": 2, "chat_template": True, "limit": 1}
    one = prepared(loaded("colours", tasks_folder), tokenizer, **options)
    turns = prepared(
        loaded("colours", tasks_folder), tokenizer, fewshot_as_multiturn=True, **options
    )
    assert one.instances[0].args[0].count("<|im_start|>user") == 1
    assert turns.instances[0].args[0].count("<|im_start|>user") == 3
    assert turns.instances[0].args[0].count("<|im_start|>assistant") == 3


def test_more_shots_than_examples(tokenizer: Any, sentence: Sentences) -> None:
    task = task_of([ROW], fewshot_split="train", **CHOICE)
    with pytest.raises(TaskError) as caught:
        prepared(task, tokenizer, num_fewshot=5)
    sentence(caught.value, names=("own", "num_fewshot"))


def test_long_contexts_lose_their_left_end_and_are_counted(tokenizer: Any) -> None:
    long = " ".join(f"word{i}" for i in range(60))
    task = task_of([ROW, ROW | {"question": long}], **CHOICE)
    whole = prepared(task_of([ROW | {"question": long}], **CHOICE), tokenizer, max_length=2000)
    cut = prepared(task, tokenizer, max_length=40)
    assert [request.is_truncated for request in cut.requests] == [False, False, True, True]
    for kept, full in zip(cut.requests[2:], whole.requests, strict=True):
        # the model reads all but the last token
        assert len(kept.context) + len(kept.continuation) - 1 == 40
        assert kept.context == full.context[-len(kept.context) :]
        assert kept.continuation == full.continuation


def test_a_generation_leaves_room_for_its_answer(tokenizer: Any) -> None:
    long = " ".join(f"word{i}" for i in range(60))
    task = task_of([{"question": long, "answer": "4"}], **GENERATION)
    (request,) = prepared(task, tokenizer, max_length=40).requests
    tokens = tokenizer.encode(long)
    assert request.is_truncated
    assert request.context == tuple(tokens[-35:])
    assert request.continuation == ()


def test_spaces_at_the_end_of_the_prompt_move_to_the_answer(tokenizer: Any) -> None:
    task = task_of([ROW | {"question": "Is it?  "}], target_delimiter="", **CHOICE)
    first, second = prepared(task, tokenizer).requests
    assert tokenizer.decode(first.context) == tokenizer.decode(second.context) == "Is it?"
    assert tokenizer.decode(first.continuation) == "  yes"
    assert tokenizer.decode(second.continuation) == "  no"


def test_an_empty_prompt_is_read_as_the_start_of_text(tokenizer: Any) -> None:
    task = task_of([ROW | {"question": ""}], **CHOICE)
    first, _ = prepared(task, tokenizer).requests
    assert first.context == (tokenizer.bos_token_id,)
    assert tokenizer.decode(first.continuation) == " yes"
    assert pairs_of(task, tokenizer) == [("", f" no{END}")]


def test_an_empty_option_cannot_be_scored(tokenizer: Any, sentence: Sentences) -> None:
    rows = [ROW, ROW | {"options": ["", "no"]}]
    with pytest.raises(DataError) as caught:
        prepared(task_of(rows, target_delimiter="", **CHOICE), tokenizer)
    sentence(caught.value, names=("own",))


def test_long_prose_is_scored_once_in_windows(tasks_folder: Path, tokenizer: Any) -> None:
    task = prepared(loaded("small_prose", tasks_folder), tokenizer, max_length=16, limit=2)
    for index, instance in enumerate(task.instances):
        windows = [request for request in task.requests if request.instance == index]
        assert len(windows) > 1
        assert max(len(w.context) + len(w.continuation) - 1 for w in windows) <= 16
        scored = [token for window in windows for token in window.continuation]
        assert scored == tokenizer.encode(instance.args[0])


def test_the_digest_is_of_everything_that_is_asked(tasks_folder: Path, tokenizer: Any) -> None:
    def digest(**options: Any) -> str:
        return prepared(loaded("colours", tasks_folder), tokenizer, **options).digest

    reference = digest()
    assert digest() == reference
    others = [
        digest(limit=5),
        digest(num_fewshot=1),
        digest(num_fewshot=2),
        digest(chat_template=True),
    ]
    text = (tasks_folder / "colours.py").read_text()
    (tasks_folder / "colours.py").write_text(text.replace('"coal"', '"black soot"'))
    others.append(digest())
    assert len({reference, *others}) == 6


def test_the_digest_sees_a_label_that_no_prompt_shows(tokenizer: Any) -> None:
    one, other = task_of([ROW], **CHOICE), task_of([ROW | {"label": 0}], **CHOICE)
    assert prepared(one, tokenizer).digest != prepared(other, tokenizer).digest


def test_the_digest_reads_a_function_of_a_filter_and_not_its_address(tokenizer: Any) -> None:
    """It is another object in every process."""

    def digest(function: Any) -> str:
        filters = [{"name": "own", "filter": [{"function": "custom", "filter_fn": function}]}]
        return prepared(task_of([ROW], **CHOICE, filter_list=filters), tokenizer).digest

    def first() -> Any:
        def keep_all(resps: Any, docs: Any) -> Any:
            return resps

        return keep_all

    def other() -> Any:
        def keep_all(resps: Any, docs: Any) -> Any:
            return [each[:1] for each in resps]

        return keep_all

    assert digest(first()) == digest(first())
    assert digest(first()) != digest(other())
    assert digest(functools.partial(first())) == digest(functools.partial(first()))
    assert digest(functools.partial(first(), docs=1)) != digest(functools.partial(first(), docs=2))


def test_an_answer_longer_than_the_model_reads_is_refused(
    tokenizer: Any, sentence: Sentences
) -> None:
    """lm-eval refuses it too; a score of what no model reads would mean nothing."""
    row = ROW | {"options": ["yes " * 40, "no"]}
    task = task_of([row], **CHOICE)
    assert prepared(task, tokenizer, max_length=400).requests
    with pytest.raises(DataError) as caught:
        prepared(task, tokenizer, max_length=12)
    sentence(caught.value, names=("12",))


# real items


def test_real_choices(shared_tasks: Path, tokenizer: Any) -> None:
    task = loaded("local_arc_easy", shared_tasks)
    docs = task.task.training_docs()
    rows = rows_of(task, tokenizer, max_examples=5)
    assert len(rows) == 5
    for doc, row in zip(docs, rows, strict=False):
        right = doc["choices"][ord(doc["answer"]) - ord("A")]
        assert row[:2] == (f"Question: {doc['question'].strip()}\nAnswer:", f" {right}{END}")
    scored = prepared(task, tokenizer, limit=5, max_length=2000)
    options = [len(task.task.test_docs()[doc_id]["choices"]) for doc_id in scored.doc_ids]
    assert len(scored.requests) == sum(options)
    assert scored.chance == pytest.approx(sum(1 / n for n in options) / 5)
    train = {doc["question"] for doc in docs}
    assert not any(instance.doc["question"] in train for instance in scored.instances)


def test_real_generations(shared_tasks: Path, tokenizer: Any) -> None:
    task = loaded("local_gsm8k", shared_tasks)
    docs = task.task.training_docs()
    rows = rows_of(task, tokenizer, max_examples=4)
    for doc, row in zip(docs, rows, strict=False):
        assert row[:2] == (f"Question: {doc['question']}\nAnswer:", f" {doc['rationale']}{END}")
        assert "####" in row.completion
    scored = prepared(task, tokenizer, limit=3, num_fewshot=2, max_length=4000)
    assert scored.num_fewshot == 0  # its file fixes it
    for instance, request in zip(scored.instances, scored.requests, strict=True):
        assert instance.args[0] == f"Question: {instance.doc['question']}\nAnswer:"
        assert tokenizer.decode(request.context) == instance.args[0]
        assert instance.args[1]["max_gen_toks"] == 256


def test_real_letters(shared_tasks: Path, tokenizer: Any) -> None:
    task = loaded("local_mmlu", shared_tasks)
    scored = prepared(task, tokenizer, limit=6, max_length=4000)
    assert scored.chance == 0.25
    answers = [instance.args[1] for instance in scored.instances]
    assert answers == [" A", " B", " C", " D"] * 6
    for instance in scored.instances:
        assert "\nA. " in instance.args[0]
        assert instance.args[0].endswith("\nAnswer:")
