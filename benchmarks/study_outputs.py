"""What the two sides of ``benchmarks.study`` found, and how far it differs."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.parity_tally import Scores, Tally, compare
from benchmarks.study_setting import GRID, LOOKS, read_json
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.recommendation import StudyRecommendation
from rankwise.records.spectra import MatrixSpectrum, SpectraRecord
from rankwise.records.study import TaskEvaluation
from rankwise.study.stages.spectra import AnalyseWeights
from rankwise.study.stages.stage import model_name


class Agreement(NamedTuple):
    """How far the scores of the same models differ.

    Attributes:
        tally: of items: answers, winning options, prompts.
        max_score_difference: of a task's score (0..1) of one model, over all its metrics.
        items: scored items of all models and tasks.
    """

    tally: Tally
    max_score_difference: float
    items: int

    def figures(self) -> dict[str, Any]:
        return {
            "max_score_difference": self.max_score_difference,
            "mismatched_decisions": self.tally.num_decision_mismatches,
            "items_compared": self.items,
            "max_difference_nats": self.tally.max_abs_log_likelihood_difference,
            "different_prompts": self.tally.num_hash_mismatches,
        }


def compare_scores(repeat: Path, name: str) -> Agreement:
    """Every model of a study of a repeat on every task, ours and the peer's.

    Raises:
        ValueError: the sides did not score the same items.
    """
    study = StudyFolder(repeat / name)
    agreement = Agreement(Tally(), 0.0, 0)
    for model in (BASE, *(run.name for run in study.read_study().runs)):
        peer = read_json(repeat / "peer" / name / f"{model}.json", {})  # of some seeds only
        for task, said in peer.items():
            record = study.read(study.evaluation_file(model, task), TaskEvaluation)
            ours = {f"{score.metric},{score.filter}": score.value for score in record.metrics}
            samples = study.read_samples(model, task)
            answered = {line["doc_id"] for line in samples}
            theirs = [line for line in said["samples"] if line["doc_id"] in answered]
            if len(theirs) < len(said["samples"]):  # a part of ours is estimated: no score of it
                ours = said["scores"]
            tally = compare(
                Scores(list(map(_with_pairs, samples)), ours, 0.0),
                Scores(list(map(_with_pairs, theirs)), said["scores"], 0.0),
            )
            off = max(abs(ours[metric] - value) for metric, value in said["scores"].items())
            agreement = Agreement(
                agreement.tally.plus(tally),
                max(agreement.max_score_difference, off),
                agreement.items + len(samples),
            )
    return agreement


def _with_pairs(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a file with its answers as lm-eval has them: pairs of nats and greedy flag."""
    answers = [[tuple(a) if isinstance(a, list) else a for a in given] for given in line["resps"]]
    return {**line, "resps": answers}


def compare_looks(repeats: Sequence[Path]) -> dict[str, Any]:
    """What a study until it is decided answered of the items of one look, and if it chose alike.

    Args:
        repeats: their folders; both values are None where the first has no such study.
    """
    if not read_json(repeats[0] / f"{LOOKS}-seconds.json"):
        return {"items_share_looks": None, "same_choice_looks": None}

    def answered(study: StudyFolder) -> int:
        record = study.read_study()
        return sum(
            study.read(study.evaluation_file(model_name(model), task), TaskEvaluation).num_examples
            for model in (None, *record.runs)
            for task in record.tasks_of(model)
        )

    def choices(study: StudyFolder) -> list[tuple[str, int | None]]:
        parts = study.read(study.recommendation_file, StudyRecommendation).by_train_task
        return [(part.outcome, part.rank) for part in parts]

    pairs = [(StudyFolder(repeat / LOOKS), StudyFolder(repeat / GRID)) for repeat in repeats]
    shares = [answered(until) / answered(once) for until, once in pairs]
    return {
        "items_share_looks": round(statistics.median(shares), 3),
        "same_choice_looks": all(choices(until) == choices(once) for until, once in pairs),
    }


def max_loss_difference(repeat: Path) -> float:
    """Of our loss from the peer's in any step of any run, relative to the peer's."""
    study = StudyFolder(repeat / GRID)
    worst = 0.0
    for run in study.read_study().runs:
        ours = [line["loss_nats"] for line in _lines(study.metrics_file(run.name))]
        peer = read_json(repeat / "peer" / "losses" / f"{run.name}.json")
        if peer is None:
            continue  # a seed that the peer did not train
        pairs = zip(ours, peer, strict=True)
        worst = max(worst, *(abs(mine - theirs) / theirs for mine, theirs in pairs))
    return worst


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for text in path.read_text(encoding="utf-8").splitlines():
        yield json.loads(text)


def compare_spectra(repeat: Path) -> dict[str, float]:
    """The largest differences of what both sides say of any matrix of any run."""
    study = StudyFolder(repeat / GRID)
    peer = read_json(repeat / "peer" / "spectra.json")
    similarity = value = 0.0
    intruders = counts = 0
    for run in study.read_study().runs:
        record = study.read(AnalyseWeights.path(study, run.name), SpectraRecord)
        if run.name not in peer:
            continue  # a seed that the peer did not analyse
        if {matrix.module for matrix in record.matrices} != peer[run.name].keys():
            raise ValueError(f"the sides analysed other matrices of {run.name}.")
        for matrix in record.matrices:
            said = peer[run.name][matrix.module]
            similarity = max([similarity, *_similarity_differences(matrix, said)])
            value = max([value, *_value_differences(matrix, said)])
            pairs = list(zip(_flat(matrix.change.intruders), _flat(said["intruders"]), strict=True))
            intruders += sum(mine != theirs for mine, theirs in pairs)
            counts += len(pairs)
    return {
        "max_similarity_difference": similarity,
        "max_value_difference": value,
        "different_intruder_counts": intruders,
        "intruder_counts": counts,
    }


def _similarity_differences(matrix: MatrixSpectrum, said: Mapping[str, Any]) -> Iterator[float]:
    """Of mean cosines and overlaps, on both sides of the matrix."""
    for side in ("left", "right"):
        change = getattr(matrix.change, side)
        for name, values in said[side].items():
            pairs = zip(getattr(change, name), values, strict=True)
            yield from (abs(mine - theirs) for mine, theirs in pairs)
        if matrix.full_overlap is not None:
            yield abs(getattr(matrix.full_overlap, side) - said["full_overlap"][side])


def _value_differences(matrix: MatrixSpectrum, said: Mapping[str, Any]) -> Iterator[float]:
    """Of shifts of singular values relative to the largest, and relative ones of the norms."""
    pairs = zip(matrix.change.value_shift, said["value_shift"], strict=True)
    yield from (abs(mine - theirs) for mine, theirs in pairs)
    for name in ("frobenius_norm", "spectral_norm"):
        theirs = said["update"][name]
        yield abs(getattr(matrix.update, name) - theirs) / theirs


def _flat(rows: Any) -> list[float]:
    return list(itertools.chain.from_iterable(rows))
