"""What was trained, how it was judged, what went wrong, and where it came from, as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rankwise.records import quantities
from rankwise.records.config.methods import AlphaConfig
from rankwise.records.config.own_rows import data_place
from rankwise.records.config.study import StudyConfig
from rankwise.records.recommendation import Recommendation
from rankwise.records.results import StudyResults
from rankwise.records.study import PlannedRun, Provenance, RunRecord, exact_rank

NOT_RECORDED = "not recorded"


Facts = dict[str, str]
"""What things are, by their names."""


_LONG = ("rewards", "template")  # of an objective: the study file has them


def judgement_facts(recommendation: Recommendation) -> Facts:
    """The margins and the confidence that decided."""
    margins = {
        "ε, the acceptable retention loss on average": recommendation.epsilon_points,
        "The acceptable loss of any single task": recommendation.worst_task_points,
    }
    items = quantities.count(recommendation.num_items_in_domain)
    return {
        "δ, ranks closer than this count as equal": quantities.amount(
            recommendation.delta, recommendation.unit
        ),
        **{n: quantities.amount(own, "points") for n, own in margins.items() if own is not None},
        "Confidence": f"{quantities.percent(recommendation.confidence)}, over all looks",
        "Looks at this study": ", ".join(
            f"{look.number} ({quantities.counted(sum(look.num_items.values()), 'item')}, may be "
            f"wrong in {quantities.percent(round(look.alpha, 4))})"
            for look in recommendation.looks
        ),
        "In-domain items": items + quantities.in_clusters(recommendation.num_clusters_in_domain),
        "Seeds of each rank": quantities.count(recommendation.num_seeds),
    }


def training_facts(results: StudyResults) -> Facts:
    """The settings that every run shares; of models that were trained elsewhere, their scores."""
    if (scores := results.study.scores) is not None:
        return {
            "Base": scores.base or "none; differences are from the mean of the models",
            **{f"Column of the {role}": column for role, column in scores.columns.items()},
            **{f"sha256 of {name}": digest for name, digest in scores.files.items()},
        }
    config, train = results.study.config, results.study.config.train
    shape = f"{train.batch_size} × {train.gradient_accumulation_steps} accumulated"
    plans = results.study.runs
    learned = "the completion only" if train.loss_on == "completion" else "all tokens"
    if train.turns == "all":
        learned = "every assistant turn"
    if train.objective is not None:
        kind = "pairs of answers" if train.dpo is not None else "texts of its own"
        name, settings = train.objective.named
        said = (f"{key} {value}" for key, value in settings.items() if value and key not in _LONG)
        learned = f"{kind} ({name.upper()}: {', '.join(said)})"
    facts = {
        "Base model": base_model_name(config),
        "Trained on": source_name(config),
        "Training examples": _range(plan.num_examples for plan in plans),
        "Epochs": ", ".join(map(str, sorted({plan.epochs for plan in plans if plan.epochs}))),
        "Batch": f"{shape} = {train.batch_size * train.gradient_accumulation_steps} examples",
        "Optimizer steps": _range(plan.num_steps for plan in plans),
        "Tokens of each run": _range(plan.num_tokens for plan in plans),
        **_method_facts(config, plans),
        "Optimizer": f"AdamW, weight decay {quantities.number(train.weight_decay)}",
        "Schedule": f"{train.schedule}, warm-up over {100 * train.warmup_ratio:g} % of steps",
        "Gradient clipping": f"norm {quantities.number(train.max_grad_norm)}",
        "Dropout": quantities.number(train.dropout),
        "Loss on": learned,
        "Chat template": "yes" if train.chat_template else "no",
        "Longest example": f"{quantities.count(train.max_length)} tokens",
        "Precision": results.study.precision,
        "Seeds": ", ".join(str(seed) for seed in config.seeds),
    }
    own = [f"{name} ({read.source})" for name, read in results.study.own_sets.items()]
    facts |= {"Own rows that are scored only": ", ".join(own)} if own else {}
    return facts | ({"Task code": "allowed"} if config.allow_task_code else {})


def provenance_facts(results: StudyResults) -> Facts:
    """What made the numbers."""
    made = results.study.provenance
    if results.study.scores is not None:
        return {"rankwise": made.rankwise_version, "Judged": made.created_at}
    devices = {run.provenance.device for run in _runs(results)} | {made.device}
    kernels = {run.kernels for run in _runs(results) if run.kernels is not None}
    return {
        "Study": results.study.config.name,
        "Study fingerprint": results.study.fingerprint,
        "Base model fingerprint": results.study.base_model_fingerprint,
        **software_facts(made),
        "Python": made.python_version,
        "Platform": made.platform,
        "Device": ", ".join(sorted(d for d in devices if d)) or NOT_RECORDED,
        **({"Kernels beside torch's": ", ".join(sorted(kernels))} if kernels else {}),
        "Planned": made.created_at,
    }


def software_facts(made: Provenance) -> Facts:
    """The software that studies and audits used."""
    packages = [f"{name} {version}" for name, version in sorted(made.package_versions.items())]
    return {
        "rankwise": made.rankwise_version,
        "Commit": made.git_commit or NOT_RECORDED,
        "Packages": ", ".join(packages) or NOT_RECORDED,
    }


def study_warnings(results: StudyResults) -> tuple[str, ...]:
    """Everything that a reader should know before trusting the numbers; empty if nothing."""
    texts = [*results.study.warnings, *results.notes]
    done = {model.name for model in results.runs}
    missing = [plan.name for plan in results.study.runs if plan.name not in done]
    if missing:
        texts.append(f"Planned and not finished: {', '.join(missing)}.")
    texts += [f"Left out: {name} {reason}." for name, reason in results.left_out.items()]
    texts += [
        f"{failure.model}: {failure.what} failed: {failure.message}" for failure in results.failures
    ]
    texts += [f"Scored on several stacks: {stack.statement}." for stack in results.stacks]
    for run in _runs(results):
        name = run.planned.name
        if run.status == "diverged":
            texts.append(
                f"{name} {run.ending} and takes no part: {run.message or 'no reason was recorded'}."
            )
        elif run.update_is_zero:
            texts.append(f"{name} did not change the weights at all.")
        if run.num_truncated:
            texts.append(
                f"{name}: {quantities.counted(run.num_truncated, 'training example')} of "
                f"{quantities.count(run.planned.num_examples)} cut to the longest length."
            )
    texts += [
        f"{task}: {quantities.counted(evaluation.num_truncated, 'item')} of "
        f"{quantities.count(evaluation.num_examples)} too long for the model, cut."
        for task, evaluation in results.base.evaluations.items()
        if evaluation.num_truncated
    ]
    texts.extend(_mixed_versions(results))
    return tuple(texts)


def base_model_name(config: StudyConfig) -> str:
    """The name, of a folder only its last part; with revision and start if there are any."""
    name = config.base_model.name
    name = Path(name).name if Path(name).is_absolute() else name
    name += "" if config.base_model.revision is None else f" @ {config.base_model.revision}"
    return name + config.start_in_words


def source_name(config: StudyConfig) -> str:
    """The task that was trained on, or the name of the file or data set."""
    train = config.train
    names = (", " if train.sequence is None else ", then ").join(train.tasks)
    return names or ("" if train.data is None else data_place(train.data))


def _method_facts(config: StudyConfig, plans: Sequence[PlannedRun]) -> Facts:
    lora, full = config.methods.lora, config.methods.full
    facts: Facts = {}
    if lora is not None:
        ranked = sorted((run for run in plans if run.rank), key=exact_rank)
        ranks = dict.fromkeys(map(quantities.rank_value, ranked))
        sets = dict.fromkeys(run.target_modules for run in plans if run.target_modules)
        facts = {
            "LoRA ranks": ", ".join(ranks),
            "LoRA alpha": "; ".join(map(_alpha, lora.alphas)),
            "LoRA target modules": "; ".join(map(", ".join, sets)),
            "LoRA learning rate": _rates(plans, "lora"),
        }
    if full is not None:
        facts["Full fine-tuning learning rate"] = _rates(plans, "full")
        facts["Full fine-tuning's weights"] = f"{full.weights}, by {full.optimizer}"
    return facts


def _rates(plans: Sequence[PlannedRun], method: str) -> str:
    labels = [label for plan in plans if plan.method == method for label in plan.rate_labels]
    return ", ".join(dict.fromkeys(labels))


def _alpha(alpha: AlphaConfig) -> str:
    kinds = {
        "proportional": "× rank",
        "rslora": "over the square root of the rank (rsLoRA)",
        "fixed": "at any rank",
    }
    return f"{quantities.number(alpha.alpha_of(1))} {kinds[alpha.policy]}"


def _range(values: Iterable[int]) -> str:
    ordered = sorted(values)
    if not ordered:
        return quantities.NOT_MEASURED
    low, high = quantities.count(ordered[0]), quantities.count(ordered[-1])
    return low if low == high else f"{low} to {high}"


def _runs(results: StudyResults) -> list[RunRecord]:
    return [model.run for model in results.runs if model.run is not None]


def _mixed_versions(results: StudyResults) -> Iterable[str]:
    """Runs that were made with other versions, or on another device, than the rest."""
    made = [run.provenance for run in _runs(results)]
    found = {
        f"versions of {name}": {run.package_versions.get(name, "none") for run in made}
        for name in sorted({name for run in made for name in run.package_versions})
    }
    found["devices"] = {run.device or NOT_RECORDED for run in made}
    found["versions of rankwise"] = {run.rankwise_version for run in made}
    for what, values in found.items():
        if len(values) > 1:
            yield f"The runs were made with different {what}: {', '.join(sorted(values))}."
