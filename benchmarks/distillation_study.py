r"""Does self-distillation forget less than a lower learning rate? The studies and their tables.

    python -m benchmarks.distillation_study files FOLDER    two study files for each of two tasks
    python -m benchmarks.distillation_study collect FOLDER  from the finished studies to a record
    python -m benchmarks.distillation_study tables          the page's tables, from the record

The tasks are ``extraction`` (own rows that come with rankwise, answers in JSON) and ``kinship`` (a
task that comes with rankwise; its rows are learned as own rows, as self-distillation wants, and its
items are scored by likelihood). Of each task ``TASK-sft.yaml`` learns the right answers, at a rate
at which the model forgets, at lower ones, and with a KL to the base on texts that it wrote;
``TASK-sdft.yaml`` learns from a teacher that knows the answer, at several rates. Both have the same
rows, seeds and scored items, so that models of both are compared item by item. FOLDER has the
studies' own folders beside their files, as ``rankwise run FILE`` makes them. A record has no texts.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.rl_study import bounds, interval, table
from rankwise.findings.comparison import Compared, Group, compare
from rankwise.findings.options import Option, OptionGains
from rankwise.records.folder import StudyFolder
from rankwise.study.reading import read_results
from rankwise.tasks.resolution import load_tasks

RECORD = Path(__file__).parent / "on_policy_study" / "distillation.json"
RANK = 32
RATE = 2e-3
"""Of SFT: the embedded model forgets at it in 40 steps (docs/studies/mitigation.md)."""
SHOWN_ANSWER = "{prompt} {answer}\n\n{prompt}"
"""How kinship's teacher is asked: rows are no conversations, so it continues a list of answers."""

TASKS: dict[str, dict[str, Any]] = {
    "extraction": {
        "train": {
            "data": "bundled/extraction",
            "chat_template": True,
            "judged_by": "json",
            "max_examples": 96,
        },
        "sdft": {"max_completion_length": 64},
        "sdft_rates": (2e-3, 5e-4),
        "in_domain": [],
        "metric": {"data_extraction_texts": "fields_correct"},
        "factors": (0.25, 0.1),
        "seeds": (0, 1),
    },
    "kinship": {
        "train": {
            "data": "kinship.jsonl",
            "held_out_fraction": 0.02,
            "judged_by": "loss",
            "max_examples": 160,
        },
        "sdft": {"max_completion_length": 4, "template": SHOWN_ANSWER},
        "sdft_rates": (4e-3, 2e-3, 1e-3, 5e-4, 2e-4),
        "in_domain": ["kinship"],
        "metric": {},
        "factors": (0.5, 0.25, 0.1),
        "seeds": (0, 1, 2),
    },
}
_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj"]


def study_files(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each study file with its content."""
    for task, settings in TASKS.items():
        train = dict(settings["train"])
        if task == "kinship":
            train["data"] = str(folder / train["data"])
        train |= {"epochs": 1, "batch_size": 2, "gradient_accumulation_steps": 2}
        study: dict[str, Any] = {
            "base_model": "smollm2-135m-instruct",
            "seeds": list(settings["seeds"]),
            "evaluation": {
                "in_domain": settings["in_domain"],
                "retention": ["capitals", "continents", "elements"],
                "num_train_items": 0,
                "trained_format": False,
                "limit": 200,
                "metric": settings["metric"],
            },
            "analysis": {"spectra": False, "heads": False},
        }
        sft = {
            "train": train | {"learning_rate": {"lora": RATE}},
            "methods": {"lora": {"ranks": [RANK], "target_modules": _MODULES}, "full": None},
            "mitigations": [
                *({"learning_rate_factor": factor} for factor in settings["factors"]),
                {"kl": {"at": "own_texts"}},
            ],
        }
        yield folder / f"{task}-sft.yaml", {"name": f"{task}-sft", **study, **sft}
        sdft = {
            "train": train | {"objective": {"sdft": settings["sdft"]}},
            "methods": {
                "lora": {
                    "target_modules": _MODULES,
                    "_": [{"rank": RANK, "learning_rate": rate} for rate in settings["sdft_rates"]],
                },
                "full": None,
            },
        }
        yield folder / f"{task}-sdft.yaml", {"name": f"{task}-sdft", **study, **sdft}


def write_kinship_rows(file: Path) -> None:
    """The training split of the task, as prompts and right answers."""
    found: Any = load_tasks(["kinship"])
    task = found["kinship"][0].task
    with file.open("w", encoding="utf-8") as rows:
        for doc in task.training_docs():
            row = {
                "prompt": task.fewshot_context(doc, 0),
                "completion": f" {doc['choices'][doc['label']]}",
            }
            rows.write(json.dumps(row) + "\n")


def collected(folder: Path) -> dict[str, Any]:
    """What the page is made of; of a task whose studies are elsewhere, what the record has."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    return {
        task: _task(folder, task) if (folder / f"{task}-sft").is_dir() else record[task]
        for task in TASKS
    }


def _task(folder: Path, task: str) -> dict[str, Any]:
    sft, sdft = (_source(folder / f"{task}-{kind}") for kind in ("sft", "sdft"))
    if sft.results.base.items != sdft.results.base.items:
        raise SystemExit(f"{folder}: the base has other scores in both studies of {task}")
    tasks = sft.deciding_tasks("points")
    arms, _ = sft.of_role("mitigated")
    groups = [_group("SFT", model) for model in (*sft.options, *arms)]
    groups += [_group("SDFT", model) for model in sdft.options]
    found = [compare(Compared, sft, tasks, group) for group in groups]
    gains = {each.label: each.gain.estimate for each in found}
    rates = [group for group in groups if group.label.startswith("SFT, rate")]

    def nearest(group: Group) -> Group:
        return min(rates, key=lambda rate: abs(gains[rate.label] - gains[group.label]))

    others = [group for group in groups if group not in rates]
    leads = [compare(Compared, sft, tasks, group, nearest(group)) for group in others]
    return {
        "base": {name: _points(sft.results.base.items[name].values) for name in tasks.all},
        "models": [_model(each) for each in found],
        "leads": [_lead(each) for each in leads],
    }


def _source(study: Path) -> OptionGains:
    (part,) = read_results(StudyFolder(study)).by_train_task
    return OptionGains(part)


def _points(values: Sequence[float]) -> float:
    return round(100.0 * statistics.fmean(values), 2)


def _group(kind: str, model: Option) -> Group:
    arm = model.plan.mitigation
    if arm is not None and arm.kl is not None:
        kind = "SFT with KL on own texts"
    return Group(f"{kind}, rate {model.plan.learning_rate:.2g}", model.rank, model.runs)


def _model(found: Compared) -> dict[str, Any]:
    return {
        "label": found.label,
        "gain": bounds(found.gain),
        "retention": bounds(found.retention),
        "num_seeds": found.num_seeds,
        "num_tokens": found.num_tokens,
        "train_seconds": found.train_seconds,
    }


def _lead(found: Compared) -> dict[str, Any]:
    return {
        "label": found.label,
        "against": found.against,
        "gain": bounds(found.lead),
        "retention": bounds(found.retention_lead),
    }


def tables(record: Mapping[str, Any]) -> Iterator[str]:
    """Of each task the models, then those that are no lower rate against the nearest of these."""
    for found in record.values():
        yield table(
            ("", "gain", "retention"),
            [
                (each["label"], interval(each["gain"]), interval(each["retention"]))
                for each in found["models"]
            ],
        )
        yield table(
            ("", "against", "gain", "retention"),
            [
                (
                    each["label"],
                    each["against"],
                    interval(each["gain"]),
                    interval(each["retention"]),
                )
                for each in found["leads"]
            ],
        )


def main() -> None:
    """Write the study files, collect a record, or print its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("files", "collect"):
        verbs.add_parser(verb).add_argument("folder", type=Path)
    verbs.add_parser("tables")
    options = parser.parse_args()
    if options.verb == "files":
        options.folder.mkdir(exist_ok=True)
        write_kinship_rows(options.folder / "kinship.jsonl")
        for file, study in study_files(options.folder):
            file.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    elif options.verb == "collect":
        RECORD.write_text(json.dumps(collected(options.folder), indent=1) + "\n", encoding="utf-8")
    else:
        print("\n\n".join(tables(json.loads(RECORD.read_text(encoding="utf-8")))))


if __name__ == "__main__":
    main()
