"""Verbs for an adapter that is there already: audit, truncate, scale its intruders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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

Base = Annotated[
    str, typer.Argument(metavar="BASE", help="An embedded model, a folder or a hub repository.")
]
Output = Annotated[Path, typer.Option("--output", help="The folder to write; is created.")]
AnyBase = Annotated[
    bool, typer.Option("--any-base", help="Also where the adapter records another base's name.")
]


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
    from rankwise.audit import AuditSettings, find_audited
    from rankwise.audit import audit as look
    from rankwise.audit_scores import ScoreSettings, audit_scores, prepared_tasks
    from rankwise.errors import DataError, ModelError
    from rankwise.report.audit_page import write_audit

    try:
        audited = find_audited(base, target, any_base=any_base, report=note)
        names = tuple(name.strip() for name in (tasks or "").split(",") if name.strip())
        settings = ScoreSettings(
            names, tuple(tasks_path or ()), num_fewshot=num_fewshot, limit=limit
        )
        prepared = prepared_tasks(audited, settings) if names else []
    except (ModelError, DataError) as error:  # what is wrong is what was given
        print_error(error)
        return USAGE
    scores = ()
    if prepared:
        with stderr.status(f"scoring {len(prepared)} tasks"):
            scores = audit_scores(audited, prepared, settings)
    with stderr.status("looking into the weights") as status:
        record = look(
            audited,
            AuditSettings(top_k, null_draws),
            scores=scores,
            advance=lambda done, total: status.update(f"matrix {done} of {total}"),
        )
    folder = output or Path("audits") / target.resolve().name
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
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A PEFT LoRA folder.")],
    output: Output,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of every layer's update.")],
) -> int:
    """Cut an adapter to a lower rank, the closest there is, and say what is lost.

    Needs no base model. A truncated adapter is not what training at that
    rank would have given: score it before it is used.
    """
    quiet_libraries()
    from rankwise.adapter_files import read_updates
    from rankwise.adapters import save_updates
    from rankwise.errors import ModelError
    from rankwise.interventions import truncated_updates

    try:
        updates = read_updates(adapter)
        _refuse_same_folder(adapter, output)
    except ModelError as error:
        print_error(error)
        return USAGE
    found = truncated_updates(updates, rank)
    save_updates(found.updates, output, source=adapter)
    worst = max(found.relative_errors, key=lambda name: found.relative_errors[name])
    stdout.print(
        f"rank {rank} keeps {100 * (1 - found.relative_error**2):.2f} % of the update's energy "
        f"(relative error {found.relative_error:.3g}; largest in {worst}, "
        f"{found.relative_errors[worst]:.3g}): {output}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return OK


@app.command("scale-intruders")
@reported
def scale_intruders(
    base: Base,
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A PEFT LoRA folder.")],
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
) -> int:
    """Scale an adapter's intruder dimensions, and write the adapter that does so.

    Each intruder takes one more rank in its layer; with --rank such layers
    are cut, and the error is said.
    """
    quiet_libraries()
    from rankwise.adapters import save_updates
    from rankwise.audit import find_audited
    from rankwise.errors import ModelError
    from rankwise.interventions import scaled_intruders
    from rankwise.spectral_cache import SpectralCache
    from rankwise.weight_matrices import weight_matrices

    try:
        audited = find_audited(base, adapter, any_base=any_base, report=note)
        if audited.kind != "adapter":
            raise ModelError(f"{adapter} is a checkpoint; only an adapter's update can be scaled.")
        _refuse_same_folder(adapter, output)
    except ModelError as error:
        print_error(error)
        return USAGE
    weights, cache = weight_matrices(audited.base.folder, list(audited.updates)), SpectralCache()
    found, counts = scaled_intruders(
        audited.updates,
        lambda name: cache.svd(weights[name]),
        factor,
        k=k,
        epsilon=epsilon,
        rank=rank,
    )
    save_updates(found.updates, output, source=adapter)
    stdout.print(
        f"{sum(counts.values())} intruders in {sum(map(bool, counts.values()))} of {len(counts)} "
        f"layers scaled by {factor:g}, relative error {found.relative_error:.3g}: {output}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return OK


def _refuse_same_folder(adapter: Path, output: Path) -> None:
    from rankwise.errors import ModelError

    if output.exists() and output.resolve() == adapter.resolve():
        raise ModelError(f"--output {output} is the adapter itself. Choose another folder.")
