"""``benchmarks.study`` on a random model: both sides do the same study and agree about it."""

from __future__ import annotations

import contextlib
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks import study, study_ours, study_outputs, study_setting
from benchmarks.study_setting import GRID, LOOKS, PARTS, keep_json, read_json
from rankwise.records.folder import BASE, StudyFolder

ROOT = Path(__file__).resolve().parents[1]


class Done(NamedTuple):
    """A finished benchmark: where it kept its parts, and what it printed."""

    out: Path
    figures: dict[str, Any]
    last: dict[str, Any]
    progress: str


def finished(out: Path, *options: str) -> Done:
    """The benchmark in this process, its sides in others."""
    said, progress = io.StringIO(), io.StringIO()
    command = ["--tiny", "--precision", "float32", "--out", str(out), *options]
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(progress),
        pytest.raises(SystemExit) as ended,
    ):
        study.main(command)
    if ended.value.code:
        pytest.fail(f"{ended.value.code} {progress.getvalue()[-4000:]}")
    *figures, last = said.getvalue().splitlines()
    return Done(out, json.loads("\n".join(figures)), json.loads(last), progress.getvalue())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return finished(tmp_path_factory.mktemp("study"), "--looks", "4")


@pytest.fixture
def repeat(done: Done, tmp_path: Path) -> Path:
    """A copy of the repeat, to be spoilt."""
    shutil.copy(done.out / "setting.json", tmp_path)
    shutil.copytree(done.out / "repeat-1", tmp_path / "repeat-1")
    return tmp_path / "repeat-1"


def test_the_last_line_has_the_figures_that_are_documented(done: Done) -> None:
    assert tuple(done.last) == study.LAST_LINE
    text = (ROOT / "docs" / "PERFORMANCE.md").read_text(encoding="utf-8")
    for name in done.last:
        assert f"`{name}`" in text
    for name in ("end_to_end", "training", "scoring", "spectra"):
        assert 0 < done.last[f"ratio_{name}"] < math.inf


def test_both_sides_did_every_part(done: Done) -> None:
    (parts,) = done.figures["seconds_ours_and_peer"]
    for part in PARTS:
        assert min(parts[part]) > 0
        assert f"{part}: ours" in done.progress
    for part in ("plan", "gauges", "conclude"):
        assert parts[part][0] > 0
        assert parts[part][1] == 0
    verdict = read_json(done.out / "repeat-1" / GRID / "recommendation.json")
    assert [each["train_task"] for each in verdict["by_train_task"]] == ["colours"]


def test_looks_say_what_is_due_to_fewer_items(done: Done) -> None:
    """Eight items settle nothing, so all are answered, and the choice is that of one look."""
    looks = read_json(done.out / "repeat-1" / LOOKS / "looks.json")
    (of,) = looks["by_train_task"]
    assert [look["share"] for look in of["looks"]] == [0.25, 0.5, 0.75, 1.0]
    assert (done.last["items_share_looks"], done.last["same_choice_looks"]) == (1.0, True)
    both = done.last["ratio_end_to_end"] * done.last["ratio_of_fewer_items"]
    assert done.last["ratio_to_verdict_looks"] == pytest.approx(both, rel=0.01)


def test_the_sides_agree(done: Done) -> None:
    """Base, two ranks and full fine-tuning, 8 items of each of three tasks."""
    assert done.last["mismatched_decisions_float32"] == 0
    assert done.last["max_score_difference"] == 0
    (scores,) = done.figures["scores"]
    assert scores["items_compared"] == 4 * 8 * 3
    assert scores["different_prompts"] == 0
    assert 0 < scores["max_difference_nats"] < 1e-4
    assert done.figures["loss_max_relative_difference"] < 1e-5
    (spectra,) = done.figures["spectra"]
    assert 0 < spectra["max_similarity_difference"] < 1e-3
    assert 0 < spectra["max_value_difference"] < 1e-4
    assert spectra["different_intruder_counts"] == 0
    assert spectra["intruder_counts"] > 0


def test_calling_again_does_nothing_again(done: Done) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.out.glob("repeat-1/**/*.json")}
    again = finished(done.out, "--looks", "4")
    assert again.last == done.last
    assert again.progress.count("ours") == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.thorough
def test_seeds_that_the_peer_does_not_do_count_like_those_it_does(tmp_path: Path) -> None:
    counted = ("--seeds", "2", "--peer-seeds", "1", "--peer-ranks", "4")
    one = finished(tmp_path, *counted, "--no-narrow")
    assert one.last["mismatched_decisions_float32"] == 0
    assert one.figures["scores"][0]["items_compared"] == 3 * 8 * 3  # base, rank 4 and full
    seconds = read_json(tmp_path / "repeat-1" / "peer-seconds.json")
    for part, number in (("train adapters", 4), ("score adapters", 4), ("score full", 2)):
        assert len(seconds[part]) == number
        distinct = {tuple(each) for each in seconds[part].values()}
        assert len(distinct) == {"train adapters": 3, "score adapters": 1, "score full": 1}[part]


def test_a_part_that_is_missing_is_done_again_alone(
    repeat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = repeat / "peer-seconds.json"
    seconds = read_json(path)
    keep_json(path, {part: seconds[part] for part in seconds if part != "spectra"})
    orders: list[tuple[str, str]] = []

    class Side:
        def __init__(self, folder: Path, worker: str) -> None:
            self.worker = worker

        def order(self, what: str) -> None:
            orders.append((self.worker, what))
            keep_json(path, seconds)

        def answer(self) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(study, "Side", Side)
    study.measure(repeat, study_setting.read_setting(repeat.parent))
    assert orders == [("peer", "tune"), ("peer", "spectra")]


def test_another_study_in_the_folder_is_refused(done: Done) -> None:
    with pytest.raises(SystemExit, match="holds another study"):
        study.main(["--tiny", "--precision", "bfloat16", "--out", str(done.out)])


def test_a_changed_answer_is_seen(repeat: Path) -> None:
    """A losing option of one item of one model wins, by likelihood and per character."""
    path = repeat / "peer" / GRID / f"{BASE}.json"
    peer = read_json(path)
    options = peer["colours"]["samples"][3]["resps"]
    nats = [answer[0][0] for answer in options]
    options[nats.index(min(nats))][0][0] = 1.0
    peer["colours"]["scores"]["acc,none"] += 0.05
    keep_json(path, peer)
    found = study_outputs.compare_scores(repeat, GRID)
    assert found.tally.num_decision_mismatches == 2
    assert found.tally.max_abs_log_likelihood_difference > 1e-3
    assert found.max_score_difference == pytest.approx(0.05)


def test_a_changed_spectrum_and_a_changed_loss_are_seen(repeat: Path) -> None:
    path = repeat / "peer" / "spectra.json"
    peer = read_json(path)
    matrix = next(iter(next(iter(peer.values())).values()))
    matrix["left"]["overlap"][0] += 0.1
    matrix["update"]["spectral_norm"] *= 2
    matrix["intruders"][0][0] += 1
    keep_json(path, peer)
    found = study_outputs.compare_spectra(repeat)
    assert found["max_similarity_difference"] == pytest.approx(0.1, abs=1e-3)
    assert found["max_value_difference"] == pytest.approx(0.5, abs=1e-3)
    assert found["different_intruder_counts"] == 1
    (path, *_) = (repeat / "peer" / "losses").iterdir()
    losses = read_json(path)
    keep_json(path, [*losses[:-1], losses[-1] / 2])
    assert study_outputs.max_loss_difference(repeat) == pytest.approx(1.0, abs=1e-3)


def test_time_that_nobody_kept_is_refused(done: Done) -> None:
    folder = StudyFolder(done.out / "repeat-1" / GRID)
    seconds = read_json(done.out / "repeat-1" / f"{GRID}-seconds.json")
    study_ours.require_seconds(folder.read_study(), folder, seconds)
    del seconds["train full"]
    with pytest.raises(SystemExit, match="how long training"):
        study_ours.require_seconds(folder.read_study(), folder, seconds)


def test_ratios_of_planted_seconds() -> None:
    ours = {
        "plan": {"plan": [1.0, 1.0]},
        "train adapters": {"a": [2.0, 4.0]},
        "train full": {"full": [2.0, 1.0]},
        "score base": {"x": [1.0, 1.0], "y": [1.0, 1.0]},
        "spectra": {"all": [3.0, 3.0]},
    }
    peer = {
        "train adapters": {"r8": [3.0, 3.0], "r16": [3.0, 3.0]},
        "train full": {"full": [6.0, 4.0]},
        "score base": {"base": [10.0, 8.0]},
        "spectra": {"spectra": [6.0, 6.0]},
    }
    parts = study.seconds_by_part(ours, peer)
    assert parts["plan"] == [1.0, 0]
    assert study.ratios(parts) == {
        "ratio_end_to_end": 28 / 10,
        "ratio_training": 12 / 4,
        "ratio_scoring": 5.0,
        "ratio_spectra": 2.0,
    }
    of_cores = study.ratios(study.seconds_by_part(ours, peer, of_cores=True))
    assert of_cores["ratio_scoring"] == 4.0
    assert of_cores["ratio_training"] == 2.0
    assert study.narrow_ratio(parts, {}) is None
    assert study.narrow_ratio(parts, {"plan": {"a": [3.0, 9.0]}, "x": {"b": [4.0, 9.0]}}) == 4.0


def test_narrow_is_the_same_study_with_a_policy(done: Done) -> None:
    setting = study_setting.read_setting(done.out)
    narrow = setting.narrow()
    assert narrow.pop("search") == {"policy": "narrow", "validation_items": setting.items}
    assert narrow == setting.study()
    assert done.last["ratio_to_verdict_narrow"] > 0
