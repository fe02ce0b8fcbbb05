"""Heads of a study's run through the command line: records, errors, and planted heads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr

from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.frozen_adapters import FrozenPiece, carrying, load_frozen_adapter
from rankwise.engine.models.loading import load_frozen
from rankwise.engine.models.structure import model_skeleton
from rankwise.heads.answers import continuations, item_values, parts, questions
from rankwise.heads.interventions import Head
from rankwise.heads.layouts import head_layouts
from rankwise.heads.scorer import HeadScorer
from rankwise.records.files import read_record
from rankwise.records.folder import StudyFolder
from rankwise.records.heads import (
    HeadChanges,
    TaskHeadEffects,
)
from rankwise.records.study_file import load_config
from rankwise.study import context as study_context
from rankwise.study import head_effects
from rankwise.study.planning.plan import plan_study
from rankwise.study.reading import read_results
from rankwise.study.run import run_study
from rankwise.study.stages.graph import stages
from rankwise.study.stages.heads import CompareHeads
from rankwise.tasks.questions import LogLikelihood
from tests.support import records, tiny_tasks
from tests.support.command_line import rankwise, words
from tests.support.observers import Recorder
from tests.support.sentences import Sentences


class Finished:
    """A small study with an adapter and a full fine-tuning, run once."""

    def __init__(self, root: Path, model: Path) -> None:
        tiny_tasks.write_tiny_tasks(root / "tasks")
        self.file = root / "small.yaml"
        self.file.write_text(
            f"base_model: {model}\ntasks_path: tasks\nallow_task_code: true\n"
            "train: {task: colours, epochs: 1, precision: float32, learning_rate: {lora: 1e-2}}\n"
            "methods: {lora: {ranks: [2]}, full: {}}\n"
            "evaluation: {out_of_domain: [hues], limit: 8}\n"
            "analysis: {spectra: false, head_prompts: 6}\n"
        )
        self.folder = StudyFolder(root / "study")
        self.plan = plan_study(load_config(self.file, []))
        self.recorder = Recorder()
        self.results = run_study(self.plan, self.folder, self.recorder).results
        self.lora, self.full = self.plan.record.runs

    def heads(self, *arguments: object) -> Any:
        return rankwise("heads", self.folder.root, *arguments)


@pytest.fixture(scope="module")
def finished(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("heads"), tiny_model_folder)


def test_a_study_compares_the_heads_of_every_run(finished: Finished) -> None:
    assert finished.recorder.stages[-1] == ("heads", "heads")
    assert finished.recorder.done == pytest.approx(finished.recorder.work[0])
    for run in (finished.lora, finished.full):
        record = read_record(CompareHeads.path(finished.folder, run.name), HeadChanges)
        assert (record.num_prompts, record.tasks) == (6, ("colours",))
        assert record.num_groups == (2, 2)
        for change in record.changes:
            assert [len(row) for row in change.values] == [4, 4]
        output = record.change("output")
        assert output is not None
        assert min(map(min, output.values)) > 0
        assert {each.of for each in record.shares} == {"query", "key", "value", "output", "all"}
    again = Recorder()
    run_study(finished.plan, finished.folder, again)
    assert again.stages == []
    assert all(stage.is_finished(finished.folder) for stage in stages(finished.plan.record))


def test_changed_settings_compare_again(finished: Finished) -> None:
    plan = plan_study(load_config(finished.file, ["analysis.head_prompts=4"]))
    left = [s for s in stages(plan.record) if not s.is_finished(finished.folder)]
    assert [stage.kind for stage in left] == ["heads"]
    off = plan_study(load_config(finished.file, ["analysis.heads=false"]))
    assert all(stage.kind != "heads" for stage in stages(off.record))


@pytest.fixture(scope="module")
def ablated(finished: Finished) -> dict[str, TaskHeadEffects]:
    answered = finished.heads("--run", finished.lora.name[:12], "--tasks", "colours,hues", "--json")
    assert answered.exit_code == 0, answered.output
    content = json.loads(answered.stdout)
    found = [TaskHeadEffects.model_validate_json(json.dumps(each)) for each in content["effects"]]
    return {each.task: each for each in found}


def test_intact_scores_are_those_of_the_study(
    finished: Finished, ablated: dict[str, TaskHeadEffects]
) -> None:
    """By the task's own metric: the other number of an effect is p(right) already, in nats."""
    results = finished.results.of("colours").by_accuracy
    (lora,) = (each for each in results.runs if each.name == finished.lora.name)
    for task, relation in (("colours", "in_domain"), ("hues", "out_of_domain")):
        effects, evaluation = ablated[task], lora.evaluations[task]
        assert effects.relation == relation
        assert effects.adapted_score == pytest.approx(evaluation.decision.value)
        base = results.base.evaluations[task]
        assert effects.base_score == pytest.approx(base.decision.value)
        assert (effects.metric, effects.unit) == (evaluation.decision_metric, "points")
        assert len(effects.scores) == len(effects.answers) == 8
        assert effects.screen is None


@contextmanager
def hooked(model: Any, head: Head | None, layouts: Any) -> Iterator[None]:
    """A head's slice of what is projected set to zero, also for an adapter on the projection."""
    if head is None:
        yield
        return
    part = layouts[head.layer].columns(head.head)

    def silence(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        hidden = inputs[0].clone()
        hidden[..., part.span] = 0
        return (hidden,)

    handle = model.get_submodule(part.module).register_forward_pre_hook(silence)
    yield
    handle.remove()


def plain_values(finished: Finished, task: str, head: Head | None, adapted: bool) -> Any:
    """What lm-eval makes of a hooked model, a text at a time."""
    prepared = finished.plan.tasks[task]
    base: Any = load_frozen(finished.plan.base.folder, "float32", torch.device("cpu"))
    weights = finished.folder.weights_folder(finished.lora)
    adapter = load_frozen_adapter(base, AdapterFolder(weights), torch.float32)

    def texts() -> Iterator[LogLikelihood]:
        for item in continuations(prepared):
            with torch.no_grad():
                logits = base(torch.tensor([item.tokens_read])).logits[0]
            rows = logits[-len(item.continuation) :].log_softmax(-1)
            nats = rows.gather(1, torch.tensor(item.continuation)[:, None]).sum()
            yield LogLikelihood(float(nats), False)

    pieces = [FrozenPiece(adapter, 0, 10**6)] if adapted else []
    layouts = head_layouts(base)
    with carrying(base, [adapter]) as bank, bank.rows_of(pieces), hooked(base, head, layouts):
        answers = list(texts())
    return item_values(prepared, questions(prepared), answers, None)


@pytest.mark.parametrize("task", ["colours", "hues"])
def test_effects_and_controls_are_those_of_hooked_models(
    finished: Finished, ablated: dict[str, TaskHeadEffects], task: str
) -> None:
    layouts = head_layouts(model_skeleton(finished.plan.base.folder))
    targets = {name.rpartition(".")[2] for each in layouts for name in each.projections}
    assert {"q_proj", "o_proj"} <= targets
    head = Head(1, 3)
    effects = ablated[task]
    (score,) = (e for e in effects.scores if (e.layer, e.head) == head)
    (answer,) = (e for e in effects.answers if (e.layer, e.head) == head)
    for adapted, own, finer in (
        (True, score.effect, answer.effect),
        (False, score.control, answer.control),
    ):
        intact, changed = (plain_values(finished, task, h, adapted) for h in (None, head))
        assert own.estimate == pytest.approx(float((changed.values - intact.values).mean()))
        by_item = changed.answer_nats - intact.answer_nats
        assert finer.estimate == pytest.approx(float(by_item.mean()), abs=1e-4)
        assert finer.stderr == pytest.approx(float(by_item.std(ddof=1) / 8**0.5), rel=1e-2)
        assert finer.lower < finer.estimate < finer.upper


def test_what_is_there_is_not_computed_again(
    finished: Finished,
    ablated: dict[str, TaskHeadEffects],
    monkeypatch: pytest.MonkeyPatch,
    sentence: Sentences,
) -> None:
    monkeypatch.setattr(study_context, "load_frozen", None)  # would be called
    answered = finished.heads("--run", finished.lora.name, "--tasks", "colours,hues")
    assert answered.exit_code == 0
    sentence(answered.stdout, names=("8 heads", "8 items"), part=True)
    monkeypatch.undo()
    results = read_results(finished.folder)
    (lora, full) = results.runs
    assert {each.task for each in lora.head_effects} == set(ablated)
    assert full.head_effects == ()
    assert lora.head_changes is not None


def test_what_was_scored_before_a_stop_is_not_scored_again(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of one item: 7 of the run, then 7 of the base. One file is damaged, and one missing."""
    scored: list[int] = []
    score = HeadScorer.log_likelihoods

    def until(most: int) -> None:
        def limited(self: HeadScorer, items: Any, *arguments: Any) -> Any:
            if len(scored) == most:
                raise KeyboardInterrupt
            scored.append(len(items))
            return score(self, items, *arguments)

        scored.clear()
        monkeypatch.setattr(HeadScorer, "log_likelihoods", limited)

    asked = ("--run", finished.lora.name, "--tasks", "hues", "--items", 7, "--json")
    (whole,) = json.loads(finished.heads(*asked).stdout)["effects"]
    task = finished.plan.tasks["hues"]
    of_items = parts(task, 1)
    assert [sorted(items) for items in of_items] == [
        sorted(item.options) for item in questions(task)
    ]
    assert parts(task, 10**6) == [[number for items in of_items for number in items]]
    path = finished.folder.head_effects_file(finished.lora.name, "ablate", "hues", 7)
    kept = finished.folder.head_parts_folder(finished.lora.name, "ablate", "hues", 7)
    path.unlink()
    assert not kept.exists()
    monkeypatch.setattr(head_effects, "parts", lambda task, _: parts(task, 1))
    until(11)
    assert finished.heads(*asked).exit_code != 0
    assert not path.exists()
    files = sorted(kept.iterdir())
    assert len(files) == 11
    files[0].unlink()
    content = bytearray(files[1].read_bytes())
    content[200] ^= 1
    files[1].write_bytes(content)
    until(99)
    (again,) = json.loads(finished.heads(*asked).stdout)["effects"]
    assert len(scored) == 3 + 2
    assert not kept.exists()
    for one, other in zip(again["answers"], whole["answers"], strict=True):
        for part in ("effect", "control", "beyond_control"):
            assert one[part]["estimate"] == pytest.approx(other[part]["estimate"], abs=1e-5)
    path.unlink()


@pytest.mark.parametrize("items", [(), ("--items", 4)])
def test_other_items_than_the_study_scored_are_refused(
    finished: Finished, items: tuple[Any, ...]
) -> None:
    """Their effects would stand beside the study's scores, under its fingerprint."""
    file = finished.file.parent / "tasks" / "hues.yaml"
    written = file.read_text()
    file.write_text(written + 'doc_to_text: "Colour: {{question}}\\nAnswer:"\n')
    try:
        answered = finished.heads("--run", finished.lora.name, "--tasks", "hues", *items)
    finally:
        file.write_text(written)
    assert answered.exit_code == 2
    said = " ".join(answered.stderr.split())
    assert "hues: its items are no longer those that the study scored" in said


def test_a_screen_scores_the_first_heads_exactly(
    finished: Finished, ablated: dict[str, TaskHeadEffects]
) -> None:
    answered = finished.heads(
        *("--run", finished.lora.name, "--tasks", "colours", "--items", 6, "--top", 5, "--json")
    )
    (content,) = json.loads(answered.stdout)["effects"]
    assert content["num_items"] == 6
    screened = content["screen"]["heads"]
    assert len(screened) == 8
    scored = {(each["layer"], each["head"]) for each in screened if each["is_scored"]}
    assert scored == {(each["layer"], each["head"]) for each in content["answers"]}
    least = min(abs(e["expected_nats"]) for e in screened if e["is_scored"])
    most = max(abs(e["expected_nats"]) for e in screened if not e["is_scored"])
    assert len(scored) == 5
    assert least >= most
    assert content["num_heads"] == [4, 4]
    expected = {(e["layer"], e["head"]): e["expected_nats"] for e in screened}
    exact = {(e["layer"], e["head"]): e["effect"]["estimate"] for e in content["answers"]}
    by_hand = spearmanr([expected[h] for h in exact], list(exact.values())).statistic
    assert content["screen"]["rank_correlation"]["estimate"] == pytest.approx(by_hand)


def test_few_items_or_heads_take_nothing_from_what_is_there(
    finished: Finished, ablated: dict[str, TaskHeadEffects]
) -> None:
    """A screen of heads that were all scored is answered by them; a trial stands behind."""
    asked = ("--run", finished.lora.name, "--tasks", "colours", "--json")
    (content,) = json.loads(finished.heads(*asked, "--top", 3).stdout)["effects"]
    assert content["fingerprint"] == ablated["colours"].fingerprint
    (content,) = json.loads(finished.heads(*asked, "--items", 4).stdout)["effects"]
    assert content["num_items"] == 4
    (lora, _) = read_results(finished.folder).runs
    (kept,) = (each for each in lora.head_effects if each.task == "colours")
    assert kept == ablated["colours"]


def test_more_items_than_the_study_scored_can_be_asked(finished: Finished) -> None:
    asked = ("--run", finished.lora.name, "--tasks", "hues", "--items", 12, "--top", 1, "--json")
    (content,) = json.loads(finished.heads(*asked).stdout)["effects"]
    assert content["num_items"] == 12


def test_effects_on_a_task_that_has_changed_are_not_shown(
    finished: Finished, ablated: dict[str, TaskHeadEffects]
) -> None:
    study = finished.results.study
    name = finished.lora.name
    assert {each.task for each in finished.folder.head_effects(study, name)} == set(ablated)
    changed = study.task_fingerprints | {"hues": "of other items"}
    study = study.model_copy(update={"task_fingerprints": changed})
    assert {each.task for each in finished.folder.head_effects(study, name)} == {"colours"}


def test_a_full_fine_tuning_is_ablated_by_means(finished: Finished) -> None:
    asked = ("--run", finished.full.name, "--tasks", "hues")
    answered = finished.heads(*asked, "--mode", "ablate-mean", "--json")
    (content,) = json.loads(answered.stdout)["effects"]
    runs = finished.results.of("colours").by_accuracy.runs
    (full,) = (each for each in runs if each.name == finished.full.name)
    assert content["adapted_score"] == pytest.approx(full.evaluations["hues"].decision.value)


@pytest.mark.parametrize(
    ("run", "tasks", "named"),
    [
        ("colours-lora-r003", "hues", "colours-lora-r002"),
        ("colours", "hues", "colours"),
        ("colours-lora", "hue", "'hues'"),
        ("colours-lora", "sums", "generate_until"),
        ("colours-lora", " , ", "--tasks"),
    ],
)
def test_what_cannot_be_asked_is_said(
    finished: Finished,
    run: str,
    tasks: str,
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    sentence: Sentences,
) -> None:
    from rankwise.tasks import resolution

    manager = resolution._manager
    monkeypatch.setattr(
        resolution, "_manager", lambda path, everything: manager(path, everything=False)
    )
    answered = finished.heads("--run", run, "--tasks", tasks)
    assert answered.exit_code == 2
    sentence(words(answered.stderr), names=(named,))


def test_a_run_without_weights_is_refused(finished: Finished, sentence: Sentences) -> None:
    path = finished.folder.run_file(finished.lora.name)
    before = path.read_text()
    try:
        records.change(path, status="diverged")
        answered = finished.heads("--run", finished.lora.name, "--tasks", "hues")
        assert (answered.exit_code, "diverged" in words(answered.stderr)) == (1, True)
        path.unlink()
        answered = finished.heads("--run", finished.lora.name, "--tasks", "hues")
        assert answered.exit_code == 1
        sentence(words(answered.stderr), names=(finished.lora.name,))
    finally:
        path.write_text(before)


def planted(
    finished: Finished, folder: Path, heads: list[Head], size: float, seed: int = 0
) -> None:
    """An adapter whose delta is in these heads alone: o takes what they put out the wrong way."""
    source = finished.folder.weights_folder(finished.lora)
    layouts = head_layouts(model_skeleton(finished.plan.base.folder))
    tensors = load_file(source / "adapter_model.safetensors")
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        tensor.zero_() if "lora_A" in name else tensor.normal_(std=size, generator=draw)
    for layer, head in heads:
        part = layouts[layer].columns(head)
        lora_A = tensors[f"base_model.model.{part.module}.lora_A.weight"]
        lora_A[:, part.span].normal_(generator=draw)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = (source / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text(config)


def imported(finished: Finished, root: Path) -> tuple[StudyFolder, str, Any]:
    """A study of the planted adapter alone: its folder, the run and the results."""
    entry = json.dumps([{"adapter": str(root / "adapter"), "name": "planted"}])
    config = load_config(
        finished.file,
        ["methods.lora=null", "methods.full=null", f"methods.imported={entry}",
         "evaluation.limit=26"],
    )  # fmt: skip
    folder = StudyFolder(root / "study")
    results = run_study(plan_study(config), folder, Recorder()).results
    return folder, results.study.runs[0].name, results


def test_planted_heads_are_found_by_their_ablation(finished: Finished, tmp_path: Path) -> None:
    """Delta reads two heads alone: ablating these changes answers most, and a screen knows it."""
    planted(finished, tmp_path / "adapter", [Head(0, 1), Head(1, 2)], 1.5)
    folder, name, results = imported(finished, tmp_path)
    answered = rankwise("heads", folder.root, "--run", name, "--tasks", "colours,hues")
    assert answered.exit_code == 0, answered.output
    for effects in folder.head_effects(results.study, name):
        sizes = {(e.layer, e.head): abs(e.effect.estimate) for e in effects.answers}
        least = min(sizes.pop((0, 1)), sizes.pop((1, 2)))
        assert least > 2 * max(sizes.values())
    shutil.rmtree(folder.model_folder(name) / "heads")
    answered = rankwise("heads", folder.root, "--run", name, "--tasks", "colours", "--top", 2)
    assert answered.exit_code == 0, answered.output
    (effects,) = folder.head_effects(results.study, name)
    assert {(e.layer, e.head) for e in effects.answers} == {(0, 1), (1, 2)}
