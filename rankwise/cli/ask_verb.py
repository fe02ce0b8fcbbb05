"""The verb that lets the models of a study answer side by side."""

from __future__ import annotations

from itertools import groupby
from typing import Annotated

from rankwise.cli import application as cli
from rankwise.cli.run_verbs import STUDIES
from rankwise.engine.models.libraries import quiet_libraries
from rankwise.records.folder import StudyFolder
from rankwise.tasks.questions import MOST_NEW_TOKENS


@cli.verb(STUDIES)
def ask(
    directory: cli.Folder,
    prompts: Annotated[list[str], cli.argument("PROMPT...", "Questions; each in quotes.")],
    run: Annotated[
        list[str] | None,
        cli.option("--run NAME", "A run, or a part of its name; can be repeated."),
    ] = None,
    max_new_tokens: Annotated[
        int, cli.option("--max-new-tokens N", "Tokens of an answer, at most.", min=1)
    ] = MOST_NEW_TOKENS,
    temperature: Annotated[
        float, cli.option("--temperature T", "0 is greedy; otherwise answers are sampled.", min=0.0)
    ] = 0.0,
    seed: Annotated[int, cli.option("--seed N", "Of sampling.", min=0)] = 0,
    chat_template: Annotated[
        bool | None,
        cli.option(
            "--chat-template/--no-chat-template",
            "Render a prompt as a user's turn (default: where rows are trained so).",
        ),
    ] = None,
    as_json: cli.Json = False,
) -> int:
    """Ask the base and every trained rank the same thing.

    The answers stand side by side: the base, the first seed of every rank, and
    full fine-tuning. Adapters answer in one pass over one base. A prompt is
    written as the study's own rows are; one of a task of lm-eval is taken as it
    is. Nothing is written into the study, and no answer enters its verdict.
    """
    quiet_libraries()
    from rankwise.study.asking import Writing
    from rankwise.study.asking import ask as answers_of
    from rankwise.study.progress import TerminalObserver

    writing = Writing(max_new_tokens, temperature, seed, chat_template)
    with TerminalObserver(cli.stderr) as observer:
        answers = answers_of(
            StudyFolder(directory), prompts, run or (), writing, observer, cli.note
        )
    if as_json:
        return cli.emit([answer._asdict() for answer in answers])
    for prompt, its in groupby(answers, key=lambda answer: answer.prompt):
        if len(prompts) > 1:
            cli.say(prompt, style="bold underline")
        for answer in its:
            cut = "" if answer.is_finished else " (cut)"
            cli.say(f"{answer.model}{cut}", style="bold")
            cli.say(answer.text.strip() or "(nothing)")
    return cli.OK
