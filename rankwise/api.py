"""Studies from Python: what the verbs of the command line do, for scripts and notebooks.

Reading a finished study needs no torch.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rankwise.engine.models.libraries import quiet_libraries
from rankwise.errors import ConfigError, RankwiseError, StorageError, did_you_mean
from rankwise.records import quantities
from rankwise.records.files import in_words
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import config_of, study_name

if TYPE_CHECKING:
    from pandas import DataFrame

    from rankwise.engine.models.devices import Machine
    from rankwise.records.audits import AuditRecord
    from rankwise.records.config.study import StudyConfig
    from rankwise.records.recommendation import StudyRecommendation
    from rankwise.report.rows import Row
    from rankwise.study.conclusion import StudyOutcome
    from rankwise.study.forecast import Forecast
    from rankwise.study.planning.plan import StudyPlan

AnyPath = str | os.PathLike[str]

_PLANNED = (
    *("name", "train_task", "method", "rank", "mean_rank", "alpha", "learning_rate", "epochs"),
    *("seed", "num_examples", "num_steps", "num_tokens", "num_trainable_parameters"),
    *("trainable_share", "estimated_memory_bytes"),
)
_FRAME_HEIGHT = 640


class Plan(NamedTuple):
    """What a study trains and what it takes. A notebook shows the runs, the time and the disk.

    Attributes:
        runs: a row for each run: settings, steps, tokens, parameters, estimated memory in bytes.
        forecast: what is left of the study, with the numbers of ``rankwise plan``:
            ``seconds_left``, ``disk_bytes``, ``scored_rate`` in tokens per second, ``margins``
            in points, ``detectable`` and so on. ``content()`` has all of ``plan --json`` but
            ``budget``.
    """

    runs: DataFrame
    forecast: Forecast

    def __repr__(self) -> str:
        return f"{self.runs}\n{self._takes}"

    def _repr_html_(self) -> str:
        return f"{self.runs.to_html()}<p>{escape(self._takes)}</p>"

    @property
    def _takes(self) -> str:
        """The time, if it is known, and the disk."""
        seconds = self.forecast.seconds_left
        time = "" if seconds is None else f"about {quantities.seconds(seconds)}, "
        return f"{time}about {in_words(self.forecast.disk_bytes)} of disk"


class Study:
    """A study and its folder. In a notebook it shows its verdict card.

    Args:
        config: from ``load_config``; ``rankwise.new`` makes one of keyword arguments.
        folder: the study's folder; None: ``studies/NAME``, as for ``rankwise run``.

    Example:
        >>> study = rw.Study(rw.load_config(Path("study.yaml"), ["train.epochs=1"]))
        >>> study.run().verdict
    """

    def __init__(self, config: StudyConfig, folder: AnyPath | None = None) -> None:
        self.config = config
        self._folder = StudyFolder(Path(folder or Path("studies") / config.name))
        self._outcome: StudyOutcome | None = None

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return self._folder.root

    def plan(
        self, *, machine: Machine | None = None, tokens_per_second: float | None = None
    ) -> Plan:
        """The runs that the study trains and what they take; loads no weights, trains nothing.

        Args:
            machine: to plan for, as ``--device`` and ``--memory`` name it; None: this machine.
            tokens_per_second: speed of LoRA training; None: as the last study of this base took
                here, or for a card that is described a third of an H100's peak.

        Returns:
            The runs as a data frame, and the forecast of ``rankwise plan``: seconds, bytes of disk,
            tokens. Warnings of the plan are Python warnings.

        Raises:
            PlanError: the study cannot be run with its tasks on its base model.

        Example:
            >>> study.plan().runs[["name", "num_steps"]]
            >>> study.plan(tokens_per_second=4000).forecast.seconds_left
        """
        from rankwise.study.forecast import forecast

        planned = self._planned(self.config, lambda _: None, machine)
        found = forecast(planned, self._folder, machine, tokens_per_second)
        damaged = (f"damaged: {damage}; it is made again" for damage in found.damages)
        for warning in (*planned.record.warnings, *damaged):
            _warn(warning)
        runs = _frame({name: getattr(run, name) for name in _PLANNED} for run in found.runs)
        return Plan(runs, found)

    def run(
        self, *, progress: bool = True, replace: bool = False, accept_new_stack: bool = False
    ) -> Study:
        """Run the study: train, score, recommend. Call it again to resume.

        Args:
            progress: show progress; otherwise nothing is printed. Failed stages are warnings.
            replace: archive scores made with other settings.
            accept_new_stack: continue with other versions or on another device.

        Returns:
            The study itself, so that a notebook shows the card.

        Raises:
            RankwiseError: as ``rankwise run`` does; finished work is kept.
            KeyboardInterrupt: it was stopped; finished work is kept.

        Example:
            >>> study.run(progress=False).verdict
        """
        quiet_libraries()
        from rankwise.integrations.tracking import followed
        from rankwise.study.unchanged import concluded_again

        config, folder = self.config, self._folder
        self._outcome = None
        self._outcome = concluded_again(folder, config)
        if self._outcome is not None:
            return self
        from rankwise.study.growing import run_to_verdict
        from rankwise.study.observer import Noted
        from rankwise.study.printer import Printer
        from rankwise.study.progress import Follower, TerminalObserver
        from rankwise.study.run import RunTerms

        shown: Follower = Follower(folder)
        if progress:
            shown = TerminalObserver(Printer(stderr=True), folder, is_open=config.is_open)
        with followed(shown, folder, config) as (observer, concluded):
            self._outcome = run_to_verdict(
                config,
                lambda grown: self._planned(grown, lambda text: shown(Noted(text))),
                folder,
                observer,
                RunTerms(replace, accept_new_stack),
            )
            concluded(self._outcome)
        shown.remember()
        for failure in self._outcome.failures:
            _warn(f"{failure.model}: {failure.what} failed: {failure.error}: {failure.message}")
        return self

    @property
    def recommendation(self) -> StudyRecommendation:
        """The contents of ``recommendation.json``: outcome, rank and evidence of each task.

        Each judgement of other data counts as a look, as with ``rankwise verdict``.

        Raises:
            RecordError: nothing is scored yet, or a record cannot be read.

        Example:
            >>> study.recommendation.by_train_task[0].outcome
            'recommended'
        """
        return self._concluded().recommendation

    @property
    def verdict(self) -> str:
        """The verdict in words; one line per trained task if there are several.

        Raises:
            RecordError: as ``recommendation``.

        Example:
            >>> rw.open("studies/quickstart").verdict
        """
        from rankwise.findings.statements import with_folder

        parts = self.recommendation.by_train_task
        return "\n".join(
            (f"trained on {part.train_task}: " if len(parts) > 1 else "")
            + with_folder(part.statement, str(self._folder.root))
            for part in parts
        )

    def runs_df(self) -> DataFrame:
        """One row for the base and each run: settings, means with bounds, cost.

        Returns:
            The columns of the report's ``runs.csv``. Scores are in points, losses in nats per
            token; ``gain_lower`` and ``gain_upper`` bound ``gain``, and so on.

        Raises:
            RecordError: as ``recommendation``.

        Example:
            >>> study.runs_df()[["run", "gain", "retention_change"]]
        """
        return _frame(self._tables()["runs"])

    def scores_df(self) -> DataFrame:
        """One row for each model, task and metric, as defined by lm-evaluation-harness.

        Returns:
            The columns of the report's ``scores.csv``; ``value`` is in lm-eval's own unit, and
            ``decides`` marks the metric of the verdict.

        Raises:
            RecordError: as ``recommendation``.

        Example:
            >>> scores = study.scores_df()
            >>> scores[scores.decides].pivot_table("value", "model", "task")
        """
        return _frame(self._tables()["scores"])

    def tables_df(self) -> dict[str, DataFrame]:
        """Every table of the report, by name: runs, scores, transfer, and so on.

        Returns:
            The columns of the report's CSV files of these names.

        Raises:
            RecordError: as ``recommendation``.

        Example:
            >>> study.tables_df()["retention"]
        """
        return {name: _frame(rows) for name, rows in self._tables().items()}

    def items_df(self) -> DataFrame:
        """One row for each item and model, for tasks whose items are right or wrong.

        Returns:
            Columns as in ``findings.item_table.ItemRow``; no rows where there is no such task.

        Raises:
            RecordError: as ``recommendation``, or samples cannot be read.

        Example:
            >>> items = study.items_df()
            >>> forgotten = items[items.base_is_right & ~items.is_right]
        """
        from pandas import DataFrame

        from rankwise.findings.item_table import ItemRow, item_rows, item_table

        table = item_table(self._concluded().results, self._folder.read_samples)
        rows = [] if table is None else list(item_rows(table))
        return DataFrame(rows, columns=list(ItemRow._fields))

    def report(
        self, output: AnyPath | None = None, *, overwrite: bool = False, with_texts: bool = True
    ) -> Path:
        """Write ``report.html`` and the folder ``report/``.

        Args:
            output: the folder to write into; None: the study's.
            overwrite: replace files there that rankwise did not write.
            with_texts: without, prompts and answers are left out, for sharing.

        Returns:
            The path of the page.

        Raises:
            ConfigError: there are such files in the way, and ``overwrite`` is not given.
            RecordError: as ``recommendation``.
            StorageError: it cannot be written there.

        Example:
            >>> study.report(with_texts=False)
        """
        to = None if output is None else Path(output)
        outcome = self._concluded()
        return written_report(self._folder, outcome, to, overwrite=overwrite, with_texts=with_texts)

    def ask(
        self,
        *prompts: str,
        runs: Sequence[str] = (),
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        chat_template: bool | None = None,
    ) -> DataFrame:
        """What the base and every trained rank answer to prompts, side by side.

        Args:
            prompts: questions.
            runs: which runs answer, by parts of their names; empty: the first seed of every option.
            max_new_tokens: of an answer, at least 1.
            temperature: 0 is greedy; otherwise answers are sampled.
            seed: of sampling.
            chat_template: render a prompt as a user's turn; None: as the study's rows are trained.

        Returns:
            A row for each prompt and model: prompt, model, run, text, is_finished.

        Raises:
            ConfigError: a prompt is empty, or a run is unknown or not trained.
            PlanError: the base model cannot be had.
            ModelError: a model cannot be loaded.
            TaskError: the chat template refuses a prompt.

        Example:
            >>> study.ask("Who is the mother of Ann's father?")[["model", "text"]]
        """
        quiet_libraries()
        from rankwise.study.asking import Writing
        from rankwise.study.asking import ask as answers_of

        writing = Writing(max_new_tokens, temperature, seed, chat_template)
        answers = answers_of(self._folder, prompts, runs, writing, lambda _: None, _warn)
        return _frame(answer._asdict() for answer in answers)

    def export(
        self,
        kind: str,
        output: AnyPath | None = None,
        *,
        run: str | None = None,
        overwrite: bool = False,
    ) -> list[Path]:
        """Write the study in another format, as ``rankwise export --format`` does.

        Args:
            kind: the format: csv, parquet, markdown, latex, figures, lm-eval, model-card, trl
                and so on.
            output: the folder to write into; None: ``export/<kind>`` in the study's.
            run: a run, as ``find_run`` takes it, for formats of one; None: recommended or best bet.
            overwrite: replace files there that rankwise did not write.

        Returns:
            The files that were written; of ``lm-eval``, each model's results.

        Raises:
            ConfigError: there is no such format or run, nothing is recommended, or files that
                rankwise did not write are in the way.
            RecordError: as ``recommendation``.
            StorageError: it cannot be written there.

        Example:
            >>> study.export("latex")
        """
        from rankwise.integrations.formats import export_study

        to = None if output is None else Path(output)
        exported = export_study(self._folder, kind, to, run, overwrite=overwrite)
        return [each.file for each in exported]

    def push(
        self, repo: str, *, run: str | None = None, public: bool = False, with_items: bool = False
    ) -> str:
        """Upload an adapter, its card, the records and the report, as ``rankwise export --to hub``.

        Args:
            repo: ``org/name`` on the Hugging Face Hub; created if it does not exist.
            run: a run, as ``find_run`` takes it; None: recommended or best bet.
            public: make the repository public.
            with_items: also upload the texts of the items and the answers.

        Returns:
            The repository's URL.

        Raises:
            ConfigError: there is no such name or run, or the run has no adapter.
            HubError: the Hub cannot be reached, or refuses it.
            RecordError: the study is not finished, or not as it was written.

        Example:
            >>> study.push("my-name/kinship-r16")
        """
        from rankwise.integrations.hub import push_study

        pushed = push_study(self._folder, repo, run, public=public, with_items=with_items)
        for remark in pushed.remarks:
            _warn(remark)
        return str(pushed.url)

    def __repr__(self) -> str:
        return f"<Study {self.config.name!r} in {str(self.folder)!r}>"

    def _repr_html_(self) -> str:
        """The verdict card in a frame of its own, so that its styles stay inside."""
        from rankwise.report.page import card_page

        try:
            page = card_page(*self._concluded(), self.folder)
        except RankwiseError as error:
            return f"<p>{escape(repr(self))}: no verdict yet. {escape(str(error))}</p>"
        style = f"width: 100%; height: {_FRAME_HEIGHT}px; border: 0"
        return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{escape(page)}"></iframe>'

    def _planned(
        self, config: StudyConfig, note: Callable[[str], None], machine: Machine | None = None
    ) -> StudyPlan:
        quiet_libraries()
        from rankwise.study.planning.plan import plan_study

        plan = plan_study(config, note, folder=self._folder, machine=machine)
        for warning in plan.record.warnings:
            note(f"warning: {warning}")
        return plan

    def _tables(self) -> dict[str, list[Row]]:
        from rankwise.report.page import study_tables

        return study_tables(*self._concluded())

    def _concluded(self) -> StudyOutcome:
        """The study as it is in its folder; judged once, until it is run again."""
        from rankwise.study.conclusion import conclude, keep

        if self._outcome is None:
            outcome = conclude(self._folder)
            try:
                keep(self._folder, outcome)
            except StorageError as error:
                _warn(f"not kept, and not counted as a look: {error}")
            self._outcome = outcome
        return self._outcome


def new(
    *,
    base: str | None = None,
    task: str | Sequence[str] | None = None,
    data: AnyPath | None = None,
    ranks: int | Iterable[int] | None = None,
    retention: Sequence[str] | None = None,
    folder: AnyPath | None = None,
    **settings: Any,
) -> Study:
    """A new study from keyword arguments; nothing is read or trained until it is planned or run.

    Args:
        base: the base model: an embedded one, a hub name, or a folder (``base_model``).
        task: the task or tasks to train on (``train.task``); or
        data: a file with rows of your own (``train.data``).
        ranks: of LoRA (``methods.lora.ranks``).
        retention: tasks that should not be forgotten (``evaluation.retention``).
        folder: the study's folder; None: ``studies/NAME``. It also names a study without ``name``.
        settings: everything else as in a study file: a section as a dictionary, such as
            ``train={"epochs": 1}`` and ``evaluation={"limit": 200}``, or ``seeds=[0, 1]``.

    Raises:
        ConfigError: with every problem found, each with the key that has it.

    Example:
        >>> study = rw.new(base="smollm2-135m-instruct", task="kinship", ranks=[4, 16],
        ...                retention=["capitals"], train={"epochs": 1})
    """
    named = {
        "base_model": base,
        "train.task": task,
        "train.data": data,
        "methods.lora.ranks": list(ranks) if isinstance(ranks, Iterable) else ranks,
        "evaluation.retention": retention,
    }
    given = {key: value for key, value in named.items() if value is not None}
    twice = [f"{key}: it is given twice; give it once" for key in given.keys() & settings.keys()]
    if twice:
        raise ConfigError("rankwise.new", twice)
    if folder is not None:
        settings.setdefault("name", study_name(Path(folder).name))
    return Study(config_of(given | settings, "rankwise.new", Path.cwd()), folder)


def open(folder: AnyPath) -> Study:
    """The study in a folder, as it was run; needs no torch until it is run again.

    Args:
        folder: of a study.

    Raises:
        RecordError: there is no study, or its ``study.json`` cannot be read.

    Example:
        >>> rw.open("studies/quickstart").verdict
    """
    root = Path(folder)
    return Study(StudyFolder(root).read_study().config, root)


def verdict(
    scores: Any,
    *,
    item: str | None = None,
    score: str | None = None,
    model: str | None = None,
    task: str | None = None,
    base: str | None = None,
    name: str | None = None,
    in_domain: Sequence[str] = (),
    retention: Sequence[str] = (),
    out_of_domain: Sequence[str] = (),
    folder: AnyPath | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> Study:
    """Which rank to use, by scores of models that were trained elsewhere: ``rankwise verdict``.

    Args:
        scores: a data frame of pandas or polars, or a list of dictionaries, with a row an item and
            model; or a path, or several, of tables, samples files of lm-eval, or logs.
        item: the column that names an item; None, as for the next three: it is recognised.
        score: the column of the score; ``score.f1`` if it is nested.
        model: the column that names a model.
        task: the column that names a task.
        base: the model before fine-tuning; None: one called base, or none.
        name: what models' names mean: ``r{rank}_s{seed}``.
        in_domain: the tasks to gain on; empty: those that are named nowhere.
        retention: tasks that should not be forgotten.
        out_of_domain: tasks that are shown besides.
        folder: where to keep it as a study; None: it goes with the object.
        overwrite: replace files there that rankwise did not write.
        settings: ``delta``, ``epsilon``, ``worst_task``, ``confidence``, ``cluster``, ``slice``,
            ``lower_is_better``, ``metric``, ``filter``, ``missing``, as the command's options.

    Returns:
        The study of these scores, which cannot be run. What its tables show beside the verdict is
        in ``runs_df``, ``scores_df``, ``items_df`` and ``report``.

    Raises:
        ConfigError: a base, a task, a margin or a pattern that does not fit; or such files are in
            the way, and ``overwrite`` is not given.
        DataError: a row or a column is not what it has to be; both are named.

    Example:
        >>> rw.verdict(frame, item="id", score="exact_match", retention=["arc"]).verdict
    """
    from rankwise.scores.asked import Asked
    from rankwise.scores.keeping import kept
    from rankwise.scores.reading import read_scores, rows_given
    from rankwise.scores.study import scored_study

    problems = [
        f"{each}: no such setting; {did_you_mean(each, Asked._fields) or 'see its documentation'}"
        for each in settings
        if each not in Asked._fields
    ]
    if problems:
        raise ConfigError("rankwise.verdict", problems)
    asked = Asked(
        item=item,
        score=score,
        model=model,
        task=task,
        base=base,
        name=name,
        in_domain=tuple(in_domain),
        retention=tuple(retention),
        out_of_domain=tuple(out_of_domain),
        **settings,
    )
    paths = [scores] if isinstance(scores, str | os.PathLike) else scores
    is_list = isinstance(paths, list) and len(paths) > 0
    if is_list and all(isinstance(path, str | os.PathLike) for path in paths):
        given = read_scores([Path(path) for path in paths], asked)
    else:
        given = rows_given(scores, asked)
    made = scored_study(given, asked, study_name(Path(folder or "scores").name))
    for warning in made.record.warnings:
        _warn(warning)
    place = Path(folder or tempfile.mkdtemp(prefix="rankwise-"))
    study = Study(made.record.config, place)
    if folder is None:
        weakref.finalize(study, shutil.rmtree, place, ignore_errors=True)
    with kept(made, StudyFolder(place), overwrite=overwrite):
        pass  # it is judged when it is asked for its verdict
    return study


def audit(
    base: str,
    target: AnyPath,
    *,
    top_k: int = 500,
    null_draws: int = 2,
    any_base: bool = False,
    output: AnyPath | None = None,
    overwrite: bool = False,
) -> AuditRecord:
    """Analyse the weights of an adapter or a checkpoint, as ``rankwise audit`` without tasks.

    Args:
        base: an embedded model, a hub name, or a folder.
        target: a PEFT LoRA folder, or a whole model's folder.
        top_k: number of leading singular vectors to compare.
        null_draws: number of random updates of each kind to compare with.
        any_base: accept an adapter that was trained on a base of another name.
        output: the folder for ``audit.json`` and ``audit.html``; None: none.
        overwrite: replace files there that rankwise did not write.

    Returns:
        What was found: in words in ``statements``, in numbers in the rest.

    Raises:
        ConfigError: such files are there, and ``overwrite`` is not given.
        ModelError: base or target cannot be read, or do not belong together.
        StorageError: the folder cannot be written.

    Example:
        >>> rw.audit("smollm2-135m-instruct", "my-adapter").statements
    """
    quiet_libraries()
    from rankwise.report.page import write_audit
    from rankwise.weights.audit import audit as look
    from rankwise.weights.audit import find_audited

    audited = find_audited(base, Path(target), any_base=any_base)
    record = look(audited, top_k, null_draws)
    if output is not None:
        write_audit(Path(output), record, overwrite=overwrite)
    return record


def written_report(
    folder: StudyFolder,
    outcome: StudyOutcome,
    output: Path | None = None,
    *,
    overwrite: bool = False,
    with_texts: bool = True,
) -> Path:
    """Write the report of a study into its folder, or into another; returns the page's path.

    Without the texts of items it is for sharing, and names no folder of this machine either.

    Raises:
        ConfigError: files that rankwise did not write are there, and ``overwrite`` is not given.
        RecordError: samples or losses cannot be read.
        StorageError: it cannot be written there.
    """
    from rankwise.findings.item_table import item_table
    from rankwise.integrations.sharing import shared
    from rankwise.report.page import write_report

    place, study = output or folder.root, folder.root
    if not with_texts:
        outcome = shared(folder, outcome, with_texts=False)
        study = Path(outcome.results.study.config.name)
    items = item_table(outcome.results, folder.read_samples, with_texts=with_texts)
    losses = {run.name: folder.read_losses(run.name) for run in outcome.results.runs}
    return write_report(place, *outcome, items, losses, study=study, overwrite=overwrite)


def _frame(rows: Iterable[Row]) -> DataFrame:
    """Rows with their keys as columns; whole numbers stay whole where some are missing."""
    from pandas import DataFrame

    listed = list(rows)
    frame = DataFrame.from_records(listed)
    for name in frame.columns:
        kinds = {type(row.get(name)) for row in listed}
        if kinds == {int, type(None)}:
            frame[name] = frame[name].astype("Int64")
    return frame


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)
