"""Runs lm-eval's own command line for the base and for every adapter of one resident base."""

from __future__ import annotations

import argparse
import copy
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rankwise.cli.lm_eval.arguments import BASE_NAME, ModelArguments, parse_model_arguments
from rankwise.errors import ConfigError, TaskError
from rankwise.tasks.code_guard import guarded_task_files
from rankwise.tasks.task_files import confine_task_files

_PROGRAM = "rankwise lm-eval"
_ALLOW_TASK_CODE = "--allow-task-code"


def run_lm_eval(arguments: Sequence[str]) -> None:
    """Run ``lm-eval`` on our model; with several adapters, on the base and on each of them.

    All flags are lm-eval's, but for ``--allow-task-code``. ``--model_args`` is what
    ``parse_model_arguments`` reads. Each model's results are written by lm-eval as of a model of
    that name: in ``--output_path``, a folder for the base, called as lm-eval calls it, and one for
    each adapter. Whatever the first run asks is answered for all models in one pass.

    Raises:
        ConfigError: flags or arguments are invalid.
        ModelError: the base or an adapter cannot be read or used.
        TaskError: there is no such task, its data cannot be loaded, or its file runs code that is
            not allowed.
        SystemExit: raised by lm-eval's argument parser, which has printed the reason.
    """
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    setup_logging()
    harness = HarnessCLI()
    allows_code = _ALLOW_TASK_CODE in arguments
    # lm-eval's parser reads the process's command line
    before, sys.argv = sys.argv, [_PROGRAM, *(f for f in arguments if f != _ALLOW_TASK_CODE)]
    try:
        flags = harness.parse_args()
    except ValueError as error:  # argparse reports all but these
        raise ConfigError(_PROGRAM, [str(error)]) from error
    finally:
        sys.argv = before
    if flags.command != "run":
        harness.execute(flags)
        return
    given = _model_arguments(flags)
    device = given.pop("device", None) if flags.device is None else flags.device
    parsed = parse_model_arguments(given | {"device": device})
    _check(flags, parsed)
    confine_task_files()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from rankwise.cli.lm_eval.model import MODEL_NAME, HeldModels

    held = HeldModels.of(parsed)
    for name in parsed.models:
        one = copy.deepcopy(flags)
        one.model, one.device = MODEL_NAME, parsed.device
        one.model_args = dict(given) | ({} if name is None else {"peft": name})
        if one.use_cache and len(parsed.models) > 1:
            one.use_cache += f"_{name or BASE_NAME}"
        try:
            with guarded_task_files(allow_code=allows_code):
                harness.execute(one)
        except ValueError as error:
            if not str(error).startswith("Tasks not found"):
                raise
            raise TaskError(f"{error}. rankwise tasks --all lists all tasks.") from error
        except (ConnectionError, FileNotFoundError) as error:
            raise TaskError(
                f"a task's data cannot be loaded: {error}. A hub name needs the network; a local "
                "file must exist."
            ) from error
    del held


def _model_arguments(flags: argparse.Namespace) -> dict[str, Any]:
    """``--model_args``, else those in the file of ``--config``, as lm-eval merges them."""
    from lm_eval.config.evaluate_config import EvaluatorConfig
    from lm_eval.utils import simple_parse_args_string

    given: Any = flags.model_args
    if not given and flags.config:
        try:
            given = EvaluatorConfig.load_yaml_config(flags.config).get("model_args")
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError("--config", [str(error)]) from error
    if isinstance(given, str):
        given = simple_parse_args_string(given)
    return dict(given) if isinstance(given, Mapping) else {}


def _check(flags: argparse.Namespace, parsed: ModelArguments) -> None:
    """Refuse what lm-eval would answer with a traceback, or where it would mix up files."""
    from lm_eval.config.evaluate_config import EvaluatorConfig

    from rankwise.cli.lm_eval.model import MODEL_NAME

    problems: list[str] = []
    if flags.model not in (None, MODEL_NAME):
        problems.append(f"--model {flags.model}: the model is {MODEL_NAME}; leave it out")
    try:
        config = EvaluatorConfig.from_cli(copy.deepcopy(flags))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(_PROGRAM, [*problems, str(error)]) from error
    if not config.tasks:
        problems.append("--tasks is missing; name tasks, such as --tasks arc_easy,mmlu")
    if str(config.output_path).endswith(".json") and len(parsed.models) > 1:
        problems.append(
            f"--output_path {config.output_path}: several models are scored; give a folder"
        )
    if problems:
        raise ConfigError(_PROGRAM, problems)
