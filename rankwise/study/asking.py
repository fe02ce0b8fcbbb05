"""What the models of a study answer to a prompt, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rankwise.engine.models.structure import context_length, model_skeleton
from rankwise.errors import ConfigError
from rankwise.records.axes import run_labels
from rankwise.records.folder import StudyFolder
from rankwise.records.names import find_run
from rankwise.records.own_data import Convention
from rankwise.records.study import PlannedRun, StudyRecord
from rankwise.study.context import StudyContext
from rankwise.study.observer import Observer
from rankwise.study.planning.reopen import reopen_study
from rankwise.tasks.chat_templates import render_chat
from rankwise.tasks.own_rows import plain_prompt
from rankwise.tasks.questions import MOST_NEW_TOKENS, GenerationSettings, Prompt
from rankwise.tasks.task_files import task_code
from rankwise.tasks.training_rows import TextEncoder

MOST_TEMPERATURE = 100.0
"""Above it every token is about equally likely."""


class Answer(NamedTuple):
    """What one model wrote; ``is_finished`` is False where it was cut at the most tokens."""

    prompt: str
    model: str
    """What the model is called in tables: base, or a run's label."""
    run: str | None
    """The name of the run; None for the base."""
    text: str
    is_finished: bool


class Writing(NamedTuple):
    """How answers are written.

    Attributes:
        max_new_tokens: at least 1.
        temperature: 0 is greedy: the likeliest token each time.
        seed: of sampling.
        chat_template: whether a prompt is a user's turn; None: as the study's rows are trained.
    """

    max_new_tokens: int = MOST_NEW_TOKENS
    temperature: float = 0.0
    seed: int = 0
    chat_template: bool | None = None

    @property
    def settings(self) -> GenerationSettings:
        """As the decoder takes it."""
        if self.temperature == 0.0:
            return GenerationSettings(self.max_new_tokens)
        options = (("do_sample", True), ("temperature", self.temperature))
        return GenerationSettings(self.max_new_tokens, options=options)


def ask(
    folder: StudyFolder,
    prompts: Sequence[str],
    runs: Sequence[str],
    writing: Writing,
    observer: Observer,
    report: Callable[[str], None],
) -> list[Answer]:
    """What the base and the trained runs of a study answer; those that share the base, in one pass.

    Args:
        folder: of the study; nothing is written there.
        prompts: at least one.
        runs: by their names or parts of them; empty: the first trained seed of every option.
        writing: how.
        observer: is told what is noted.
        report: receives a line for each download and conversion.

    Returns:
        Prompt by prompt, the base first and then the runs in the study's order.

    Raises:
        ConfigError: a prompt is empty or too long, a setting is out of its range, or a run is
            unknown or not trained.
        PlanError: the base model cannot be had.
        ModelError: a model cannot be loaded.
        TaskError: the chat template refuses a prompt.
    """
    _check(prompts, writing)
    study = folder.read_study()
    plan = reopen_study(study, (), None, report)
    asked = _asked(study, folder, runs)
    encoder, is_chat = TextEncoder(plan.tokenizer), writing.chat_template
    if is_chat is None:
        is_chat = _is_trained_as_chat(study)
    if is_chat and not plan.tokenizer.chat_template:
        problem = f"--chat-template: the tokenizer of {plan.base.name} has none; leave it out"
        raise ConfigError("ask", [problem])
    convention = _convention(study)
    most = context_length(model_skeleton(plan.base.folder).config, plan.tokenizer)
    written: list[Prompt] = []
    for prompt in prompts:
        text = prompt if convention is None else plain_prompt(convention, (), (prompt,))
        if is_chat:
            turns = [{"role": "user", "content": prompt}]
            with task_code("the chat template refuses the prompt", "Change one of them."):
                text = render_chat(plan.tokenizer, turns)
        tokens = tuple(encoder.encode(text))
        if len(tokens) >= most:
            problem = f"a prompt has {len(tokens):,} tokens, and the model reads {most:,}"
            raise ConfigError("ask", [f"{problem} with its answer; write a shorter one"])
        fitting = writing._replace(max_new_tokens=min(writing.max_new_tokens, most - len(tokens)))
        written.append(Prompt(tokens, fitting.settings, writing.seed))
    models = StudyContext.of(plan, folder, observer).models
    together = models.put_on([run for run in asked if run.method == "lora"])
    names = [None, *(run.name for run in together)]
    found = dict(zip(names, models.session().scorer.generate(names, written), strict=True))
    for run in asked:
        if run.name not in found:
            (found[run.name],) = models.session_alone(run).scorer.generate([None], written)
    labels = run_labels(study.runs)
    return [
        Answer(
            prompt,
            "base" if run is None else labels[run.name],
            None if run is None else run.name,
            *found[None if run is None else run.name][place],
        )
        for place, prompt in enumerate(prompts)
        for run in (None, *asked)
    ]


def _check(prompts: Sequence[str], writing: Writing) -> None:
    problems: list[str] = []
    if not prompts or any(not prompt.strip() for prompt in prompts):
        problems.append("a prompt is empty; write a question")
    if writing.max_new_tokens < 1:
        problems.append(f"--max-new-tokens: {writing.max_new_tokens} is too few; write 1 or more")
    if not 0.0 <= writing.temperature <= MOST_TEMPERATURE:
        problems.append(
            f"--temperature: {writing.temperature:g} is not from 0 to {MOST_TEMPERATURE:g}"
        )
    if problems:
        raise ConfigError("ask", problems)


def _asked(study: StudyRecord, folder: StudyFolder, names: Sequence[str]) -> list[PlannedRun]:
    """The runs that answer, each with weights."""

    def has_weights(run: PlannedRun) -> bool:
        record = folder.finished_run(run)
        return record is not None and record.status == "trained" and not record.is_given_up

    if names:
        chosen = [find_run(study, name, "ask") for name in names]
        problems = [
            f"--run: {run.name} has no weights: it is not trained yet, or its training diverged"
            for run in chosen
            if not has_weights(run)
        ]
        if problems:
            raise ConfigError("ask", problems)
        return list(dict.fromkeys(chosen))
    labels = run_labels(study.runs)
    first: dict[tuple[str, str], PlannedRun] = {}
    for run in filter(has_weights, study.runs):
        first.setdefault((run.train_task, labels[run.name]), run)
    return list(first.values())


def _is_trained_as_chat(study: StudyRecord) -> bool:
    """Whether most of the study's rows are rendered with the chat template."""
    if study.own_data is None:
        return study.config.train.chat_template
    return 2 * study.own_data.num_conversations > study.own_data.num_distinct


def _convention(study: StudyRecord) -> Convention | None:
    """How most of a user's own rows are written; None where a task of lm-eval writes them."""
    if study.own_data is None or not study.own_data.columns:
        return None
    return max(study.own_data.columns, key=lambda each: each.num_rows).convention
