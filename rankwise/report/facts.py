"""What was trained, how it was judged, what went wrong, and where it came from, as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rankwise.records import quantities
from rankwise.records.config.methods import AlphaConfig
from rankwise.records.config.study import StudyConfig
from rankwise.records.judgement import Look
from rankwise.records.recommendation import Recommendation
from rankwise.records.results import StudyResults
from rankwise.records.study import PlannedRun, Provenance, RunRecord

NOT_RECORDED = "not recorded"


class Entry(NamedTuple):
    """A name and what it is."""

    name: str
    value: str


def judgement_facts(recommendation: Recommendation) -> tuple[Entry, ...]:
    """The margins and the confidence that decided, and what would decide more."""
    derived = ", derived from the number of items"
    delta = quantities.amount(recommendation.delta, recommendation.unit)
    epsilon = recommendation.epsilon_points
    facts = [
        Entry(
            "δ, a difference in-domain that matters",
            delta + (derived if recommendation.delta_is_derived else ", as configured"),
        ),
        Entry(
            "ε, a retention loss that matters",
            "none: retention was not measured"
            if epsilon is None
            else quantities.amount(epsilon, "points")
            + (derived if recommendation.epsilon_is_derived else ", as configured"),
        ),
        Entry("Confidence", f"{quantities.percent(recommendation.confidence)}, over all looks"),
        Entry("Looks at this study", ", ".join(map(_look, recommendation.looks))),
        Entry(
            "In-domain items",
            quantities.count(recommendation.num_items_in_domain)
            + quantities.in_clusters(recommendation.num_clusters_in_domain),
        ),
        Entry("Seeds of each rank", quantities.count(recommendation.num_seeds)),
    ]
    return tuple(facts)


def _look(look: Look) -> str:
    """1 (988 items, may be wrong in 4 %)."""
    items = quantities.counted(sum(look.num_items.values()), "item")
    return f"{look.number} ({items}, may be wrong in {quantities.percent(round(look.alpha, 4))})"


def training_facts(results: StudyResults) -> tuple[Entry, ...]:
    """The settings that every run shares."""
    config, train = results.study.config, results.study.config.train
    shape = f"{train.batch_size} × {train.gradient_accumulation_steps} accumulated"
    plans = results.study.runs
    facts = [
        Entry("Base model", base_model_name(config)),
        Entry("Trained on", source_name(config)),
        Entry("Training examples", _range(plan.num_examples for plan in plans)),
        Entry("Epochs", ", ".join(str(number) for number in train.epochs)),
        Entry(
            "Batch", f"{shape} = {train.batch_size * train.gradient_accumulation_steps} examples"
        ),
        Entry("Optimizer steps", _range(plan.num_steps for plan in plans)),
        Entry("Tokens of each run", _range(plan.num_tokens for plan in plans)),
        *_method_facts(config, plans),
        Entry("Optimizer", f"AdamW, weight decay {quantities.number(train.weight_decay)}"),
        Entry(
            "Schedule", f"{train.schedule}, warm-up over {100 * train.warmup_ratio:g} % of steps"
        ),
        Entry("Gradient clipping", f"norm {quantities.number(train.max_grad_norm)}"),
        Entry("Dropout", quantities.number(train.dropout)),
        Entry("Loss on", "the completion only" if train.loss_on == "completion" else "all tokens"),
        Entry("Chat template", "yes" if train.chat_template else "no"),
        Entry("Longest example", f"{quantities.count(train.max_length)} tokens"),
        Entry("Precision", results.study.precision),
        Entry("Seeds", ", ".join(str(seed) for seed in config.seeds)),
        *([Entry("Task code", "allowed")] if config.allow_task_code else []),
    ]
    return tuple(facts)


def provenance_facts(results: StudyResults) -> tuple[Entry, ...]:
    """What made the numbers."""
    made = results.study.provenance
    devices = {run.provenance.device for run in _runs(results)} | {made.device}
    return (
        Entry("Study", results.study.config.name),
        Entry("Study fingerprint", results.study.fingerprint),
        Entry("Base model fingerprint", results.study.base_model_fingerprint),
        *software_facts(made),
        Entry("Python", made.python_version),
        Entry("Platform", made.platform),
        Entry("Device", ", ".join(sorted(d for d in devices if d)) or NOT_RECORDED),
        Entry("Planned", made.created_at),
    )


def software_facts(made: Provenance) -> tuple[Entry, ...]:
    """With which software, for studies and audits."""
    packages = [f"{name} {version}" for name, version in sorted(made.package_versions.items())]
    return (
        Entry("rankwise", made.rankwise_version),
        Entry("Commit", made.git_commit or NOT_RECORDED),
        Entry("Packages", ", ".join(packages) or NOT_RECORDED),
    )


def study_warnings(results: StudyResults) -> tuple[str, ...]:
    """Everything that a reader should know before trusting the numbers; empty if nothing."""
    texts = list(results.study.warnings)
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
                f"{name} diverged and takes no part: {run.message or 'no reason was recorded'}."
            )
        elif run.update_is_zero:
            texts.append(f"{name} did not change the weights at all.")
        if run.num_truncated:
            texts.append(
                f"{name}: {quantities.counted(run.num_truncated, 'training example')} of "
                f"{quantities.count(run.planned.num_examples)} cut to the longest length."
            )
    texts.extend(_cut_items(results))
    texts.extend(_mixed_versions(results))
    return tuple(texts)


def base_model_name(config: StudyConfig) -> str:
    """The name, of a folder only its last part; with the revision if it is fixed."""
    name = config.base_model.name
    name = Path(name).name if Path(name).is_absolute() else name
    return name if config.base_model.revision is None else f"{name} @ {config.base_model.revision}"


def source_name(config: StudyConfig) -> str:
    """The task that was trained on, or the name of the file."""
    train = config.train
    return ", ".join(train.task) or ("" if train.data is None else train.data.name)


def _method_facts(config: StudyConfig, plans: Sequence[PlannedRun]) -> Iterable[Entry]:
    lora, full = config.methods.lora, config.methods.full
    if lora is None:
        yield Entry("LoRA", "not part of the study")
    else:
        ranks = sorted({run.rank for run in plans if run.rank is not None})
        yield Entry("LoRA ranks", ", ".join(str(rank) for rank in ranks))
        yield Entry("LoRA alpha", "; ".join(_alpha(alpha) for alpha in lora.alpha))
        if lora.init == "B":
            yield Entry("LoRA's random matrix", "B; A begins at zero")
        sets = dict.fromkeys(run.target_modules for run in plans if run.target_modules)
        yield Entry("LoRA target modules", "; ".join(", ".join(names) for names in sets))
        yield Entry("LoRA learning rate", _rates(plans, "lora"))
    if full is None:
        yield Entry("Full fine-tuning", "not part of the study")
    else:
        yield Entry("Full fine-tuning learning rate", _rates(plans, "full"))
        yield Entry("Full fine-tuning's weights", f"{full.weights}, by {full.optimizer}")


def _rates(plans: Sequence[PlannedRun], method: str) -> str:
    labels = [label for plan in plans if plan.method == method for label in plan.rate_labels]
    return ", ".join(dict.fromkeys(labels))


def _alpha(alpha: AlphaConfig) -> str:
    if alpha.policy == "proportional":
        return f"{quantities.number(alpha.alpha_of(1))} × rank"
    kind = (
        "over the square root of the rank (rsLoRA)" if alpha.policy == "rslora" else "at any rank"
    )
    return f"{quantities.number(alpha.alpha_of(1))} {kind}"


def _range(values: Iterable[int]) -> str:
    ordered = sorted(values)
    if not ordered:
        return quantities.NOT_MEASURED
    low, high = quantities.count(ordered[0]), quantities.count(ordered[-1])
    return low if low == high else f"{low} to {high}"


def _runs(results: StudyResults) -> list[RunRecord]:
    return [model.run for model in results.runs if model.run is not None]


def _cut_items(results: StudyResults) -> Iterable[str]:
    for task, evaluation in results.base.evaluations.items():
        if evaluation.num_truncated:
            yield (
                f"{task}: {quantities.counted(evaluation.num_truncated, 'item')} of "
                f"{quantities.count(evaluation.num_examples)} too long for the model, cut."
            )


def _mixed_versions(results: StudyResults) -> Iterable[str]:
    """Runs that were made with other versions, or on another device, than the rest."""
    made = [run.provenance for run in _runs(results)]
    names = sorted({name for provenance in made for name in provenance.package_versions})
    for name in names:
        versions = sorted({run.package_versions.get(name, "none") for run in made})
        if len(versions) > 1:
            yield f"The runs were made with different versions of {name}: {', '.join(versions)}."
    for name, values in (
        ("devices", {run.device or NOT_RECORDED for run in made}),
        ("versions of rankwise", {run.rankwise_version for run in made}),
    ):
        if len(values) > 1:
            yield f"The runs were made with different {name}: {', '.join(sorted(values))}."
