"""Which runs are trained together in one pass, and how it is cut to fit into memory."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence

from rankwise.engine.models.variants import VARIANTS, shares_a_pass
from rankwise.engine.training.memory import AdapterSize, PassMemory
from rankwise.records.config.training import TrainConfig
from rankwise.records.grouping import grouped
from rankwise.records.study import PlannedPass, PlannedRun
from rankwise.study.times import training_work

_BALANCED = 0.001
"""The search for the smallest fullest pass ends within this share of the limit: what a pass takes
is not known as exactly."""

USABLE_SHARE = 0.85
"""The share of the available memory that a pass is planned for: estimates and other programs vary.
"""


def plan_passes(
    runs: Sequence[PlannedRun],
    memory: PassMemory,
    train: TrainConfig,
    *,
    available_bytes: int,
    num_devices: int = 1,
    work_of: Callable[[Sequence[PlannedRun]], float] = training_work,
) -> tuple[PlannedPass, ...]:
    """Adapters in as few passes as fit, in the study's order; others alone (``shares_a_pass``).

    For several devices there are more passes, so that all of them have about as much to do. Then
    the longest comes first, also of those that are trained alone.

    On CUDA each pass keeps room for micro-batches of 8192 tokens, or of its whole step, as far as a
    single adapter leaves it; and where there are several passes, they are as even as can be.

    A pass has the largest micro-batch that fits, up to 2048 tokens on a CPU, where larger ones
    were measured to be hardly faster, and 16384 on CUDA. It recomputes activations only where it
    would not fit otherwise, even with one longest example at a time; before it does, adapters are
    spread over more passes. What ``train`` says of both is kept to. A run that fits in no way is
    planned all the same, as small as it can be; ``fitting`` says so.

    Args:
        runs: and checkpoints of them, which share a training; imported ones are left out.
        memory: of its passes.
        train: may fix the tokens of a micro-batch and gradient checkpointing.
        available_bytes: in which estimates must fit, on a CPU with the process.
        num_devices: equal ones, which share the passes.
        work_of: the work of training the models of one training, and of scoring them.
    """
    of_training = grouped((run.training.name, run) for run in runs if run.role != "imported")
    cutter = _PassCutter(memory, train, usable(available_bytes))
    trained = [models[0] for models in of_training.values()]
    if num_devices == 1:
        alone = [[run] for run in trained if not shares_a_pass(run)]
        groups = [*cutter.groups([run for run in trained if shares_a_pass(run)]), *alone]
    else:
        work = {name: work_of(models) for name, models in of_training.items()}
        groups = cutter.shared_out(trained, work, num_devices)
        groups.sort(key=lambda group: -sum(work[run.training.name] for run in group))
    passes: list[PlannedPass] = []
    for group in groups:
        models = [model.name for run in group for model in of_training[run.training.name]]
        passes.append(cutter.planned(group, models))
    return tuple(passes)


def usable(available_bytes: int) -> int:
    """The bytes that passes are planned for."""
    return int(USABLE_SHARE * available_bytes)


def least_bytes(memory: PassMemory, train: TrainConfig, adapter: AdapterSize | None) -> int:
    """The peak of training one adapter alone in the smallest way that ``train`` allows.

    None: of full fine-tuning.
    """
    cutter = _PassCutter(memory, train, limit=0)
    return cutter.alone(adapter, cutter.checkpointing[-1])


def fits(memory: PassMemory, train: TrainConfig, adapter: AdapterSize | None, limit: int) -> bool:
    """Whether ``least_bytes`` are within a limit; where more are, no smaller way is rehearsed."""
    cutter = _PassCutter(memory, train, limit)
    return any(cutter.alone(adapter, flag) <= limit for flag in cutter.checkpointing)


def size_of(run: PlannedRun) -> AdapterSize:
    """The size of the adapter that a run trains."""
    rank, num_trained = run.highest_rank, run.num_held_weights
    if run.variant is not None and VARIANTS[run.variant].is_in_base:
        return AdapterSize(2 * rank, num_trained, num_frozen=num_trained)
    if run.after is not None:
        return AdapterSize(rank + run.after.rank, num_trained, num_frozen=run.num_beside)
    return AdapterSize(rank, num_trained)


class _PassCutter:
    def __init__(self, memory: PassMemory, train: TrainConfig, limit: int) -> None:
        self._memory, self._limit = memory, limit
        fixed = train.max_micro_batch_tokens
        self._highest = max(fixed or memory.likely_tokens, memory.longest)
        self.lowest = self._highest if fixed else memory.longest
        self._kept = min(max(memory.kept_tokens, self.lowest), self._highest)
        wanted = train.gradient_checkpointing
        self.checkpointing = (False, True) if wanted is None else (wanted,)

    def alone(self, adapter: AdapterSize | None, gradient_checkpointing: bool) -> int:
        """The peak of one adapter, or of full fine-tuning (None), at the fewest tokens."""
        if adapter is None:
            return self._memory.full_bytes(self.lowest, gradient_checkpointing)
        return self._memory.lora_bytes([adapter], self.lowest, gradient_checkpointing)

    def groups(self, adapters: Sequence[PlannedRun]) -> list[list[PlannedRun]]:
        """Runs of one pass each."""
        groups, even = list(self._filled(adapters, self._limit)), []
        while self._memory.kept_tokens > 0 and len(groups) > 1:
            # the first one is filled up to the lowest limit that makes no more of them; then come
            # the others, which may do with less
            low, high = 0, self._limit
            while high - low > _BALANCED * self._limit:
                middle = (low + high) // 2
                filled = list(self._filled(adapters, middle))
                if len(filled) > len(groups):
                    low = middle
                else:
                    groups, high = filled, middle
            even.append(groups.pop(0))
            adapters = adapters[len(even[-1]) :]
        return [*even, *groups]

    def _filled(self, adapters: Sequence[PlannedRun], limit: int) -> Iterator[list[PlannedRun]]:
        """Runs of one pass each, which are filled up to a limit one after the other."""
        group: list[PlannedRun] = []
        for run in adapters:
            if group and not self._has_room(group, run, limit):
                yield group
                group = []
            group.append(run)
        if group:
            yield group

    def shared_out(
        self, runs: Sequence[PlannedRun], work: Mapping[str, float], num_devices: int
    ) -> list[list[PlannedRun]]:
        """Runs of one pass each, for several devices; ``work`` is by the name of a training.

        The run with the most work comes first, of equal ones the largest, and goes to the device
        with the least to do: into its pass, or into a new one where memory ends.
        """

        def order(run: PlannedRun) -> tuple[float, int]:
            return -work[run.training.name], -run.num_trainable_parameters

        devices = [(0.0, device) for device in range(num_devices)]
        pass_of: dict[int, list[PlannedRun]] = {}
        groups: list[list[PlannedRun]] = []
        for run in sorted(runs, key=order):
            load, device = devices[0]
            group = pass_of.get(device)
            if not shares_a_pass(run):
                groups.append([run])
            elif group is not None and self._has_room(group, run, self._limit):
                group.append(run)
            else:
                groups.append([run])
                pass_of[device] = groups[-1]
            heapq.heapreplace(devices, (load + work[run.training.name], device))
        place = {run.name: number for number, run in enumerate(runs)}
        return [sorted(group, key=lambda run: place[run.name]) for group in groups]

    def _has_room(self, group: Sequence[PlannedRun], run: PlannedRun, limit: int) -> bool:
        """Whether a pass that has been begun takes one more."""
        # one that recomputes already may be filled so
        recomputes = self.checkpointing[0] or (
            len(self.checkpointing) > 1 and self._peak_of(group)(self.lowest, False) > self._limit
        )
        return self._peak_of([*group, run])(self._kept, recomputes) <= limit

    def planned(self, runs: Sequence[PlannedRun], names: Sequence[str]) -> PlannedPass:
        """The pass that trains some runs, with the names of its models; it fits if it can."""
        peak = self._peak_of(runs)
        fitting = (each for each in self.checkpointing if peak(self.lowest, each) <= self._limit)
        recomputes = next(fitting, self.checkpointing[-1])
        # the largest micro-batch that fits; the smallest where none does
        low, high = self.lowest, self._highest
        while low < high:
            middle = (low + high + 1) // 2
            if peak(middle, recomputes) > self._limit:
                high = middle - 1
            else:
                low = middle
        return PlannedPass(
            runs=tuple(names),
            max_tokens=low,
            gradient_checkpointing=recomputes,
            estimated_memory_bytes=peak(low, recomputes),
        )

    def _peak_of(self, runs: Sequence[PlannedRun]) -> Callable[[int, bool], int]:
        """Bytes by tokens of a micro-batch and gradient checkpointing."""
        if runs[0].method == "full":
            return self._memory.full_bytes
        sizes = [size_of(run) for run in runs]
        return lambda tokens, checkpointing: self._memory.lora_bytes(sizes, tokens, checkpointing)
