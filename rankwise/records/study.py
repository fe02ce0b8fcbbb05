"""Typed results: frozen, versioned, with the unit or kind in every stored name."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Any, Literal, Protocol, Self, get_args

from pydantic import Field, model_validator

from rankwise.records.base import SCHEMA_VERSION, FileRecord, Record, SchemaVersion, VersionedRecord
from rankwise.records.config.mitigations import MitigationConfig
from rankwise.records.config.study import StudyConfig
from rankwise.records.config.variants import VariantName
from rankwise.records.fields import FileName, Place, PlaceBelow, Text, UserPath
from rankwise.records.files import FileDigest, merged_base_folder
from rankwise.records.forms import AS_TRAINED
from rankwise.records.own_data import OwnData

Relation = Literal["in_domain", "out_of_domain", "retention", "held_out_text"]
RELATIONS: tuple[Relation, ...] = get_args(Relation)
Method = Literal["lora", "full"]
OptimizerName = Literal["adamw", "adamw_8bit"]
Unit = Literal["points", "nats", "tokens", "units"]
"""Shares times 100; a loss per token; or a score's own, such as a reward's."""
State = Literal["yes", "no", "undecided"]


class StageRecord(FileRecord, has_texts=False):
    """Base of what a stage writes: it is recomputed when what it depends on has changed."""

    fingerprint: str
    """Hash of everything that the record depends on."""
    schema_version: SchemaVersion = SCHEMA_VERSION


class Provenance(Record):
    """What made a record: versions, platform, and the commit if there was one."""

    rankwise_version: str
    python_version: str
    platform: str
    package_versions: dict[str, str]
    git_commit: str | None
    device: str | None
    created_at: str
    products: str | None = None
    """How a card multiplies: precision in float32, and sums in half precision; None on a CPU."""


class Training(Record):
    """A whole training that another model comes from; a checkpoint's may never be finished."""

    name: FileName
    """The name of its run."""
    fingerprint: str
    num_steps: int
    """Optimizer steps of the whole, by which its schedule goes."""


_WEIGHT_BYTES = {"float32": 4, "bfloat16": 2}
_MOMENTS_BYTES = {"adamw": 8, "adamw_8bit": 2}  # of both, per weight


class FullTraining(Record):
    """How full fine-tuning keeps what it trains: ``methods.full`` without ``auto``."""

    weights: Literal["float32", "bfloat16"] = "float32"
    optimizer: OptimizerName = "adamw"


class Ranked(Protocol):
    """A planned run, a verdict or a recommendation; ``mean_rank`` is that of a rank pattern."""

    @property
    def rank(self) -> int | None: ...
    @property
    def mean_rank(self) -> float | None: ...


def exact_rank(of: Ranked) -> float:
    """The rank by which trained weights are ordered, not rounded; 0 for full fine-tuning."""
    return of.mean_rank or of.rank or 0


class Scaled(Ranked, Protocol):
    """The same with its scaling; all are None for full fine-tuning."""

    @property
    def alpha(self) -> float | None: ...
    @property
    def scaling(self) -> float | None: ...


def is_rslora(of: Scaled) -> bool:
    """Whether alpha is divided by the root of the rank; no at rank 1, where both are the same."""
    if of.rank is None or of.alpha is None or of.scaling is None:
        return False
    return of.rank > 1 and math.isclose(of.scaling, of.alpha / math.sqrt(of.rank))


Role = Literal[
    "trained",
    "imported",
    "searched",
    "checkpoint",
    "mitigated",
    "variant",
    "fewer_rows",
]
"""What a model is to its study; models of all roles but "searched" are scored on test items.

- trained: a setting of the study file, or what its search chose; the verdict compares these.
- imported: trained elsewhere; compared like the trained ones.
- searched: a search decides by it; scored on validation items only.
- checkpoint: a trained run after some of its steps.
- mitigated: a trained run once more, with a repair against forgetting.
- variant: a variant of LoRA.
- fewer_rows: a trained run's setting on some of its rows.
"""
COMPARED: tuple[Role, ...] = ("trained", "imported")
"""The roles that the verdict is about; models of the others are shown beside these."""


class Imported(Record):
    """Where an imported model is from."""

    label: Text
    folder: UserPath


class GoesOnFrom(Record):
    """The run whose weights another run begins at."""

    name: FileName
    fingerprint: str
    rank: int = 0
    """Of what stays as it is, where a new adapter is trained beside it; 0 where that is trained on.
    """

    @property
    def is_beside(self) -> bool:
        """Whether a new adapter is trained beside these weights."""
        return self.rank > 0


class PlannedRun(Record):
    """One model of a study, as planned: a setting, a trained task and a seed.

    A checkpoint of a run is a model like a run, with the settings of its training.
    """

    name: FileName
    """Name of the run, and of its folder in the study folder."""
    fingerprint: str
    """Hash of everything that its training depends on."""
    role: Role = "trained"
    of: Training | None = None
    """The training that it comes from: whose part it is, or which it repeats with a repair or on
    fewer rows. None where it comes from none, or is a whole training itself."""
    after: GoesOnFrom | None = None
    """The run of the task before, in a sequence of tasks; None: it begins at the base."""
    method: Method
    train_task: Text
    """The task that the run is trained on."""
    rank: int | None = None
    """None for full fine-tuning; of a rank pattern `mean_rank`, rounded."""
    layer_ranks: tuple[tuple[str, int], ...] = ()
    """Of a rank pattern the rank of every adapted layer; empty where all have `rank`."""
    mean_rank: float | None = None
    """Of a rank pattern the rank that trains as many weights, on all layers that `target_modules`
    names; None where all layers have `rank`."""
    alpha: float | None = None
    """None for full fine-tuning, and for a variant whose update has no scaling."""
    alpha_labels: tuple[str, ...] = ()
    """How alpha follows from the rank ("2r"): values on the alpha axis.

    Several where two settings of the study give the same run.
    """
    scaling: float | None = None
    """Factor of the LoRA update B·A, from alpha and rank; None for full fine-tuning."""
    learning_rate: float | None = None
    """None for an imported model."""
    rate_labels: tuple[str, ...] = ()
    """How the learning rate follows from the rank ("2e-4 × (r/32)^-1/2"), like `alpha_labels`."""
    epochs: int | None = None
    """How often rows are read, the last time maybe in part; None for an imported model."""
    target_modules: tuple[str, ...] = ()
    """The adapted linear layers, as PEFT takes them; empty for full fine-tuning."""
    full: FullTraining | None = None
    """What full fine-tuning takes; None for LoRA."""
    seed: int | None = None
    """None for an imported model."""
    imported: Imported | None = None
    """Where an imported model is; None for all others, and of models known by scores alone."""
    called: Text | None = None
    """What a model is called where its scores are from; None for what the study scores itself."""
    mitigation: MitigationConfig | None = None
    """What a mitigated run changes against forgetting."""
    variant: VariantName | None = None
    """Which variant of LoRA it is; None: LoRA itself, or full fine-tuning."""
    beside_ranks: tuple[int, ...] = ()
    """LoRA's ranks with which a variant is compared; empty for what is not a variant.

    Several where it is the same training beside each: VeRA's rank is limited.
    """
    num_steps: int
    """Optimizer steps; of a checkpoint, those until there."""
    num_examples: int
    """Training rows."""
    num_tokens: int
    """Tokens of its examples, over all epochs; of texts that it writes itself, at most."""
    num_shared_tokens: int = 0
    """Those of them that are not read again: a prompt is read once for all of a step's texts."""
    num_written_tokens: int = 0
    """Those that it writes itself, at most."""
    num_beside_tokens: int = 0
    """Tokens of its texts that the base or a teacher reads besides, at most."""
    num_trainable_parameters: int
    """0 where nobody knows: of a model that is known by its scores alone."""
    trainable_share: float
    """Trainable parameters as a share of the base model's."""
    estimated_memory_bytes: int
    """Estimated peak of training this run alone."""

    @property
    def training(self) -> Training:
        """The whole training that its weights come from, its own or that of a checkpoint."""
        return self.as_whole if self.of is None or self._repeats_it else self.of

    @property
    def as_whole(self) -> Training:
        """It as what other models come from."""
        return Training(name=self.name, fingerprint=self.fingerprint, num_steps=self.num_steps)

    @property
    def is_part(self) -> bool:
        """Whether its training goes on after it: a checkpoint, or a run that stops early."""
        return self.training.name != self.name

    @property
    def whole(self) -> PlannedRun:
        """The whole training as a run, with its name, its fingerprint and its steps."""
        of = self.of if self._repeats_it else None
        return self.model_copy(update={**dict(self.training), "of": of})

    @property
    def _repeats_it(self) -> bool:
        """Whether ``of`` is a training that it repeats, not one that it is a part of."""
        return self.role in ("mitigated", "fewer_rows")

    @property
    def as_candidate(self) -> PlannedRun:
        """The same as a search sees it: scored on validation items only."""
        return self.model_copy(update={"role": "searched"})

    @property
    def saved_targets(self) -> tuple[str, ...]:
        """The adapted layers as a config of PEFT names them; of a rank pattern, each as a whole."""
        return tuple(name for name, _ in self.layer_ranks) or self.target_modules

    @property
    def highest_rank(self) -> int:
        """Of its layers; 0 for full fine-tuning."""
        return max((rank for _, rank in self.layer_ranks), default=self.rank or 0)

    @property
    def num_held_weights(self) -> int:
        """The weights in memory as it trains: each layer has the highest rank, filled with zeros.

        At most so many, where a rank pattern leaves out layers.
        """
        factor = 1.0 if self.mean_rank is None else self.highest_rank / self.mean_rank
        return round(self.num_trainable_parameters * factor)

    @property
    def num_read_tokens(self) -> int:
        """Tokens that it reads as it trains, over all epochs."""
        return self.num_tokens - self.num_shared_tokens

    @property
    def num_beside(self) -> int:
        """The weights that it is trained beside, and saved with."""
        rank = 0 if self.after is None else self.after.rank
        return self.num_trainable_parameters * rank // max(self.highest_rank, 1)

    @property
    def weights_bytes(self) -> int:
        """Bytes of its weights in a file; an adapter's are float32."""
        weights = "float32" if self.full is None else self.full.weights
        return (self.num_trainable_parameters + self.num_beside) * _WEIGHT_BYTES[weights]

    @property
    def state_bytes(self) -> int:
        """Bytes of a saved state of its training: the weights and two moments of each."""
        optimizer = "adamw" if self.full is None else self.full.optimizer
        weights = "float32" if self.full is None else self.full.weights
        return self.num_held_weights * (_WEIGHT_BYTES[weights] + _MOMENTS_BYTES[optimizer])

    @property
    def stored_bytes(self) -> int:
        """Bytes of its weights in the study folder; an imported checkpoint stays where it is."""
        is_elsewhere = self.role == "imported" and self.method == "full"
        return 0 if is_elsewhere else self.weights_bytes


class PlannedPass(Record):
    """Runs that are trained together, in one pass over one base model."""

    runs: tuple[str, ...]
    """Names of the runs, and of the checkpoints that are taken on the way."""
    max_tokens: int
    """The most tokens in one micro-batch."""
    gradient_checkpointing: bool
    estimated_memory_bytes: int
    """Estimated peak: of the process on a CPU, of the card on CUDA."""


class PromptedTask(Record):
    """A task as the base is asked it with training rows in the prompt."""

    task: Text
    """The task whose items are asked."""
    name: Text
    """The name under which it is scored."""
    shots: int
    """Rows in the prompt."""
    seed: int | None
    """The seed by which they were drawn; None without any."""
    context_tokens: float
    """Read before the answer of an item, on average."""


class StudyTasks(Record):
    """Which tasks a study scores, and what each is to the tasks that are trained."""

    tasks: dict[Text, dict[Relation, tuple[Text, ...]]]
    """Trained task -> relation to it -> the scored tasks that decide."""
    trained_formats: dict[str, dict[str, Text]]
    """Trained task -> {task: name under which it is also scored in the training format}.

    Only tasks whose standard format differs from the training format are in it.
    """
    trained_items: dict[str, dict[str, Text]]
    """Trained task -> {task: name of the task made of the rows that were trained on}."""
    ending_items: dict[str, Text]
    """Trained task -> name of the task that scores only how the trained rows end."""
    validation_items: dict[str, dict[Relation, dict[str, Text]]] = Field(default_factory=dict)
    """Trained task -> relation -> {task: name of the task made of its validation items}.

    Runs and checkpoints are chosen by these; only tasks in-domain and of retention have them.
    """
    prompted: dict[Text, tuple[PromptedTask, ...]] = Field(default_factory=dict)
    """Trained task -> its in-domain tasks with trained rows in the prompt; for the base alone."""
    earlier: dict[Text, tuple[Text, ...]] = Field(default_factory=dict)
    """Trained task -> in-domain tasks of those that it goes on from, in a sequence; scored too."""
    replayable: tuple[Text, ...] = ()
    """Tasks out of domain that no run is trained on and whose own training rows are not scored: an
    arm can replay these."""
    overlaps: dict[str, dict[str, int]]
    """Trained task -> {scored task: number of its items that are in the training rows}."""
    groups: dict[Text, tuple[Text, ...]]
    """Task group named in the study -> its leaf tasks."""
    domains: dict[str, Text]
    """Task -> its domain; tasks without one are left out."""

    def scored_tasks(self, train_task: str | None = None) -> tuple[str, ...]:
        """Every name under which a model trained on ``train_task`` is scored; None: the base."""
        sources = self.tasks if train_task is None else (train_task,)
        scored = [
            task
            for source in sources
            for names in (
                *self.tasks[source].values(),
                self.trained_formats[source].values(),
                self.trained_items[source].values(),
                (self.ending_items[source],) if source in self.ending_items else (),
                self.validation_tasks(source),
                self.earlier.get(source, ()),
                self.prompted_tasks(source) if train_task is None else (),
            )
            for task in names
        ]
        return tuple(dict.fromkeys(scored))

    def prompted_tasks(self, train_task: str) -> tuple[str, ...]:
        """The names of the tasks with rows of a trained task in the prompt."""
        return tuple(each.name for each in self.prompted.get(train_task, ()))

    def validation_tasks(self, train_task: str) -> tuple[str, ...]:
        """The names of the validation items of a trained task, and of what it may forget."""
        by_relation = self.validation_items.get(train_task, {})
        return tuple(name for names in by_relation.values() for name in names.values())

    def without(self, left_out: Collection[str]) -> Self:
        """The same without some scored tasks, nor what else is made of their items."""

        def kept(names: dict[str, str]) -> dict[str, str]:
            return {task: name for task, name in names.items() if not {task, name} & {*left_out}}

        return self.model_copy(
            update={
                "tasks": {
                    source: {
                        relation: tuple(name for name in names if name not in left_out)
                        for relation, names in relations.items()
                    }
                    for source, relations in self.tasks.items()
                },
                "trained_formats": {s: kept(names) for s, names in self.trained_formats.items()},
                "trained_items": {s: kept(names) for s, names in self.trained_items.items()},
                "ending_items": kept(self.ending_items),
                "earlier": {
                    source: tuple(task for task in names if task not in left_out)
                    for source, names in self.earlier.items()
                },
                "prompted": {
                    source: tuple(e for e in its if not {e.task, e.name} & {*left_out})
                    for source, its in self.prompted.items()
                },
                "validation_items": {
                    source: {relation: kept(names) for relation, names in by_relation.items()}
                    for source, by_relation in self.validation_items.items()
                },
            }
        )


class StageInputs(Record):
    """What a kind of stage reads for one trained task, besides the scored tasks."""

    fingerprint: str | None = None
    """Hash of what is read; None where the fingerprint of the kind's records says it otherwise."""
    num_tokens: int
    """Distinct tokens (shared prefixes count once); only the time left is estimated from them."""


class Decompositions(Record):
    """What the analysis of weights decomposes, and how fast: times are arithmetic, not measured."""

    shapes: tuple[tuple[int, int, int], ...] = ()
    """Rows, columns and number of the matrices that any run adapts."""
    flops: float = 1.0
    """Multiplications and additions in a second that the device is assumed to do."""
    tokens_per_second: float = 1.0
    """Tokens that it is assumed to score in a second, to compare."""
    kept_bytes: int = 0
    """Bytes of the base's decompositions that the cache folder keeps."""


class FirstItems(Record):
    """The first items of a task in its random order, which most runs answer."""

    num_items: int
    num_all: int
    """Items of the task that the references answer."""
    num_tokens: int
    """Distinct ones, as in ``StudyRecord.scored_tokens``."""
    fingerprint: str
    """The fingerprint of these items alone, as in ``StudyRecord.task_fingerprints``."""


class References(Record):
    """Which runs answer all items, and what of a task the other LoRA runs answer."""

    runs: dict[Text, tuple[Text, ...]] = Field(default_factory=dict)
    """Trained task -> the runs from which the others' items are estimated, chosen before any score
    is seen: a LoRA run, and the full fine-tuning of its seed where there is one."""
    parts: dict[Text, FirstItems] = Field(default_factory=dict)
    """Scored task -> what the other LoRA runs answer; a task that is missing is answered whole."""
    whole: tuple[Text, ...] = ()
    """Tasks that were answered in part, of which the references predicted too little."""
    answered: tuple[Text, ...] = ()
    """Runs that had answered all items before there were references: none of theirs is estimated.
    """

    def without(self, tasks: Collection[str]) -> Self:
        """The same with some more tasks that all runs answer whole."""
        parts = {task: part for task, part in self.parts.items() if task not in tasks}
        return self.model_copy(
            update={"parts": parts, "whole": tuple(sorted({*self.whole, *tasks}))}
        )


class ScoreTables(Record):
    """Where the scores of models are from that were trained and scored elsewhere."""

    files: dict[str, str]
    """Name of a file -> sha256 of it; of what was no file, of its rows."""
    columns: dict[str, str]
    """What a column is taken for -> its name; empty where a log says it itself."""
    base: Text | None
    """The model that the others are compared with; None: there is none, and the mean of all models
    stands in its place."""
    missing: tuple[str, ...] = ()
    """What is missing of single models, where it is much or hangs together with the scores."""

    @property
    def reference(self) -> str:
        """What differences are from, in words."""
        return "mean of the models" if self.base is None else "base"


class StudyRecord(StudyTasks, FileRecord, has_texts=False):
    """``study.json``: the resolved config and the runs that it plans."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    fingerprint: str
    """Hash of the config."""
    config: StudyConfig
    """The study file's settings, except that ``methods.full`` names what was taken for ``auto``,
    and ``evaluation.clusters`` the columns that cluster users' own rows."""
    base_model_fingerprint: str
    precision: Literal["float32", "bfloat16"]
    """What training and scoring compute in."""
    task_fingerprints: dict[str, str]
    """Scored task -> hash of its items and of how they are scored."""
    inputs: dict[str, dict[Text, StageInputs]] = Field(default_factory=dict)
    """Kind of stage -> trained task -> what the kind reads; a kind that reads nothing of its own is
    left out, and so is a trained task that has nothing to read."""
    num_parameters: int
    """Weights of the base model."""
    decompositions: Decompositions = Decompositions()
    """Empty where weights are not analysed."""
    scored_tokens: dict[str, int] = Field(default_factory=dict)
    """Scored task -> its distinct tokens (shared prefixes count once), and those generated; only
    the time left is estimated from them."""
    references: References = References()
    """Empty where all models answer all items."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of each task's planned items that all models answer by now: the first of the fixed
    order. Validation items are always answered whole."""
    models: tuple[PlannedRun, ...]
    """Everything that has weights of its own, role by role; a name is in it once."""
    passes: tuple[PlannedPass, ...] = ()
    """Which runs are trained together; imported ones are in none."""
    deployed: tuple[str, ...] = ()
    """The runs that ``deploy`` of the study file is about: recommended, or the best bets, when the
    study was last concluded; empty until it is."""
    warnings: tuple[str, ...]
    unable: dict[Text, str] = Field(default_factory=dict)
    """Task of the set ``general`` that the base cannot do -> a sentence that says why it is left
    out; empty until the base is scored."""
    own_data: OwnData | None = None
    """What was read of users' own rows to train on, and how; None without them."""
    own_sets: dict[str, OwnData] = Field(default_factory=dict)
    """Set of ``evaluation.own`` -> what was read of it."""
    scores: ScoreTables | None = None
    """Where the scores are from, of a study that trains and scores nothing; None for all others."""
    provenance: Provenance

    @model_validator(mode="after")
    def _of_its_trained_tasks(self) -> Self:
        """Refuse a record in which what is looked up by a trained task is not there."""
        by_task = {"trained_formats": self.trained_formats, "trained_items": self.trained_items}
        for name, of in by_task.items():
            if lacking := self.tasks.keys() - of.keys():
                raise ValueError(f"{name} lacks the trained task {min(lacking)!r}")
        for model in self.models:
            if model.train_task not in self.tasks:
                raise ValueError(f"{model.name} is trained on {model.train_task!r}, not in tasks")
        return self

    def of_role(self, *roles: Role) -> tuple[PlannedRun, ...]:
        """The models of some roles, in the study's order."""
        return tuple(model for model in self.models if model.role in roles)

    @property
    def runs(self) -> tuple[PlannedRun, ...]:
        """The models that the verdict compares."""
        return self.of_role(*COMPARED)

    @property
    def has_base(self) -> bool:
        """Whether there is a base to be better than; no table of scores needs one."""
        return self.scores is None or self.scores.base is not None

    @property
    def base_elsewhere(self) -> str:
        """What other tools load as the base; with a start, the folder here that both are in."""
        if self.config.methods.start is None:
            return self.config.base_model.name_elsewhere
        return str(merged_base_folder(self.base_model_fingerprint))

    @property
    def base_label(self) -> str:
        """What tables and charts call the model that differences are from."""
        return "base" if self.scores is None else self.scores.reference

    @property
    def tested(self) -> tuple[PlannedRun, ...]:
        """The models that are scored on test items."""
        return tuple(model for model in self.models if model.role != "searched")

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms in which a deployed run is scored, in float32.

        As it was trained too, where the study's own scores are not by the same means.
        """
        deploy = self.config.deploy
        return (AS_TRAINED, *deploy) if deploy and self.precision != "float32" else tuple(deploy)

    def compared_tasks(self, train_task: str) -> tuple[str, ...]:
        """The tasks with a relation to a trained task: what its models are compared on."""
        return tuple(task for names in self.tasks[train_task].values() for task in names)

    def tasks_of(self, model: PlannedRun | None) -> tuple[str, ...]:
        """The names under which a model is scored; None: the base."""
        if model is None:
            return self.scored_tasks()
        if model.role == "searched":
            return self.validation_tasks(model.train_task)
        return self.scored_tasks(model.train_task)

    def part_of(self, model: PlannedRun | None, task: str) -> FirstItems | None:
        """What of a task a model (None: the base) answers; None: all items."""
        if model is None or model.method == "full" or model.role == "searched":
            return None
        references = self.references.runs.get(model.train_task, ())
        is_whole = not references or model.name in (*references, *self.references.answered)
        return None if is_whole else self.references.parts.get(task)

    def tokens_of(self, model: PlannedRun | None, tasks: Iterable[str]) -> int:
        """Distinct tokens of what a model (None: the base) answers of some tasks."""
        parts = {task: self.part_of(model, task) for task in tasks}
        return sum(
            self.scored_tokens.get(task, 0) if part is None else part.num_tokens
            for task, part in parts.items()
        )

    def full_run_of(self, run: PlannedRun) -> PlannedRun | None:
        """The full fine-tuning that a LoRA run is compared with; None without one.

        It has the same trained task and seed, and the same number of epochs if there is such a
        run. Among several, the first in the study is taken.
        """
        if run.method != "lora":
            return None
        alike = (
            other
            for other in self.models
            if other.method == "full"  # few of many
            and other.role in COMPARED
            and (other.train_task, other.seed) == (run.train_task, run.seed)
        )
        return min(alike, key=lambda other: other.epochs != run.epochs, default=None)

    @property
    def top_k(self) -> int:
        """The number of leading singular vectors that are compared with the base's."""
        return self.config.analysis.top_k_of(self.num_parameters)

    @property
    def null_draws(self) -> int:
        """The number of random updates of each kind to compare with."""
        return self.config.analysis.null_draws_of(self.num_parameters)

    @property
    def weights_bytes(self) -> int:
        """Bytes of the base model in the study's precision; a quantised one takes less."""
        return self.num_parameters * (2 if self.precision == "bfloat16" else 4)

    @property
    def adapted_modules(self) -> tuple[str, ...]:
        """What LoRA runs adapt; full fine-tuning is analysed there, or everywhere if empty."""
        return tuple(sorted({name for run in self.runs for name in run.target_modules}))

    @property
    def full_runs_compared(self) -> tuple[PlannedRun, ...]:
        """Every full fine-tuning that a LoRA run is compared with."""
        found = [self.full_run_of(run) for run in self.runs]
        return tuple({run.name: run for run in found if run is not None}.values())


class Interval(Record):
    """An estimate with its two-sided bounds, in whatever unit the subclass or the field says."""

    estimate: float
    lower: float
    upper: float

    def sign(self, at: float = 0.0) -> Literal[-1, 0, 1]:
        """1 or -1 where the whole interval is above or below ``at``, else 0: undecided."""
        return 1 if self.lower > at else -1 if self.upper < at else 0

    def negated(self) -> Self:
        """The interval of the opposite difference: a gain in nats as forgetting."""
        ends = {"estimate": -self.estimate, "lower": -self.upper, "upper": -self.lower}
        return self.model_copy(update=ends)

    def bounded_by(self, other: Interval | None) -> Self:
        """The estimate with the bounds of another interval of the same number; None: as it is."""
        if other is None:
            return self
        return self.model_copy(update={"lower": other.lower, "upper": other.upper})


class Change(Interval):
    """How a mean has changed, with the mean that it had at first."""

    first: float

    @property
    def last(self) -> float:
        """The mean that it has come to."""
        return self.first + self.estimate


class LearnedTexts(Record):
    """What a run wrote and learned from: means over its first tenth of steps, and over its last."""

    num_texts: int
    """That it wrote, each counted for every step that was taken with it."""
    reward_first: float | None
    """Of a text, on average; None where nothing is rewarded."""
    reward_last: float | None
    no_spread_share: float | None
    """The share of rows, over all steps, whose texts all had the same reward."""
    tokens_first: float
    """Of a text, without its prompt."""
    tokens_last: float
    cut_first: float
    """The share of texts that were cut at the length limit."""
    cut_last: float
    entropy_first: float | None
    """Of the next token, in nats; None where a teacher was learned."""
    entropy_last: float | None
    kl_last: float | None
    """KL(model || base) in nats, by GRPO's estimate; None where the base has read no text."""
    reward_change: Change | None
    """Of a text's reward, from the first to the last quarter of the steps for which texts were
    written; 95 %, by Welch's interval of the steps' means. None where nothing is rewarded, and
    where a quarter has fewer than three steps."""
    tokens_change: Change | None
    """The same of a text's tokens."""


class RunRecord(VersionedRecord, has_texts=False):
    """``run.json``: one finished training; written after the weights.

    Of what was not trained here, or diverged, what is not known is nothing.
    """

    status: Literal["trained", "diverged"]
    message: str | None = None
    """Why training stopped early; None if it did not."""
    planned: PlannedRun
    num_steps: int = 0
    """Optimizer steps that were taken."""
    num_tokens: int = 0
    """Tokens of the examples of all steps."""
    num_loss_tokens: int = 0
    """Those of them that were learned."""
    num_truncated: int = 0
    """Training rows that were cut to the maximum length."""
    first_loss_nats: float | None = None
    """Loss per learned token of the first step."""
    final_loss_nats: float | None = None
    """Loss per learned token of the last step."""
    update_is_zero: bool
    """The trained weights equal the base's."""
    weights_bytes: int = 0
    """Size of the stored weights."""
    train_seconds: float = 0.0
    """The run's share, by tokens, of the time of its pass."""
    peak_memory_bytes: int = 0
    """Peak memory of the pass until this run was done."""
    peak_reserved_bytes: int | None = None
    """What PyTorch held of the card at most until then; None on a CPU."""
    kernels: str | None = None
    """The package whose kernels trained beside torch's, with its version; None: there is none."""
    provenance: Provenance
    learned_texts: LearnedTexts | None = None
    """What it wrote itself and learned from; None: it learned from given texts."""
    unsettled_share: float | None = None
    """Share of the layers in which EVA's directions still turned when they were taken; None for
    what does not begin at these."""
    files: dict[Place, FileDigest] = Field(default_factory=dict)
    """What its weights are: name in the run's folder -> digest; a whole path where they are
    elsewhere."""
    metrics: FileDigest | None = None
    """What ``metrics.jsonl`` is; None where it was lost."""

    @classmethod
    def of(cls, planned: PlannedRun, provenance: Provenance, **measured: Any) -> Self:
        """The record of a model of which nothing but this was measured."""
        usual: dict[str, Any] = {"status": "trained", "update_is_zero": True}
        return cls(planned=planned, provenance=provenance, **(usual | measured))

    @property
    def is_reward_failure(self) -> bool:
        """Whether a reward ended it, such as a user's function that failed on a text."""
        return self.message is not None and self.message.startswith("rewards: ")

    @property
    def ending(self) -> str:
        """How a training ended that did not reach its end, in words."""
        return "ended early" if self.is_reward_failure else "diverged"

    @property
    def is_given_up(self) -> bool:
        """Whether its weights were removed, since a search needed its scores only."""
        return self.status == "trained" and self.weights_bytes == 0


class StageFailure(VersionedRecord, has_texts=False):
    """``failures/<stage>.json``: why a stage of a study could not be done; removed once it is."""

    stage: FileName
    """The stage's id."""
    kind: str
    """What the stage does: training, scoring, divergence, heads or spectra."""
    name: str
    """The scored task, or the kind."""
    model: str
    """What the stage works on, as it is shown: "base", a run's name, or a pass."""
    runs: tuple[str, ...]
    """The runs whose records are missing; empty for the base."""
    error: str
    """The kind of error, such as OutOfMemoryError."""
    message: str
    """What went wrong, and what to do about it."""
    failed_at: str
    """When: an ISO 8601 date and time with its zone."""

    @property
    def what(self) -> str:
        """What failed, in words: scoring arc_easy, or training."""
        return f"scoring {self.name}" if self.kind == "scoring" else self.kind


LARGEST_SCORE = 1e30
"""The largest score of an item: the third moments of a million of them are numbers, and no metric
has larger ones."""


class MetricScore(Record):
    """One aggregated metric of a task; never without its error, count and direction."""

    metric: str
    filter: str
    value: float
    stderr: float | None
    num_examples: int
    higher_is_better: bool

    @classmethod
    def of_values(
        cls, metric: str, filter_name: str, values: Sequence[float], *, higher_is_better: bool
    ) -> Self:
        """The mean of one number per item."""
        return cls(
            metric=metric,
            filter=filter_name,
            value=statistics.fmean(values),
            stderr=statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None,
            num_examples=len(values),
            higher_is_better=higher_is_better,
        )


class TaskEvaluation(StageRecord, has_texts=False):
    """``eval/<task>.json``: one model on one task; written after the samples."""

    model: PlaceBelow
    """Name of a run, or "base"."""
    task: Text
    task_version: str
    """The version that the task's own file states."""
    output_type: str
    """lm-eval's name for the kind of request, such as "multiple_choice"."""
    domain: str | None
    metrics: tuple[MetricScore, ...]
    decision_metric: str
    """Names, with `decision_filter`, the entry of `metrics` that decides."""
    decision_filter: str
    unit: Unit | None = None
    """Unit of the deciding metric; None: that of its name, and points for most."""
    num_examples: int
    """Items that were scored."""
    num_fewshot: int
    chat_template: bool
    limit: int | None
    """This many items were scored at most; None: all."""
    num_available: int | None = None
    """Items that the task has in all; None where a record of other tools does not say."""
    chance: float | None
    """Mean over items of 1/options; 0 for generation, None where it has no meaning."""
    predicted_shares: tuple[float, ...] | None
    """Share of items on which option 0, 1, ... was chosen."""
    num_unfinished: int | None
    """Generations cut at their maximum length, with neither an end of turn nor a stop string.

    None where nothing is generated.
    """
    num_draws: int = 0
    """Texts sampled per item; 0 where nothing is sampled."""
    sampling_seed: int | None = None
    """The seed of sampling: the same seed samples the same texts."""
    num_truncated: int
    """Items with a context that did not fit and lost its left end."""
    num_tokens: int
    """Tokens of all requests: read, and generated at most."""
    score_seconds: float
    """The model's share of the time, where several were scored together."""
    samples: FileDigest | None = None
    """What the items' file beside it is; None until that is written."""
    provenance: Provenance | None = None
    """What scored it; None outside of a study."""

    @model_validator(mode="after")
    def _has_its_decision(self) -> Self:
        decides = self.decision_metric, self.decision_filter
        if decides not in [(score.metric, score.filter) for score in self.metrics]:
            raise ValueError(f"metrics lack what decides: {', '.join(decides)}")
        return self

    @property
    def decision(self) -> MetricScore:
        """The score that decides."""
        return next(
            score
            for score in self.metrics
            if (score.metric, score.filter) == (self.decision_metric, self.decision_filter)
        )
