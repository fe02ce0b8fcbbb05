r"""Writes a study of preferences: pairs from a task's options, right against wrong, and SFT beside.

    python -m benchmarks.preference_study FOLDER [--task local_sciq] [--tasks-path ../shared/tasks]
                                          [--pairs 800] [--held-out 300] [--model NAME]

FOLDER gets ``pairs.jsonl`` (prompt, chosen, rejected; the wrong option is drawn with a fixed seed),
``held_out.jsonl``, and two study files over the same rows, ranks and seeds: ``dpo.yaml``, and
``sft.yaml``, which learns the chosen answers alone. Both are judged by preference on the held-out
pairs and by the task's own scored items, so that they can be compared. Then

    rankwise run FOLDER/dpo.yaml && rankwise run FOLDER/sft.yaml
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from rankwise.errors import DataError
from rankwise.tasks.resolution import LoadedTask, load_tasks
from rankwise.tasks.training_rows import option_index

SEED = 20261129


def pairs_of(loaded: LoadedTask, number: int) -> list[dict[str, str]]:
    """The first rows of a task's training split: its prompt, the right option and a wrong one.

    Raises:
        DataError: a row has no wrong option.
    """
    task, rng = loaded.task, random.Random(SEED)
    pairs: list[dict[str, str]] = []
    for doc in list(task.training_docs())[:number]:
        context = task.fewshot_context(doc, 0)
        requests = task.construct_requests(doc=doc, ctx=context, metadata=("", 0, 1))
        options = [request.arguments[1] for request in requests]
        right = option_index(task.doc_to_target(doc), task, doc)
        wrong = [text for place, text in enumerate(options) if text != options[right or 0]]
        if right is None or not wrong:
            raise DataError(f"{loaded.where}: {doc!r:.100} has no right and wrong option.")
        pairs.append({"prompt": context, "chosen": options[right], "rejected": rng.choice(wrong)})
    return pairs


def study_of(options: argparse.Namespace, folder: Path, objective: str) -> dict[str, Any]:
    """A study file's content."""
    train: dict[str, Any] = {
        "data": str(folder / "pairs.jsonl"),
        "held_out_fraction": 0.02,
        "epochs": 2,
        "batch_size": 4,
        "gradient_accumulation_steps": 2,
    }
    if objective == "dpo":
        rate = {"rule": "r^-1/2", "value": 5e-5}
        train |= {"objective": "dpo", "learning_rate": {"lora": rate, "full": 5e-6}}
    else:
        train |= {
            "columns": {"prompt": "prompt", "completion": "chosen"},
            "judged_by": "exact",
        }
    return {
        "name": f"{options.task}-{objective}",
        "base_model": options.model,
        "tasks_path": [str(options.tasks_path.resolve())],
        "allow_task_code": True,
        "train": train,
        "methods": {"lora": {"ranks": [1, 4, 16, 64, 128]}, "full": {}},
        "seeds": [0, 1],
        "evaluation": {
            "in_domain": [options.task],
            "retention": ["capitals", "continents", "elements"],
            "held_out_text": ["pydoc_topics"],
            "limit": 400,
            "own": {
                "held_out_pairs": {
                    "data": str(folder / "held_out.jsonl"),
                    "judged_by": "preference",
                    "role": "in_domain",
                }
            },
        },
        "analysis": {"heads": False},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the rows and both study files."""
    parser = argparse.ArgumentParser(description="Write a study of preferences.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", default="local_sciq")
    parser.add_argument("--tasks-path", type=Path, default=Path("../shared/tasks"))
    parser.add_argument("--pairs", type=int, default=800)
    parser.add_argument("--held-out", type=int, default=300)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    options = parser.parse_args(arguments)
    found: Any = load_tasks([options.task], (options.tasks_path,), allow_code=True)
    pairs = pairs_of(found[options.task][0], options.pairs + options.held_out)
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"pairs": pairs[: options.pairs], "held_out": pairs[options.pairs :]}
    for name, rows in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for objective in ("dpo", "sft"):
        text = yaml.safe_dump(study_of(options, folder, objective), sort_keys=False)
        (folder / f"{objective}.yaml").write_text(text)
    print(json.dumps({name: len(rows) for name, rows in parts.items()} | {"folder": str(folder)}))


if __name__ == "__main__":
    main()
