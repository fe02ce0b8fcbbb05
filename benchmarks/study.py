"""A whole study, with rankwise and with the script that it replaces: what does it save?

    python -m benchmarks.study [--precision auto] [--repeats 1] [--items 100] [--rows 48]
        [--looks 4] [--tiny]

The study: LoRA ranks 8, 16, 32, 64 and 128 on q/k/v/o and full fine-tuning, trained on Overruling;
base and all six scored on it, on MMLU by letter with 5 examples, and on ARC-Easy by the options'
own text; the spectra of every adapted matrix. Sizes are in the default study's proportion: 1,000
items of all tasks to 160 rows, which are read twice. Ours is one call of ``run_to_verdict``
(``study_ours``). The peer is a straight script (``study_peer``): peft and transformers' Trainer for
one run after another, lm-eval's ``simple_evaluate`` with HFLM for one model after another,
torch.linalg.svd.

Each side is one process; they alternate part by part, and the one that is not asked waits. Modules
are imported before the clock runs; everything else counts, such as loading models, building and
tokenising prompts, and writing weights. Our time also has planning, divergences from the
base, records, and the verdict; our cache of decompositions is empty. The peer's has none of
these, nor its trials (``peer-tuned.json``): attention and rows at once of training, and the batch
size of each task, are the fastest of a short trial before.

Both train the same tokens in the same order from the same weights, and losses are compared step by
step. The peer then scores and analyses our weights, so answers can be compared item by item:
``max_score_difference`` is of a model's score on a task (0..1), ``mismatched_decisions_float32``
counts winning options, by likelihood and per character, that differ; both in float32. A study
in bfloat16 is scored again in float32 for it, ``--float32-items`` of each task. Ratios are the
peer's seconds over ours, medians over repeats; beside other work on the machine, those of seconds
of its cores (``ratios_of_core_seconds``) say more. Threads of both sides sleep while they wait
(``OMP_WAIT_POLICY=passive``, as the command ``rankwise`` sets it), unless it is set otherwise.
``ratio_to_verdict_narrow`` is the peer's whole time over that of the same study with
``search.policy=narrow`` and as many validation items; null with ``--no-narrow``.

With ``--looks 4`` our side does the study once more with ``search.until=decided``: it answers the
items in quarters and stops at the first look that settles the verdict, and adds nothing after the
plan. ``ratio_to_verdict_looks`` is the peer's whole time over that; ``ratio_of_fewer_items``, our
whole time over that, is what of it is due to fewer items and to no faster work.
``items_share_looks`` is the share of the study's answers that were given, and ``same_choice_looks``
says whether outcome and rank are those of the one look at all items, in every repeat. All four are
null without it.

With ``--seeds 3 --reference 0.2`` our LoRA runs besides one answer a fifth of the items, and the
peer's answer all; answers are compared where ours are there. With ``--peer-seeds 1`` the peer
does one seed of each rank, and with ``--peer-ranks 8 128`` it scores two of the ranks; the others
are counted like the mean of these.

Everything finished is kept under ``--out``, with its seconds; calling again goes on. The last line
of output is one JSON object; the exit code is 1 if a decision differs in float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study_setting import (
    FLOAT32,
    GRID,
    LOOKS,
    NARROW,
    PARTS,
    ROOT,
    SHARED_TASKS,
    Setting,
    keep_json,
    read_json,
    read_setting,
    real_setting,
    repeats,
    tiny_setting,
    write_setting,
)
from rankwise.study.growing import NUM_LOOKS


class Side:
    """A side's process, seen from outside.

    Args:
        folder: of the repeat.
        worker: ``peer``, or the name of one of our studies.
    """

    def __init__(self, folder: Path, worker: str) -> None:
        command = [sys.executable, "-m", "benchmarks.study", "--worker", worker]
        cache = {"RANKWISE_CACHE": str(folder / f"{worker}-cache"), "HF_HUB_OFFLINE": "1"}
        passive = {"OMP_WAIT_POLICY": "passive"}  # as the command rankwise sets it
        self.name = worker
        self._process = subprocess.Popen(
            [*command, "--out", str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**passive, "TOKENIZERS_PARALLELISM": "false", **os.environ, **cache},
        )

    def order(self, what: str) -> None:
        """Tell it to begin with something."""
        assert self._process.stdin is not None
        try:
            print(what, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            sys.exit(f"{self.name} ended before it was asked to {what}.")

    def answer(self) -> str | None:
        """What it has done; the benchmark ends if the process did."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended in the middle of its work.")
        return json.loads(line)["done"]

    def close(self) -> None:
        """Let it end."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()


def measure(folder: Path, setting: Setting) -> None:
    """One repeat: both sides, part by part; then what is compared in float32.

    Args:
        folder: of the repeat; what it has of an earlier call is kept.
        setting: of the study.
    """
    seconds, grid = folder / "peer-seconds.json", folder / f"{GRID}.yaml"
    if not grid.is_file():
        keep_json(grid, setting.study())
    is_complete = not set(PARTS) - read_json(seconds, {}).keys() and _is_finished(folder, GRID)
    needs_decisions = setting.precision != "float32" and not (folder / "decided").is_file()
    if not is_complete or needs_decisions:
        peer = Side(folder, "peer")
        if not is_complete:
            _alternate(folder, peer, seconds)
        if needs_decisions:
            _decide_in_float32(folder, setting, peer)
        peer.close()


def measure_narrow(folder: Path, setting: Setting) -> None:
    """Our side once more, as a search, in the folder of a repeat."""
    if not _is_finished(folder, NARROW):
        keep_json(folder / f"{NARROW}.yaml", setting.narrow())
        _run_whole(folder, NARROW)
        seconds = read_json(folder / f"{NARROW}-seconds.json")
        _say(f"{folder.name}, narrow: ours {whole_seconds(seconds):.1f} s")


def measure_looks(folder: Path, setting: Setting) -> None:
    """Our side once more, until a look settles it, in the folder of a repeat."""
    if not _is_finished(folder, LOOKS):
        keep_json(folder / f"{LOOKS}.yaml", setting.until_decided())
        _run_whole(folder, LOOKS)
        seconds = read_json(folder / f"{LOOKS}-seconds.json")
        _say(f"{folder.name}, until decided: ours {whole_seconds(seconds):.1f} s")


def _is_finished(folder: Path, name: str) -> bool:
    return "conclude" in read_json(folder / f"{name}-seconds.json", {})


def _alternate(folder: Path, peer: Side, seconds: Path) -> None:
    """Go through the parts, ours before the peer's, and say how long each took."""
    ours: Side | None = None if _is_finished(folder, GRID) else Side(folder, GRID)
    while ours is not None:
        done = ours.answer()
        if done is None:
            ours.close()
            break
        _peer_does(folder, peer, seconds, done)
        ours.order("go on")
    for part in PARTS:
        _peer_does(folder, peer, seconds, part)


def _peer_does(folder: Path, peer: Side, seconds: Path, part: str) -> None:
    if part not in PARTS or part in read_json(seconds, {}):
        return
    for order in ("tune", part):
        peer.order(order)
        peer.answer()
    parts = seconds_by_part(read_json(folder / f"{GRID}-seconds.json"), read_json(seconds))
    _say(f"{folder.name}, {part}: ours {parts[part][0]:.1f} s, peer {parts[part][1]:.1f} s")


def _run_whole(folder: Path, name: str) -> None:
    """One of our studies with no other side."""
    side = Side(folder, name)
    while side.answer() is not None:
        pass
    side.close()


def _decide_in_float32(folder: Path, setting: Setting, peer: Side) -> None:
    from rankwise.records.folder import StudyFolder

    study = StudyFolder(folder / GRID)
    weights = {
        f"from-{run.rank or run.method}": (run.method, study.weights(run).resolve())
        for run in study.read_study().runs
    }
    keep_json(folder / f"{FLOAT32}.yaml", setting.decisions(weights))
    _run_whole(folder, FLOAT32)
    peer.order("decide")
    peer.answer()
    (folder / "decided").touch()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def seconds_by_part(
    ours: Mapping[str, Any], peer: Mapping[str, Any], *, of_cores: bool = False
) -> dict[str, list[float]]:
    """Seconds of every part of either side, ours first.

    Args:
        ours: part -> piece -> seconds that passed, and of the cores.
        peer: likewise.
        of_cores: which of the two.
    """
    return {
        part: [
            round(sum(piece[of_cores] for piece in side.get(part, {}).values()), 3)
            for side in (ours, peer)
        ]
        for part in dict.fromkeys((*ours, *peer))
    }


def ratios(parts: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The peer's seconds over ours, of the whole and of each kind of work.

    Args:
        parts: seconds of both sides by part, as ``seconds_by_part`` gives them.
    """

    def ratio(*beginnings: str) -> float:
        chosen = [pair for part, pair in parts.items() if part.startswith(beginnings or "")]
        return sum(theirs for _, theirs in chosen) / sum(mine for mine, _ in chosen)

    return {
        "ratio_end_to_end": ratio(),
        "ratio_training": ratio("train"),
        "ratio_scoring": ratio("score"),
        "ratio_spectra": ratio("spectra"),
    }


def narrow_ratio(parts: Mapping[str, Sequence[float]], narrow: Mapping[str, Any]) -> float | None:
    """The peer's seconds over those of ours with a search; None without it."""
    if not narrow:
        return None
    return sum(theirs for _, theirs in parts.values()) / whole_seconds(narrow)


def looks_ratios(
    parts: Mapping[str, Sequence[float]], looks: Mapping[str, Any]
) -> dict[str, float | None]:
    """The peer's seconds, and ours with all items, over ours until decided; None without these."""
    ours, theirs = (sum(pair[side] for pair in parts.values()) for side in (0, 1))
    own = whole_seconds(looks) if looks else None
    return {
        "ratio_to_verdict_looks": own and theirs / own,
        "ratio_of_fewer_items": own and ours / own,
    }


def whole_seconds(ours: Mapping[str, Any]) -> float:
    """Of all parts of a study of ours."""
    return sum(seconds for pieces in ours.values() for seconds, _ in pieces.values())


def summarise(folders: Sequence[Path], setting: Setting) -> dict[str, Any]:
    """All figures; the ratios are medians over the repeats."""
    from benchmarks.study_outputs import (
        compare_looks,
        compare_scores,
        compare_spectra,
        max_loss_difference,
    )

    found: list[dict[str, Any]] = []
    by_part: list[dict[str, list[float]]] = []
    of_cores: list[dict[str, float]] = []
    for folder in folders:
        ours = read_json(folder / f"{GRID}-seconds.json")
        peer = read_json(folder / "peer-seconds.json")
        narrow = read_json(folder / f"{NARROW}-seconds.json", {})
        by_part.append(seconds_by_part(ours, peer))
        of_cores.append(ratios(seconds_by_part(ours, peer, of_cores=True)))
        narrowed = narrow_ratio(by_part[-1], narrow)
        looks = looks_ratios(by_part[-1], read_json(folder / f"{LOOKS}-seconds.json", {}))
        found.append({**ratios(by_part[-1]), "ratio_to_verdict_narrow": narrowed, **looks})
    scores = [compare_scores(folder, GRID) for folder in folders]
    exact = scores
    if setting.precision != "float32":
        exact = [compare_scores(folder, FLOAT32) for folder in folders]
    same_order = setting.peer_sampling == "sequential"
    return {
        **{
            name: None if found[0][name] is None else round(_median(found, name), 3)
            for name in found[0]
        },
        **compare_looks(folders),
        "max_score_difference": max(each.max_score_difference for each in exact),
        "mismatched_decisions_float32": sum(e.tally.num_decision_mismatches for e in exact),
        "seconds_ours_and_peer": by_part,
        "ratios_of_core_seconds": {n: round(_median(of_cores, n), 3) for n in of_cores[0]},
        "float32": [each.figures() for each in exact],
        "scores": [each.figures() for each in scores],
        "spectra": [compare_spectra(folder) for folder in folders],
        "loss_max_relative_difference": (
            max(map(max_loss_difference, folders)) if same_order else None
        ),
        "peer": read_json(folders[0].parent / "peer-tuned.json"),
    }


def _median(found: Sequence[Mapping[str, Any]], name: str) -> float:
    return statistics.median(each[name] for each in found)


LAST_LINE = (
    "ratio_end_to_end",
    "ratio_training",
    "ratio_scoring",
    "ratio_spectra",
    "ratio_to_verdict_narrow",
    "ratio_to_verdict_looks",
    "ratio_of_fewer_items",
    "items_share_looks",
    "same_choice_looks",
    "max_score_difference",
    "mismatched_decisions_float32",
)


def regime(folder: Path, setting: Setting) -> dict[str, Any]:
    """What was done, on what: rows, tokens, items, processor, versions."""
    import lm_eval
    import peft
    import torch
    import transformers

    from rankwise.engine.models.devices import choose_device, device_name
    from rankwise.records.folder import StudyFolder

    study = StudyFolder(folder / GRID).read_study()
    scored = {task: study.scored_tokens[task] for task in setting.tasks}
    return {
        **dataclasses.asdict(setting),
        "model": Path(setting.model).name,
        "tasks_paths": None,
        "trained_tokens_of_each_run": study.runs[0].num_tokens,
        "distinct_tokens_scored_of_each_model": scored,
        "device": device_name(choose_device()),
        "threads": torch.get_num_threads(),
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft, lm_eval)},
    }


def _work(options: argparse.Namespace) -> None:
    """Be one of the sides; what libraries print goes to stderr."""
    import contextlib

    from benchmarks import study_ours

    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        if options.worker == "peer":
            from benchmarks import study_peer

            study_peer.serve(options.out, out, sys.stdin)
        else:
            orders = sys.stdin if options.worker == GRID else None
            study_ours.serve(options.out, options.worker, out, orders)


def _setting(options: argparse.Namespace, out: Path) -> Setting:
    from rankwise.engine.models.devices import choose_device, resolve_precision

    precision = resolve_precision(options.precision, choose_device())
    sizes: dict[str, Any] = {"precision": precision, "peer_sampling": options.peer_sampling}
    ranks = options.peer_ranks and tuple(options.peer_ranks)
    sizes |= {"seeds": options.seeds, "peer_seeds": options.peer_seeds, "peer_ranks": ranks}
    if options.tiny:
        return tiny_setting(out, **sizes)
    return real_setting(
        out,
        options.model,
        options.tasks_path,
        train_task="local_overruling",
        letters_task="local_mmlu",
        texts_task="local_arc_easy",
        num_fewshot=5,
        ranks=tuple(options.ranks),
        rows=options.rows,
        epochs=options.epochs,
        step_size=8,
        items=options.items,
        float32_items=options.float32_items,
        reference=options.reference,
        **sizes,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both sides, one line for each part to stderr, and the figures to stdout."""
    parser = argparse.ArgumentParser(description="A whole study, against a script.")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="name or folder")
    parser.add_argument("--tasks-path", type=Path, default=SHARED_TASKS)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--seeds", type=int, default=1, help="of every rank and of full")
    parser.add_argument("--reference", type=float, help="share of the items that most runs answer")
    parser.add_argument("--peer-seeds", type=int, help="that the peer does; the others count alike")
    parser.add_argument("--peer-ranks", type=int, nargs="+", help="that the peer scores; likewise")
    parser.add_argument("--rows", type=int, default=48, help="to train on, a multiple of 8")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--items", type=int, default=100, help="scored of each task")
    parser.add_argument("--float32-items", type=int, default=8, help="of each, in float32")
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="auto: bfloat16 where the device multiplies it faster, as of a study",
    )
    parser.add_argument(
        "--peer-sampling", choices=("sequential", "group_by_length"), default="sequential"
    )
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--narrow", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--looks", type=int, choices=(1, NUM_LOOKS), default=1, help="at the items of our study"
    )
    parser.add_argument("--tiny", action="store_true", help="a random model, for the tests")
    parser.add_argument("--out", type=Path, help="where finished parts are kept")
    parser.add_argument(
        "--worker", choices=("peer", GRID, NARROW, LOOKS, FLOAT32), help=argparse.SUPPRESS
    )
    options = parser.parse_args(arguments)
    if options.worker:
        _work(options)
        return
    if options.rows % 8:
        parser.error("--rows is a multiple of 8, so that both sides take the same steps")
    with tempfile.TemporaryDirectory() as temporary:
        out = (options.out or Path(temporary)).resolve()
        setting = _setting(options, out)
        write_setting(out, setting)
        setting = read_setting(out)
        folders = list(repeats(out, options.repeats))
        for folder in folders:
            measure(folder, setting)
            if options.narrow:
                measure_narrow(folder, setting)
            if options.looks > 1:
                measure_looks(folder, setting)
        figures = summarise(folders, setting)
        print(json.dumps({**figures, "regime": regime(folders[0], setting)}, indent=1))
    print(json.dumps({name: figures[name] for name in LAST_LINE}))
    sys.exit(1 if figures["mismatched_decisions_float32"] else 0)


if __name__ == "__main__":
    main()
