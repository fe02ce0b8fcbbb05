"""A stand-in for Slurm: the tasks of a batch script's array, as processes of this machine.

It has what the script in ``examples/clusters`` asks for and no more. Whatever else is asked for is
an error. Signals of ``--signal=B:…`` go to the batch shell's process alone, as Slurm sends them.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

ARRAY_JOB = 4000
_IGNORED = {"job-name", "gpus", "cpus-per-task", "mem", "time"}
_KNOWN = {"array", "requeue", "signal", "open-mode", "output"}


def directives(script: Path) -> dict[str, str]:
    """The options of a script's ``#SBATCH`` lines; those behind its first command are not read."""
    found: dict[str, str] = {}
    for line in script.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            break
        option = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
        assert option is not None or not line.startswith("#SBATCH"), line
        if option is not None:
            found[option[1]] = option[2] or ""
    unknown = found.keys() - _IGNORED - _KNOWN
    assert not unknown, f"nothing knows {unknown}"
    return found


class Array:
    """The tasks of an array. None of them outlives the block.

    Args:
        script: with its ``#SBATCH`` lines.
        arguments: of the script.
        place: the folder from which it is submitted; logs go there.
        environment: of ``sbatch``.
        array: instead of the script's ``--array``, such as "0-1".
    """

    def __init__(
        self,
        script: Path,
        arguments: Sequence[str],
        place: Path,
        environment: Mapping[str, str],
        array: str,
    ) -> None:
        self._options = {**directives(script), "array": array}
        self._command, self._place = ["bash", str(script), *arguments], place
        self._environment = environment
        first, last = map(int, self._options["array"].split("-"))
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self._restarts = dict.fromkeys(range(first, last + 1), 0)

    def __enter__(self) -> Self:
        for task in self._restarts:
            self._start(task)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def _start(self, task: int) -> None:
        tasks, restarts = list(self._restarts), self._restarts[task]
        variables = {
            "SLURM_JOB_ID": ARRAY_JOB + task,
            "SLURM_ARRAY_JOB_ID": ARRAY_JOB,
            "SLURM_ARRAY_TASK_ID": task,
            "SLURM_ARRAY_TASK_COUNT": len(tasks),
            "SLURM_ARRAY_TASK_MIN": tasks[0],
            "SLURM_ARRAY_TASK_MAX": tasks[-1],
            **({"SLURM_RESTART_COUNT": restarts} if restarts else {}),
        }
        given = {name: str(value) for name, value in variables.items()}
        mode = "ab" if self._options["open-mode"] == "append" else "wb"
        with self.log(task).open(mode) as log:
            self.processes[task] = subprocess.Popen(
                self._command,
                cwd=self._place,
                env={**self._environment, **given},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def log(self, task: int) -> Path:
        """What a task has printed, each time that it ran."""
        name = self._options["output"].replace("%A", str(ARRAY_JOB)).replace("%a", str(task))
        return self._place / name

    def stop(self, task: int) -> int:
        """Tell a task that its time is over, as ``--signal`` says; returns its exit code."""
        asked = re.fullmatch(r"B:([A-Z]+)@(\d+)", self._options["signal"])
        assert asked is not None, self._options["signal"]
        os.kill(self.processes[task].pid, signal.Signals[f"SIG{asked[1]}"])
        return self.processes[task].wait(timeout=int(asked[2]))

    def preempt(self, task: int) -> int:
        """Stop a task and start it again, as ``--requeue`` says; returns its first exit code."""
        code = self.stop(task)
        assert "requeue" in self._options
        self._restarts[task] += 1
        self._start(task)
        return code

    def wait(self) -> list[int]:
        """The exit codes of all tasks, once they have ended."""
        return [process.wait() for process in self.processes.values()]
