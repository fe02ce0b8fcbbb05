"""What a study is: frozen data, read from a YAML file, checked at once and completely."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from rankwise.errors import ConfigError

AlphaPolicy = Literal["proportional", "fixed", "rslora"]
Precision = Literal["auto", "float32", "bfloat16"]
Schedule = Literal["linear", "cosine", "constant"]


def _rank(value: int) -> int:
    if value < 1:
        raise ValueError(f"{value} is not a rank; use a whole number of at least 1")
    return value


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} is given twice; give each value once")
    return values


def _run_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError(
            f"{value!r} cannot name a folder; use letters, digits, '.', '_' and '-' only"
        )
    return value


def _as_model(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


PAPER_RANKS = (8, 16, 32, 64, 128)
Rank = Annotated[int, Field(strict=True), AfterValidator(_rank)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, strict=True)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_list), AfterValidator(_distinct)]


class Section(BaseModel):
    """A part of a study file: frozen, and refusing keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseModelConfig(Section):
    """The frozen model that every run starts from: an embedded one, a hub name, or a folder."""

    name: Annotated[str, Field(min_length=1)]
    revision: str | None = None


class LearningRateConfig(Section):
    """Peak learning rates: the reference paper publishes the full one, and none for LoRA."""

    lora: Positive = 2e-4
    full: Positive = 5e-5


class TrainConfig(Section):
    """What is trained on, and how. Exactly one of ``task`` and ``data``.

    ``task`` may be a group. ``split`` names the split of its data set to train on where that is
    not the task's training split; tasks whose scored split it is are then left out of scoring.
    """

    task: str | None = None
    split: str | None = None
    data: Path | None = None
    held_out_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    exact_match: bool = False
    max_examples: Count | None = None
    epochs: Count = 3
    batch_size: Count = 2
    gradient_accumulation_steps: Count = 4
    learning_rate: LearningRateConfig = LearningRateConfig()
    warmup_ratio: Fraction = 0.1
    schedule: Schedule = "linear"
    dropout: Fraction = 0.0
    weight_decay: NotNegative = 0.0
    max_grad_norm: Positive = 1.0
    precision: Precision = "auto"
    loss_on: Literal["completion", "all"] = "completion"
    chat_template: bool = False
    max_length: Count = 1024

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.task is None) == (self.data is None):
            got = "neither" if self.task is None else "both"
            raise ValueError(f"{got} of 'task' and 'data' given; give exactly one")
        if self.split is not None and self.task is None:
            raise ValueError("split is for 'task'; your own data has no splits")
        if self.exact_match and self.data is None:
            raise ValueError("exact_match is for 'data'; a task brings its own metrics")
        return self


class AlphaConfig(Section):
    """LoRA's numerator: ``ratio`` * rank, or a fixed ``alpha`` (over rank, or over sqrt(rank))."""

    policy: AlphaPolicy = "proportional"
    ratio: Positive | None = None
    alpha: Positive | None = None

    @model_validator(mode="after")
    def _right_number(self) -> Self:
        wanted, other = (
            ("ratio", self.alpha) if self.policy == "proportional" else ("alpha", self.ratio)
        )
        if other is not None:
            raise ValueError(f"policy {self.policy!r} takes {wanted!r} only")
        if self.policy != "proportional" and self.alpha is None:
            raise ValueError(f"policy {self.policy!r} needs 'alpha'")
        return self

    def alpha_of(self, rank: int) -> float:
        """The numerator of the scaling at this rank."""
        if self.policy == "proportional":
            return (2.0 if self.ratio is None else self.ratio) * rank
        assert self.alpha is not None
        return self.alpha

    def scaling_of(self, rank: int) -> float:
        """The factor before B @ A: alpha / rank, or alpha / sqrt(rank) under ``rslora``."""
        return self.alpha_of(rank) / (math.sqrt(rank) if self.policy == "rslora" else rank)


class LoraConfig(Section):
    """One run per rank and seed."""

    ranks: Annotated[tuple[Rank, ...], AfterValidator(_distinct), Field(min_length=1)] = PAPER_RANKS
    alpha: AlphaConfig = AlphaConfig()
    target_modules: Annotated[Names, Field(min_length=1)] = ("q_proj", "k_proj", "v_proj", "o_proj")


class FullConfig(Section):
    """Full fine-tuning with AdamW, one run per seed; its rate is ``train.learning_rate.full``."""


class MethodsConfig(Section):
    """What is compared with the base. ``full: null`` leaves full fine-tuning out."""

    lora: LoraConfig | None = LoraConfig()
    full: FullConfig | None = FullConfig()

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.lora is None and self.full is None:
            raise ValueError("both 'lora' and 'full' are null; leave at least one")
        return self


class EvaluationConfig(Section):
    """What is scored. ``in_domain`` defaults to what was trained on."""

    in_domain: Names = ()
    out_of_domain: Names = ()
    retention: Names = ()
    held_out_text: Names = ()
    metric: Mapping[str, str] = {}
    num_fewshot: Annotated[int, Field(ge=0, strict=True)] | None = None
    limit: Count | None = None
    chat_template: bool = False
    fewshot_as_multiturn: bool = False
    max_batch_tokens: Count = 4096


class RecommendationConfig(Section):
    """What counts as a difference: δ in-domain and ε on retention; derived from n if null."""

    delta_points: Positive | None = None
    epsilon_points: Positive | None = None
    delta_nats: Positive = 0.02
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95


class StudyConfig(Section):
    """A whole study file."""

    name: Annotated[str, AfterValidator(_run_name)] = "study"
    base_model: Annotated[BaseModelConfig, BeforeValidator(_as_model)]
    tasks_path: Annotated[tuple[Path, ...], BeforeValidator(_as_list)] = ()
    train: TrainConfig
    methods: MethodsConfig = MethodsConfig()
    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, strict=True)], ...],
        AfterValidator(_distinct),
        Field(min_length=1),
    ] = (0,)
    evaluation: EvaluationConfig = EvaluationConfig()
    recommendation: RecommendationConfig = RecommendationConfig()

    @model_validator(mode="after")
    def _one_relation_per_task(self) -> Self:
        places: dict[str, list[str]] = {}
        for relation in ("in_domain", "out_of_domain", "retention", "held_out_text"):
            for task in getattr(self.evaluation, relation):
                places.setdefault(task, []).append(relation)
        for task, found in places.items():
            if len(found) > 1:
                raise ValueError(
                    f"evaluation: task {task!r} is in {' and '.join(found)}; name it once"
                )
        if self.train.task in (*self.evaluation.out_of_domain, *self.evaluation.retention):
            raise ValueError(
                f"evaluation: {self.train.task!r} is trained on, so it is in_domain; "
                "take it out of out_of_domain and retention"
            )
        return self


def preset_names() -> tuple[str, ...]:
    """The names of the study files that ship with rankwise."""
    files = resources.files("rankwise") / "presets"
    return tuple(sorted(Path(f.name).stem for f in files.iterdir() if f.name.endswith(".yaml")))


def preset_text(name: str) -> str:
    """A shipped study file as text, comments included.

    Raises:
        ConfigError: there is no preset of that name.
    """
    if name not in preset_names():
        raise ConfigError(name, [f"no preset named {name!r}{_suggestion(name, preset_names())}"])
    return (resources.files("rankwise") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study file, apply ``key=value`` overrides, and check everything at once.

    Args:
        path: the file; None takes the ``quickstart`` preset.
        overrides: dotted key, '=', and a YAML value: ``train.epochs=1``, ``seeds=[0,1,2]``.

    Returns:
        The config, with relative paths of the file resolved against the file's folder.

    Raises:
        ConfigError: with every problem that the file alone can show.
    """
    if path is None:
        source, folder, text = "quickstart", Path.cwd(), preset_text("quickstart")
    else:
        source, folder = path.name, path.resolve().parent
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(source, [f"the file cannot be read: {error}"]) from error
    data = _parse_yaml(text, source)
    if path is not None:
        data.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "study")
    problems = [problem for each in overrides if (problem := _apply_override(data, each))]
    try:
        config = StudyConfig.model_validate(data)
    except ValidationError as error:
        problems.extend(_problems(error))
        config = None
    if problems or config is None:
        raise ConfigError(source, problems)
    return _with_absolute_paths(config, folder)


class _Loader(yaml.SafeLoader):
    """YAML in which 2e-4 is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [cast(Any, self.construct_object(key, deep=True)) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
_Loader.add_constructor("tag:yaml.org,2002:merge", yaml.SafeLoader.construct_yaml_str)


def _parse_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(source, [f"not valid YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(data, dict):
        raise ConfigError(source, ["a study file is a mapping of sections; see `rankwise init`"])
    return cast(dict[str, Any], data)


def _apply_override(data: dict[str, Any], override: str) -> str | None:
    """Set one dotted key in place; returns what is wrong with the override, if anything."""
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        return f"{override!r} is not an override; write key=value, for example train.epochs=1"
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError:
        return f"{key}: {text!r} is not a YAML value"
    *parents, last = key.split(".")
    section = data
    for parent in parents:
        below = section.get(parent)
        if below is None:
            below = section[parent] = {}
        elif parent == "base_model" and isinstance(below, str):
            below = section[parent] = {"name": below}
        if not isinstance(below, dict):
            return f"{key}: {parent!r} is not a section"
        section = cast(dict[str, Any], below)
    section[last] = value
    return None


def _with_absolute_paths(config: StudyConfig, folder: Path) -> StudyConfig:
    update: dict[str, Any] = {}
    update["tasks_path"] = tuple(folder / path.expanduser() for path in config.tasks_path)
    if config.train.data is not None:
        data = {"data": folder / config.train.data.expanduser()}
        update["train"] = config.train.model_copy(update=data)
    name = config.base_model.name
    if name.startswith(("./", "../")) or (folder / name).is_dir():
        name = str((folder / name).resolve())
        update["base_model"] = config.base_model.model_copy(update={"name": name})
    return config.model_copy(update=update)


def _problems(error: ValidationError) -> Iterable[str]:
    """One sentence for each thing pydantic found: key, what was got, what to do."""
    for detail in error.errors(include_url=False):
        key = _dotted(detail["loc"])
        if detail["type"] == "extra_forbidden":
            known = _known_keys(detail["loc"][:-1])
            hint = _suggestion(str(detail["loc"][-1]), known) or f"; known here: {', '.join(known)}"
            yield f"{key}: unknown key{hint}"
        elif detail["type"] == "missing":
            yield f"{key}: is needed and not there"
        elif detail["type"] == "value_error":
            message = str(detail["msg"]).removeprefix("Value error, ")
            yield f"{key}: {message}" if key else message
        elif detail["type"] == "model_type":
            known = ", ".join(_known_keys(detail["loc"])) or "none"
            yield f"{key}: {detail['input']!r} given; a section is needed here, with keys: {known}"
        else:
            message = str(detail["msg"])
            yield f"{key}: {detail['input']!r} given; {message[:1].lower()}{message[1:]}"


def _dotted(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    model: Any = StudyConfig
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        model = next(c for c in (annotation, *get_args(annotation)) if hasattr(c, "model_fields"))
    return list(model.model_fields)


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
