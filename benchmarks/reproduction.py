"""The design of arXiv:2512.15634 on the embedded model, and its three next checks.

    python -m benchmarks.reproduction OUTPUT [--only NAME ...]

The main study trains each of five tasks at the paper's ranks, 4 to 128, and fully, with three
seeds, and scores every model on all of them, on three tasks that the base should keep and on
prose. Its tasks stand in for the paper's: kinship for GSM8K, which this model cannot do, and
LegalBench for LegalMCQ; MathQA, MedMCQA and MMLU are the paper's own. The side studies take
kinship alone: alpha apart from rank, rates from the paper's 1e-5 up, and ranks 256 and 512. Heads
are switched off in the MedMCQA model of rank 32, on MedMCQA and MathQA.

The main study takes about four hours of one core, the others together one. Run again, it goes on
where it stopped; `rankwise run OUTPUT/main --workers 2` shares what is left among two processes.
OUTPUT/NAME is the folder of a study; `python -m benchmarks.claims OUTPUT/NAME` judges the claims.
"""

from __future__ import annotations

from typing import Any

from benchmarks.prediction.train import RULE, TASKS, rankwise, run_studies

MAIN, ALPHA = "main", "alpha"
DOMAINS = {
    "kinship": "reasoning",
    "local_mathqa": "mathematics",
    "local_medmcqa_cloze": "medicine",
    "local_mmlu_cloze": "knowledge",
    "local_legal_cloze": "law",
}
KEPT = {"local_sciq": "science", "local_arc_easy": "science", "capitals": "geography"}
RATE = RULE.value  # at every rank, as in the paper, whose own rates teach this model little
FULL_RATE = 5e-5  # the paper's


def studies() -> dict[str, dict[str, Any]]:
    """Every study file, by name."""
    ratio = [{"policy": "proportional", "ratio": times} for times in (1, 2)]
    fixed = [{"policy": policy, "alpha": 16} for policy in ("fixed", "rslora")]
    return {
        MAIN: _study(
            MAIN,
            [*DOMAINS],
            lora={"ranks": [4, 8, 16, 32, 64, 128]},
            rates={"lora": RATE, "full": FULL_RATE},
            rows=120,
            seeds=[0, 1, 2],
        ),
        ALPHA: _study(
            ALPHA, ["kinship"], {"ranks": [8, 32, 128], "alpha": [*ratio, *fixed]}, {"lora": RATE}
        ),
        "rates": _study(
            "rates",
            ["kinship"],
            lora={"ranks": [8, 32, 128]},
            rates={"lora": [1e-5, 2e-5, 5e-5, 1e-4, RATE, 1e-3], "full": [1e-5, FULL_RATE, 1e-4]},
        ),
        "beyond": _study(
            "beyond",
            ["kinship"],
            lora={"ranks": [64, 128, 256, 512]},
            rates={"lora": RULE.model_dump(mode="json"), "full": FULL_RATE},
        ),
    }


def _study(
    name: str,
    tasks: list[str],
    lora: dict[str, Any],
    rates: dict[str, Any],
    rows: int = 160,
    seeds: list[int] | None = None,
) -> dict[str, Any]:
    return {
        "name": f"reproduction-{name}",
        "base_model": "smollm2-135m-instruct",
        "tasks_path": [str(TASKS)],
        "train": {
            "task": tasks,
            "max_examples": rows,
            "epochs": 1,
            "batch_size": 4,
            "gradient_accumulation_steps": 1,
            "learning_rate": rates,
        },
        "methods": {
            "lora": {"target_modules": "attention", **lora},
            "full": {} if "full" in rates else None,
        },
        "seeds": seeds or [0, 1],
        "evaluation": {
            "retention": [*KEPT],
            "held_out_text": ["pydoc_topics"],
            "limit": 40 if name == MAIN else 60,  # 105 models on 8 tasks: 5 hours of one core at 60
            "domains": {task: DOMAINS[task] for task in tasks} | KEPT,
        },
        "analysis": {"top_k": 500, "null_draws": 1, "heads": name == MAIN, "divergence": True},
    }


def main() -> None:
    """Run the studies that are asked for."""
    for folder in run_studies(studies(), __doc__):
        if folder.name == MAIN:
            run = next(folder.glob("runs/local_medmcqa_cloze-lora-r032-*-s0-*"))
            tasks = "local_medmcqa_cloze,local_mathqa"
            # every head would take hours: those that matter most by gradient
            rankwise("heads", folder, "--run", run.name, "--tasks", tasks, "--top", "40")


if __name__ == "__main__":
    main()
