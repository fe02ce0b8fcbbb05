"""Scores of an audit: those of PEFT, paired, and of nothing that is wrong in its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.loading import load_tokenizer
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.records.audits import AuditRecord
from rankwise.records.files import read_record
from rankwise.tasks.requests import prepare_task
from rankwise.tasks.resolution import load_tasks
from rankwise.weights import session
from tests.support.audited_models import Q, adapter, checkpoint, load, merged, without_chat_template
from tests.support.command_line import audited, words

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def scored(base: Path, target: Path, output: Path, tasks: Path, *more: object) -> AuditRecord:
    names = (
        "--tasks",
        "colours,sums",
        "--tasks-path",
        tasks,
        "--allow-task-code",
        "--precision",
        "float32",
    )
    result = audited(base, target, output, *names, *more)
    assert result.exit_code == 0, result.stderr
    return read_record(output / "audit.json", AuditRecord)


def test_an_adapter_and_its_merged_checkpoint_have_the_same_scores(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    model = adapter(tiny_model_folder, tmp_path / "a", std=0.5)
    folder = merged(tiny_model_folder, tmp_path / "m", model)
    own, full = (
        scored(tiny_model_folder, target, tmp_path / f"{target.name}-out", tasks_folder)
        for target in (tmp_path / "a", folder)
    )
    for mine, its in zip(own.scores, full.scores, strict=True):
        one, other = (
            {**score.model_dump(), **score.difference.model_dump(), "difference": 0, "accuracy": 0}
            for score in (mine, its)
        )
        rounded = {
            name: pytest.approx(value, rel=1e-4, abs=1e-6)
            for name, value in other.items()
            if isinstance(value, float)
        }
        assert one == other | rounded
        assert mine.accuracy == its.accuracy
    assert own.precision == "float32"
    colours, sums = own.scores
    assert (colours.task, colours.num_examples, sums.num_examples) == ("colours", 26, 8)
    assert colours.difference.estimate == pytest.approx(colours.adapted_score - colours.base_score)
    assert colours.base_score != colours.adapted_score
    assert colours.difference.lower < colours.difference.estimate < colours.difference.upper
    assert colours.base_stderr > 0
    assert colours.num_learned is not None
    assert colours.num_forgotten is not None
    net = 100 * (colours.num_learned - colours.num_forgotten) / 26
    assert colours.accuracy is not None
    assert net == pytest.approx(colours.accuracy.difference.estimate)
    assert sums.accuracy is None
    said = [text for text in own.statements if text.startswith("On colours it ")]
    assert "; accuracy " in said[0]
    assert "n\u00a0=\u00a026" in said[0]
    page = (tmp_path / "a-out" / "audit.html").read_text()
    assert "On colours it " in page


def test_scores_are_those_of_peft(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    """Right answers and their p(right), recomputed from PEFT's own forward pass."""
    model = adapter(tiny_model_folder, tmp_path / "a", std=0.5).eval()
    record = scored(tiny_model_folder, tmp_path / "a", tmp_path / "out", tasks_folder)
    tokenizer = load_tokenizer(tiny_model_folder)
    found: Any = load_tasks(["colours"], (tasks_folder,), allow_code=True)
    (task,) = found["colours"]
    prepared = prepare_task(
        task, tokenizer, max_length=256, num_fewshot=None, limit=None, chat_template=False
    )
    by_doc: dict[int, list[float]] = {}
    with torch.no_grad():
        for request in prepared.requests:
            ids = torch.tensor([request.context + request.continuation])
            logits: Tensor = model(ids).logits.float().log_softmax(-1)
            own = range(len(request.context) - 1, ids.shape[1] - 1)
            nats = sum(float(logits[0, at, ids[0, at + 1]]) for at in own)
            by_doc.setdefault(prepared.instances[request.instance].doc_id, []).append(nats)
    labels = [int(doc["label"]) for doc in task.task.test_docs()]
    right = [max(range(len(n)), key=n.__getitem__) == labels[doc] for doc, n in by_doc.items()]
    shares = [
        float(torch.tensor(nats, dtype=torch.float64).softmax(0)[labels[doc]])
        for doc, nats in by_doc.items()
    ]
    assert record.scores[0].metric == "p_right"
    assert record.scores[0].adapted_score == pytest.approx(100 * sum(shares) / 26, rel=1e-4)
    accuracy = record.scores[0].accuracy
    assert accuracy is not None
    assert (accuracy.metric, len(right)) == ("acc", 26)
    assert accuracy.adapted_score == pytest.approx(100 * sum(right) / len(right))


def test_limits_and_few_shot_examples_are_as_elsewhere(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    adapter(tiny_model_folder, tmp_path / "a")
    more = ("--limit", 5, "--num-fewshot", 2)
    record = scored(tiny_model_folder, tmp_path / "a", tmp_path / "out", tasks_folder, *more)
    for each in record.scores:
        assert (each.num_examples, each.limit, each.num_fewshot) == (5, 5, 2)


def test_a_zero_adapter_scores_as_its_base(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    adapter(tiny_model_folder, tmp_path / "a", std=0.0)
    record = scored(tiny_model_folder, tmp_path / "a", tmp_path / "out", tasks_folder)
    assert [each.difference.estimate for each in record.scores] == [0.0, 0.0]


def test_an_adapter_that_was_not_applied_is_no_result(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter(tiny_model_folder, tmp_path / "a")
    adapter(tiny_model_folder, tmp_path / "zero", std=0.0)
    zero = AdapterFolder(tmp_path / "zero")
    put_on = ResidentScorer.put_on
    monkeypatch.setattr(ResidentScorer, "put_on", lambda self, name, _: put_on(self, name, zero))
    names = ("--tasks", "colours", "--tasks-path", tasks_folder, "--allow-task-code")
    result = audited(tiny_model_folder, tmp_path / "a", tmp_path / "out", *names)
    assert result.exit_code == 1
    assert "UnchangedOutputsError" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_base_that_is_scored_in_a_checkpoint_s_place_is_no_result(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[f"{Q}.weight"] *= 1.5

    target = checkpoint(tiny_model_folder, tmp_path / "c", change)
    load = session.load_to_score
    monkeypatch.setattr(session, "load_to_score", lambda _, *rest: load(tiny_model_folder, *rest))
    names = ("--tasks", "colours", "--tasks-path", tasks_folder, "--allow-task-code")
    result = audited(tiny_model_folder, target, tmp_path / "out", *names)
    assert result.exit_code == 1
    assert "UnchangedOutputsError" in result.stderr


# what cannot be scored


@pytest.fixture
def nothing_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    def scored_all_the_same(*_: Any, **__: Any) -> None:
        raise AssertionError("a task was scored")

    monkeypatch.setattr(session, "evaluate", scored_all_the_same)


def refused(base: Path, target: Path, tasks: Path, output: Path, *more: object) -> str:
    names = ("--tasks", "colours,sums", "--tasks-path", tasks, "--allow-task-code")
    result = audited(base, target, output, *names, *more)
    assert result.exit_code == 2, result.stderr
    assert not output.exists()
    return words(result.stderr)


@pytest.mark.usefixtures("nothing_is_scored")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_found_before_the_scores(
    bad: float, tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    target = checkpoint(
        tiny_model_folder, tmp_path / "c", lambda t: t[f"{Q}.weight"].view(-1)[:1].fill_(bad)
    )
    said = refused(tiny_model_folder, target, tasks_folder, tmp_path / "out")
    assert f"NaN or infinite weights in {Q}" in said
    adapter(tiny_model_folder, tmp_path / "a")
    said = refused(target, tmp_path / "a", tasks_folder, tmp_path / "out", "--any-base")
    assert f"NaN or infinite weights in {Q}" in said


@pytest.mark.usefixtures("nothing_is_scored")
def test_weights_that_are_missing_are_found_before_the_scores(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    target = checkpoint(tiny_model_folder, tmp_path / "c", lambda t: t.pop(f"{Q}.weight"))
    said = refused(tiny_model_folder, target, tasks_folder, tmp_path / "out")
    assert "lacks 1 of its model's weights" in said


def resized(base: Path, folder: Path, **sizes: int) -> Path:
    config = json.loads((base / "config.json").read_text())
    LlamaForCausalLM(LlamaConfig(**(config | sizes))).save_pretrained(folder)
    return folder


@pytest.mark.usefixtures("nothing_is_scored")
def test_other_shapes_are_found_before_the_scores(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    target = resized(tiny_model_folder, tmp_path / "c", intermediate_size=80)
    said = refused(tiny_model_folder, target, tasks_folder, tmp_path / "out")
    assert "is no fine-tuning of" in said
    assert "model.layers.0.mlp.gate_proj: matrices of shape (96, 48) and (80, 48)" in said


@pytest.mark.usefixtures("nothing_is_scored")
def test_a_smaller_vocabulary_cannot_read_the_base_s_tokens(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    size = len(load_tokenizer(tiny_model_folder))
    target = resized(tiny_model_folder, tmp_path / "c", vocab_size=size - 1)
    said = refused(tiny_model_folder, target, tasks_folder, tmp_path / "out")
    assert f"has vocab_size {size - 1}" in said
    assert audited(tiny_model_folder, target, tmp_path / "weights").exit_code == 0


def test_a_larger_vocabulary_is_scored(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    model = load(tiny_model_folder)
    model.get_submodule(Q).weight.data *= 1.5
    model.resize_token_embeddings(model.config.vocab_size + 8)
    model.save_pretrained(tmp_path / "c")
    record = scored(tiny_model_folder, tmp_path / "c", tmp_path / "out", tasks_folder)
    assert [each.task for each in record.scores] == ["colours", "sums"]


# chat templates


def test_a_chat_template_is_recorded(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    adapter(tiny_model_folder, tmp_path / "a", std=0.5)
    plain, chat = (
        scored(tiny_model_folder, tmp_path / "a", tmp_path / name, tasks_folder, *more)
        for name, more in (("plain", ()), ("chat", ("--chat-template",)))
    )
    assert [each.chat_template for each in plain.scores] == [False, False]
    assert [each.chat_template for each in chat.scores] == [True, True]


@pytest.mark.usefixtures("nothing_is_scored")
def test_a_chat_template_that_is_not_there_is_refused(
    tiny_model_folder: Path, tasks_folder: Path, tmp_path: Path
) -> None:
    adapter(tiny_model_folder, tmp_path / "a")
    base = without_chat_template(tiny_model_folder, tmp_path / "base")
    more = ("--any-base", "--chat-template")
    said = refused(base, tmp_path / "a", tasks_folder, tmp_path / "out", *more)
    assert "ConfigError" in said
    assert "--chat-template: the tokenizer of" in said
