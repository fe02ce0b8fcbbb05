"""Whether a config, its tasks and its base model go together; each finding is an issue."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Mapping, Sequence

from rankwise.engine.models.attention import refuse_unpackable
from rankwise.engine.models.files import check_stored
from rankwise.engine.models.peft_adapters import misloaded
from rankwise.engine.models.start import check_start
from rankwise.engine.models.structure import (
    MODULE_KINDS,
    LinearShape,
    adaptable_shapes,
    matching_modules,
    not_linear,
    resolved_targets,
    target_shapes,
)
from rankwise.engine.training.loop import num_optimizer_steps
from rankwise.errors import TaskError, did_you_mean
from rankwise.records import quantities
from rankwise.records.axes import lora_settings
from rankwise.records.clusters import cluster_fields, cluster_numbers
from rankwise.records.config.study import StudyConfig
from rankwise.records.folder import LOSS_METRIC
from rankwise.records.forms import is_served
from rankwise.records.p_right import P_RIGHT
from rankwise.records.results import MIN_ITEMS, TOKENS_METRIC
from rankwise.records.study import Relation, StudyTasks
from rankwise.study.planning.issues import Issues
from rankwise.study.planning.model import StudyModel
from rankwise.study.planning.runs import TargetLayers
from rankwise.tasks.chat_templates import chat_template_fault
from rankwise.tasks.requests import PreparedTask
from rankwise.weights.forms import find_forms


def check_model(config: StudyConfig, model: StudyModel, issues: Issues) -> None:
    """Whether the base model can do what the config asks for."""
    train, evaluation, methods = config.train, config.evaluation, config.methods
    if (train.chat_template or evaluation.chat_template) and not model.has_chat_template:
        issues.problems.append(
            f"chat_template: the tokenizer of {model.base.name} has none; set it to false"
        )
    elif train.chat_template or evaluation.chat_template:
        fault = chat_template_fault(model.tokenizer)
        if fault is not None:
            issues.problems.append(f"chat_template: that of {model.base.name} is broken: {fault}")
    # training and scoring pack sequences; a model that would mix them is refused
    with issues.of("base_model"):
        refuse_unpackable(model.skeleton)
        if model.base.has_weights:
            beside = check_stored(model.base.folder, model.skeleton)
            issues.warnings.extend(f"base_model: {each}" for each in beside)
    if model.start is not None:
        place = "methods.lora.start"
        with issues.of(place):
            unchecked = check_start(model.base, model.start, model.skeleton)
            issues.warnings.extend(f"{place}: {each}" for each in unchecked)
    text_config = model.skeleton.config.get_text_config()
    weight = getattr(text_config, "router_aux_loss_coef", 0.0)
    if train.dpo is not None and weight and hasattr(text_config, "output_router_logits"):
        issues.problems.append(
            f"train.objective: {model.base.name} is a mixture of experts, and DPO here lacks the "
            f"loss that keeps them in balance, which TRL adds (router_aux_loss_coef: {weight:g}); "
            "to train without it, write 0 into the config.json of a copy of the model"
        )
    if train.base_precision != "auto" and methods.full is not None:
        issues.warnings.append(
            f"train.base_precision: the base and its adapters are trained and scored in "
            f"{train.base_precision}, full fine-tuning is not: part of its difference is theirs"
        )


def check_settings(config: StudyConfig, issues: Issues) -> None:
    """Whether settings go together and what they need is installed, whatever the model."""
    if config.search.policy == "ladder" and config.methods.full is not None:
        issues.warnings.append(
            "search: a ladder does not train full fine-tuning; use search.policy=narrow to "
            "compare it"
        )
    if config.search.policy == "ladder":
        ranks = [settings.rank for settings in lora_settings(config)]
        if twice := next((rank for rank in ranks if ranks.count(rank) > 1), None):
            issues.problems.append(
                f"search.policy: a ladder climbs from rank to rank, and rank {twice} has several "
                "settings (alpha, rate, target_modules or epochs); give one of each, or use narrow"
            )
    if config.search.grows and config.evaluation.limit is None:
        more = "nothing" if config.is_searched else "seeds alone"
        issues.warnings.append(
            f"search: all items are planned, so {more} can be added after the plan; set "
            "evaluation.limit to plan fewer items"
        )
    if len(config.seeds) == 2:
        issues.warnings.append(
            "seeds: two seeds hardly show how much runs vary, so a verdict about the rank, with "
            "other seeds, has wide bounds; use three or more, or one, and judge its adapters alone"
        )
    for form in itertools.filterfalse(is_served, config.deploy):
        with issues.of("deploy"):
            find_forms([form])
    if config.deploy and config.methods.lora is None and not config.methods.imported:
        issues.problems.append(
            "deploy: full fine-tuning is never recommended, so there is no run to check; leave "
            "deploy out"
        )
    if config.deploy and config.train.base_precision != "auto":
        issues.problems.append(
            f"deploy: the study scores its adapters on a base in {config.train.base_precision}, "
            "but forms need the unquantised base; leave deploy out, and ask rankwise check --forms"
        )
    for index, name in enumerate(config.tracking):
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # a folder of that name, as wandb makes one
            issues.problems.append(
                f"tracking[{index}]: {name} is not installed; pip install {name}, or leave it out"
            )


def _check_servable(tasks: Sequence[PreparedTask], issues: Issues) -> None:
    """What a server is asked for is greedy text, as it writes it by itself."""
    for task in tasks:
        settings = [each.settings for each in task.requests if each.settings is not None]
        unsent = {name for each in settings for name in each.changes_of_greedy}
        if unsent:
            issues.problems.append(
                f"deploy: the generation_kwargs of {task.name} have "
                f"{quantities.listed(sorted(unsent))}, and a server is not asked for that; leave "
                "the server out, or score plain greedy texts"
            )
    sampled = [task.name for task in tasks if task.num_draws]
    if sampled:
        issues.problems.append(
            f"deploy: {', '.join(sampled)} samples its texts, and no server draws as another does; "
            "leave the server out, or score greedy texts"
        )


def _check_labels(config: StudyConfig, by_name: Mapping[str, PreparedTask], issues: Issues) -> None:
    """Whether a person can judge the answers to the tasks that are named, from wrong to right."""
    for name, number in config.evaluation.labels.items():
        what = f"evaluation.labels.{name}"
        if name not in by_name:
            hint = did_you_mean(name, by_name) or f"it has {', '.join(by_name)}"
            issues.problems.append(f"evaluation.labels: no task {name!r} is scored; {hint}")
            continue
        loaded = by_name[name].loaded
        better = loaded.task.higher_is_better()
        metric = config.evaluation.metric_of(name) or next(iter(better), None)
        if loaded.output_type != "generate_until":
            issues.problems.append(
                f"{what}: nothing is written there for a person to judge; name a task that writes, "
                "such as own rows with judged_by: {code: ...}"
            )
        elif loaded.compares_with_base:
            issues.problems.append(
                f"{what}: its judge compares answers with the base's, and a label says whether one "
                "is right; leave it out"
            )
        elif metric is None or not better.get(metric, True) or metric == TOKENS_METRIC:
            issues.problems.append(
                f"{what}: {metric} is no share from 0 (wrong) to 1 (right), as labels are; leave "
                "it out, or name another metric in evaluation.metric"
            )
        elif number >= by_name[name].num_items:
            issues.warnings.append(
                f"{what}: all {by_name[name].num_items} items are labelled, so the judge does not "
                "count"
            )


def check_tasks(
    config: StudyConfig, tasks: Sequence[PreparedTask], scored: StudyTasks, issues: Issues
) -> None:
    """Whether tasks have the metrics and fields that are named, and enough items for an error."""
    by_name = {task.name: task for task in tasks}
    for name, wanted in config.evaluation.metric.items():
        if name not in by_name:
            hint = did_you_mean(name, by_name) or f"it has {', '.join(by_name)}"
            issues.problems.append(f"evaluation.metric: no task {name!r} is scored; {hint}")
            continue
        loaded = by_name[name].loaded
        own = [P_RIGHT] if loaded.output_type == "multiple_choice" else []
        known = [*loaded.task.aggregation(), LOSS_METRIC, *own]
        if wanted.partition(",")[0] not in known:
            issues.problems.append(
                f"evaluation.metric.{name}: no metric {wanted!r}; it has {', '.join(known)}"
            )
    _check_labels(config, by_name, issues)
    if any(map(is_served, config.deploy)):
        _check_servable(tasks, issues)
    try:
        fields = cluster_fields(config.evaluation.clusters, scored)
    except TaskError as error:
        issues.problems.append(str(error))
        fields = {}
    for name, field in fields.items():
        documents = {instance.doc_id: instance.doc for instance in by_name[name].instances}
        try:
            cluster_numbers(documents, field, f"evaluation.clusters.{name.partition('@')[0]}", name)
        except TaskError as error:
            issues.problems.append(str(error))
    relation_of: dict[str, Relation] = {}
    for relations in scored.tasks.values():
        for relation, names in relations.items():
            relation_of |= {name: relation for name in names if name not in relation_of}
    for name, relation in relation_of.items():
        task = by_name.get(name)
        if task is None or task.num_items >= MIN_ITEMS:
            continue
        if config.evaluation.limit is not None and config.evaluation.limit < MIN_ITEMS:
            place, remedy = "evaluation.limit", f"raise it to {MIN_ITEMS} at least"
        elif task.loaded.is_rendered:
            place = "train.held_out_fraction"
            remedy = "raise it, or give train.data more rows"
        else:
            place = f"evaluation.{relation}"
            remedy = "leave it out, or give it more items"
        issues.problems.append(
            f"{place}: {task.num_items} item of {name!r} is scored, and a difference "
            f"needs {MIN_ITEMS} for its error; {remedy}"
        )


def check_warmup(config: StudyConfig, train_task: str, num_examples: int, issues: Issues) -> None:
    """Whether any step of the shortest training is after the warm-up."""
    if config.train.rows_at == "epochs":
        num_examples = min([num_examples, *config.train.max_examples])
    steps = num_optimizer_steps(num_examples, config.train, min(config.train.epochs))
    if 0 < steps <= math.ceil(config.train.warmup_ratio * steps):
        issues.warnings.append(
            f"train: {steps} optimizer steps on {train_task} are all warm-up, which starts at a "
            "rate of 0; train on more examples or lower warmup_ratio"
        )


def target_layers(
    config: StudyConfig, model: StudyModel, issues: Issues
) -> dict[tuple[str, ...], TargetLayers]:
    """The layers that each set of target modules adapts."""
    shapes = adaptable_shapes(model.skeleton)
    grid = lora_settings(config)
    sets = dict.fromkeys(settings.target_modules for settings in grid)
    known = sorted({name.rpartition(".")[2] for name in shapes})
    left_out = not_linear(model.skeleton)
    layers: dict[tuple[str, ...], TargetLayers] = {}
    for names in sets:
        resolved = resolved_targets(shapes, names)
        matches = matching_modules(shapes, resolved)
        unknown = [target for target, found in matches.items() if not found]
        for target in unknown:
            near = did_you_mean(target, [*known, *MODULE_KINDS])
            hint = near or f"it has {', '.join(known)}"
            place = f"[{names.index(target)}]" if target in names else ""
            issues.problems.append(
                f"methods.lora.target_modules{place}: {model.base.name} has no linear layer "
                f"named {target!r}; {hint}"
            )
        if not unknown:
            _check_loading(matches, shapes, model, issues)
        for kind in MODULE_KINDS.keys() & set(names):
            found = {name for name in left_out if MODULE_KINDS[kind].search(name)}
            if modules := sorted({".".join(name.split(".")[-2:]) for name in found}):
                issues.warnings.append(
                    f"methods.lora.target_modules: {kind} leaves out "
                    f"{quantities.listed(modules)} of {model.base.name}: fused experts and routers "
                    "are not linear layers"
                )
        layers[names] = TargetLayers(resolved, target_shapes(shapes, resolved))
    for index, rank in enumerate(dict.fromkeys(settings.rank for settings in grid)):
        modules_by_side: dict[int, set[str]] = {}  # where a layer's update cannot have that rank
        for targets in layers.values():
            for name, shape in targets.shapes.items():
                if rank > min(shape):
                    modules_by_side.setdefault(min(shape), set()).add(name.rpartition(".")[2])
        for side, modules in sorted(modules_by_side.items()):
            issues.warnings.append(
                f"methods.lora.ranks[{index}]: rank {rank} is above min(in, out) of "
                f"{', '.join(sorted(modules))} ({side}); the update there has rank {side} at most"
            )
    return layers


def _check_loading(
    matches: Mapping[str, Sequence[str]],
    shapes: Mapping[str, LinearShape],
    model: StudyModel,
    issues: Issues,
) -> None:
    """Whether PEFT would load adapters of these targets as they are trained."""

    def is_misloaded(targets: Sequence[str]) -> bool:
        return bool(misloaded(model.skeleton, target_shapes(shapes, targets), targets))

    if not matches or not is_misloaded([*matches]):
        return
    lost = [target for target in matches if is_misloaded([target])]
    kept = [target for target in matches if target not in lost]
    remedy = f"name {', '.join(kept)}" if kept else "name attention, or choose another base model"
    issues.problems.append(
        f"methods.lora.target_modules: PEFT would not load adapters of {', '.join(lost)} on the "
        f"layers of {model.base.name} that are trained; {remedy}"
    )
