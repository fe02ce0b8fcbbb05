"""Verbs for an adapter that is there already: audit, truncate, scale its intruders."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

from rankwise.cli.application import (
    OK,
    USAGE,
    Json,
    app,
    note,
    print_error,
    quiet_libraries,
    reported,
    stderr,
    stdout,
)

if TYPE_CHECKING:
    from rankwise.weights.spectra import Svd

Base = Annotated[
    str, typer.Argument(metavar="BASE", help="An embedded model, a folder or a hub repository.")
]
Adapter = Annotated[Path, typer.Argument(metavar="ADAPTER", help="A PEFT LoRA folder.")]
Output = Annotated[Path, typer.Option("--output", help="The folder to write; is created.")]
AnyBase = Annotated[
    bool, typer.Option("--any-base", help="Also where the adapter records another base's name.")
]


class ScorePrecision(StrEnum):
    """In which precision models are scored."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@app.command()
@reported
def audit(
    base: Base,
    target: Annotated[
        Path,
        typer.Argument(
            metavar="ADAPTER_OR_CHECKPOINT", help="A PEFT LoRA folder, or a whole model's."
        ),
    ],
    tasks: Annotated[
        str | None, typer.Option("--tasks", help="Score both on these, separated by commas.")
    ] = None,
    tasks_path: Annotated[
        list[Path] | None, typer.Option("--tasks-path", help="Folders with lm-eval YAML files.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=2, help="The first so many items of each task.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option("--num-fewshot", min=0, help="Default: each task's own number.")
    ] = None,
    top_k: Annotated[
        int, typer.Option("--top-k", min=1, help="Leading singular vectors to compare.")
    ] = 500,
    null_draws: Annotated[
        int, typer.Option("--null-draws", min=0, help="Random updates of each kind beside it.")
    ] = 2,
    precision: Annotated[
        ScorePrecision, typer.Option("--precision", help="In which the models are scored.")
    ] = ScorePrecision.AUTO,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Ask as in a conversation.")
    ] = False,
    any_base: AnyBase = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Where to write (default: audits/<name of the target>)."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Look into an adapter or a checkpoint: no study, no training.

    Says how large the update is and where, how many dimensions it uses and
    to which rank it can be cut, and whether it brings intruder dimensions;
    all beside random updates of the same size. With --tasks also what base
    and adapted model score, paired item by item. Writes audit.json and one
    page, audit.html.
    """
    quiet_libraries()
    from rankwise.report.audit_page import target_name, write_audit
    from rankwise.weights.audit import AuditSettings, find_audited
    from rankwise.weights.audit import audit as look
    from rankwise.weights.audit_scores import ScoreSettings, audit_scores, prepared_tasks

    folder = output or Path("audits") / target_name(target.resolve())
    names = tuple(name.strip() for name in (tasks or "").split(",") if name.strip())
    asked = ScoreSettings(
        names,
        tuple(tasks_path or ()),
        num_fewshot=num_fewshot,
        limit=limit,
        chat_template=chat_template,
        precision=precision.value,
    )
    with _usage_errors():
        _refuse_inside(target, folder)
        audited = find_audited(base, target, any_base=any_base, report=note)
        prepared = prepared_tasks(audited, asked) if names else []
        scored = None
        if prepared:
            with _Counted("scoring, tokens", 2 * sum(task.num_tokens for task in prepared)) as bar:
                scored = audit_scores(audited, prepared, asked, bar.add)
        with _Counted("looking into the weights, matrices", len(audited.shapes)) as bar:
            record = look(
                audited,
                AuditSettings(top_k, null_draws),
                scored=scored,
                advance=lambda done, _: bar.reach(done),
            )
    page = write_audit(folder, record)
    if as_json:
        print(record.model_dump_json(indent=2))
        return OK
    for warning in record.warnings:
        note(f"warning: {warning}")
    for sentence in record.statements:
        stdout.print(f"- {sentence}", markup=False, highlight=False)
    stdout.print(f"page: {page}", markup=False, highlight=False, soft_wrap=True)
    return OK


@app.command()
@reported
def truncate(
    adapter: Adapter,
    output: Output,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of every layer's update.")],
    as_json: Json = False,
) -> int:
    """Cut an adapter to a lower rank, the closest there is, and say what is lost.

    Needs no base model. A truncated adapter is not what training at that
    rank would have given: score it before it is used. What was done is in
    intervention.json beside it.
    """
    quiet_libraries()
    from rankwise.weights.interventions import (
        AdapterChange,
        truncated_updates,
        write_intervention,
    )
    from rankwise.weights.updates import read_updates

    with _usage_errors():
        _refuse_replacing(output)
        updates = read_updates(adapter)
    found = truncated_updates(updates, rank)
    done = AdapterChange("truncation", rank=rank)
    record = write_intervention(adapter, output, updates, found, done)
    if as_json:
        print(record.model_dump_json(indent=2))
        return OK
    worst = max(record.layers, key=lambda each: each.relative_error)
    stdout.print(
        f"rank {rank} keeps {100 * record.energy_kept:.2f} % of the update's energy (relative "
        f"error {record.relative_error:.3g}; largest in {worst.name}, "
        f"{worst.relative_error:.3g}): {output}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return OK


@app.command("scale-intruders")
@reported
def scale_intruders(
    adapter: Adapter,
    base: Annotated[
        str, typer.Option("--base", help="An embedded model, a folder or a hub repository.")
    ],
    output: Output,
    factor: Annotated[
        float,
        typer.Option("--factor", min=0.0, help="Of their singular values: 1 leaves, 0 removes."),
    ],
    k: Annotated[int, typer.Option("--k", min=1, help="Leading vectors to look at.")] = 10,
    epsilon: Annotated[
        float, typer.Option("--epsilon", min=0.0, max=1.0, help="Their largest |cos| is below.")
    ] = 0.5,
    rank: Annotated[
        int | None,
        typer.Option("--rank", min=1, help="Cut changed layers to it (default: as it takes)."),
    ] = None,
    any_base: AnyBase = False,
    as_json: Json = False,
) -> int:
    """Scale an adapter's intruder dimensions, and write the adapter that does so.

    Each intruder takes one more rank in its layer; with --rank such layers
    are cut, and the error is said. What was done is in intervention.json
    beside it.
    """
    quiet_libraries()
    from rankwise.engine.models.weights import weight_matrices
    from rankwise.errors import ConfigError, ModelError
    from rankwise.weights.audit import find_audited
    from rankwise.weights.interventions import (
        AdapterChange,
        scaled_intruders,
        write_intervention,
    )
    from rankwise.weights.svd_cache import SpectralCache

    _refuse_not_finite("scale-intruders", {"--factor": factor, "--epsilon": epsilon})
    with _usage_errors():
        _refuse_replacing(output)
        audited = find_audited(base, adapter, any_base=any_base, report=note)
        if audited.kind != "adapter":
            raise ModelError(f"{adapter} is a checkpoint; only an adapter's update can be scaled.")
        weights = weight_matrices(audited.base.folder, list(audited.updates))
    for warning in audited.warnings:
        note(f"warning: {warning}")
    cache = SpectralCache()
    with _Counted("looking for intruders, layers", len(weights)) as bar:

        def decomposed(name: str) -> Svd:
            bar.add(1)
            return cache.svd(weights[name])

        try:
            found = scaled_intruders(
                audited.updates, decomposed, factor, k=k, epsilon=epsilon, rank=rank
            )
        except ValueError as error:
            raise ConfigError("scale-intruders", [f"--factor {factor:g}: {error}"]) from error
    done = AdapterChange("scaled_intruders", rank, factor, k, epsilon)
    record = write_intervention(adapter, output, audited.updates, found.intervened, done, found)
    if as_json:
        print(record.model_dump_json(indent=2))
        return OK
    counts = [each.num_intruders or 0 for each in record.layers]
    left = sum(each.num_intruders_left or 0 for each in record.layers)
    stdout.print(
        f"{sum(counts)} intruders in {sum(map(bool, counts))} of {len(counts)} layers scaled by "
        f"{factor:g}, relative error {record.relative_error:.3g}; {left} among the {k} leading "
        f"directions afterwards: {output}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return OK


class _Counted:
    """A line on stderr that counts up; nothing where that is no terminal."""

    def __init__(self, text: str, total: int) -> None:
        self._text, self._total, self._done = text, total, 0
        self._status = stderr.status(text)

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def add(self, number: int) -> None:
        self.reach(self._done + number)

    def reach(self, done: int) -> None:
        self._done = done
        self._status.update(f"{self._text}: {done:,} of {self._total:,}")


@contextlib.contextmanager
def _usage_errors() -> Generator[None]:
    """Within the block, a model, an adapter or data that cannot be used is what was given wrong."""
    from rankwise.errors import DataError, ModelError, RecordError

    try:
        yield
    except (ModelError, DataError, RecordError) as error:
        print_error(error)
        raise typer.Exit(USAGE) from error


def _refuse_inside(target: Path, output: Path) -> None:
    """What is audited stays as it is."""
    from rankwise.errors import ConfigError

    inside = target.resolve()
    if inside in (output.resolve(), *output.resolve().parents):
        problem = f"--output {output} is inside what is audited; choose another folder"
        raise ConfigError("audit", [problem])


def _refuse_not_finite(verb: str, options: Mapping[str, float]) -> None:
    """NaN is below no bound, so it passes those of the options."""
    from rankwise.errors import ConfigError

    problems = [
        f"{name} {value} is not a finite number; give one"
        for name, value in options.items()
        if not math.isfinite(value)
    ]
    if problems:
        raise ConfigError(verb, problems)


def _refuse_replacing(output: Path) -> None:
    from rankwise.errors import ConfigError

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        problem = f"--output {output} is there already and not empty; choose another folder"
        raise ConfigError("rankwise", [problem])
