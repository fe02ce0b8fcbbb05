"""Does anything repair forgetting better than a lower learning rate?

    python -m benchmarks.repair [--tasks-path ../shared/tasks] [--out FOLDER] [--tiny]

Two studies of the preset ``mitigation``'s arms on the embedded model, three seeds each: kinship,
with what the model knows of capitals, continents and elements, and Overruling, with ARC-Easy and
MMLU by letter (real items; left out where ``--tasks-path`` is not there). Rank 32 is trained at a
rate at which it forgets, on 160 rows in 40 steps. Each arm has its gain, retention and seconds.

Everything finished is kept under ``--out``; calling again goes on. The last line of output is one
JSON object. For each study ``best_arm`` is, of the arms that are shown to gain more and forget less
than the nearest lower rate, the one that gains most over it; null where there is none. Then
``nearest_arm`` is the one with the largest such gain. ``retention_regained_share`` and
``gain_kept_share`` are of either. ``kl_arm_over_lower_rate_points`` is that gain of KL on the
base's own texts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from rankwise.findings.mitigations import Arm, TrainTaskMitigations
from rankwise.findings.study import StudyFindings
from rankwise.records import quantities
from rankwise.records.files import read_record
from rankwise.records.study_file import preset_text

SHARED_TASKS = Path(__file__).resolve().parents[2] / "shared" / "tasks"
KL_ARM = "KL on own texts"

STUDIES: dict[str, dict[str, Any]] = {
    "kinship": {
        "train": {
            "task": "kinship",
            "max_examples": 160,
            "epochs": 1,
            "gradient_accumulation_steps": 2,
        },
        "evaluation": {"retention": ["capitals", "continents", "elements"], "limit": 200},
    },
    "overruling": {
        "train": {
            "task": "local_overruling",
            "max_examples": 160,
            "epochs": 1,
            "gradient_accumulation_steps": 2,
        },
        "evaluation": {"retention": ["local_arc_easy", "local_mmlu"], "limit": 200},
    },
}
RATE = 2e-3
"""Ten times the preset's: the embedded model forgets little at less in 40 steps."""


def study_file(name: str, model: str, tasks_path: Path | None, seeds: list[int]) -> dict[str, Any]:
    """The preset's arms on one of the tasks."""
    preset = yaml.safe_load(preset_text("mitigation"))
    study = STUDIES[name]
    return {
        "name": name,
        "base_model": model,
        **({"tasks_path": str(tasks_path), "allow_task_code": True} if tasks_path else {}),
        "train": {**study["train"], "learning_rate": {"lora": RATE}},
        "methods": preset["methods"],
        "mitigations": preset["mitigations"],
        "seeds": seeds,
        "evaluation": {**study["evaluation"], "num_train_items": 0, "trained_format": False},
        "analysis": preset["analysis"],
    }


def run(file: Path, folder: Path) -> TrainTaskMitigations:
    """Run a study as a user does, or go on with it, and read what it found."""
    command = [sys.executable, "-m", "rankwise", "run", str(file), "--study-dir", str(folder)]
    subprocess.run(command, check=True)
    (found,) = read_record(folder / "findings.json", StudyFindings).mitigations
    return found


def table(found: TrainTaskMitigations) -> Iterator[str]:
    """Lines of Markdown: an arm each."""
    heads = (
        "arm",
        "gain",
        "kept",
        "retention",
        "regained",
        "nearest rate",
        "gain over it",
        "kept over it",
        "s",
    )
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for arm in found.arms:
        assert arm.retention is not None
        leads = (arm.lead, arm.retention_lead)
        cells = [
            arm.label,
            quantities.with_interval(arm.gain, arm.gain.unit),
            (arm.kept_gain.in_words if arm.kept_gain else None) or "",
            quantities.with_interval(arm.retention, "points"),
            (arm.regained.in_words if arm.regained else None) or "",
            "" if arm.lead is None else f"{arm.against} ({arm.dominance})",
            *("" if lead is None else quantities.with_interval(lead, lead.unit) for lead in leads),
            f"{arm.train_seconds:.0f}",
        ]
        yield f"| {' | '.join(cells)} |"


def summary(studies: dict[str, TrainTaskMitigations]) -> dict[str, Any]:
    """The last line: leads are of the arm, the mean over the studies in which it has one."""
    by_study: dict[str, Any] = {}
    for name, found in studies.items():
        judged = [arm for arm in found.arms if arm.lead is not None]
        shown = [arm for arm in judged if arm.dominance == "better"]
        best = max(shown or judged, key=_lead)
        kl = next((arm for arm in judged if arm.label == KL_ARM), None)
        by_study[name] = {
            "best_arm": best.label if shown else None,
            "nearest_arm": None if shown else best.label,
            "retention_regained_share": _rounded(best.regained and best.regained.estimate),
            "gain_kept_share": _rounded(best.kept_gain and best.kept_gain.estimate),
            "kl_arm_over_lower_rate_points": _rounded(kl and _lead(kl)),
        }
    return {"arms": max(len(found.arms) for found in studies.values()), **by_study}


def _lead(arm: Arm) -> float:
    assert arm.lead is not None
    return arm.lead.estimate


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both studies and print what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tasks-path", type=Path, default=SHARED_TASKS)
    parser.add_argument("--out", type=Path, help="keeps what is finished")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--studies", nargs="+", choices=[*STUDIES], default=[*STUDIES])
    parser.add_argument("--tiny", action="store_true", help="two arms, few rows: for the tests")
    options = parser.parse_args(arguments)
    out = Path(tempfile.mkdtemp(prefix="repair-")) if options.out is None else options.out
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, TrainTaskMitigations] = {}
    for name in options.studies:
        is_shared = name != "kinship"
        if is_shared and not options.tasks_path.is_dir():
            print(f"{name} is left out: {options.tasks_path} is not there")
            continue
        tasks_path = options.tasks_path if is_shared else None
        study = study_file(name, options.model, tasks_path, [*range(options.seeds)])
        if options.tiny:
            study["train"] |= {"max_examples": 8}
            study["evaluation"] |= {"limit": 4, "retention": ["capitals"]}
            study["mitigations"] = [{"learning_rate_factor": 0.5}, {"kl": {"at": "prompts"}}]
        file = out / f"{name}.yaml"
        file.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
        found[name] = run(file, out / name)
        print(f"\n{name}\n", *table(found[name]), *found[name].statements, sep="\n")
    print(json.dumps(summary(found)))


if __name__ == "__main__":
    main()
