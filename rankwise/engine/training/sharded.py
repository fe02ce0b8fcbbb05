"""Training by several processes, each of which holds a part of the model.

The weights are dealt out by PyTorch's FSDP2, and a layer's are gathered while it is computed. In
full fine-tuning so are gradients and moments. Under LoRA the weights are those of the frozen base;
every process has all adapters and takes each of their steps. Each process reads some rows of every
step. It is the training of one process otherwise: the same steps on the same rows, with the same
loss.

The processes are those that ``torch.distributed.run`` starts. The first one leads: what it does to
a trainee between two steps, such as saving its state, the others are told to do too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from rankwise.engine.models.attention import decoder_layers
from rankwise.engine.models.base import load_frozen
from rankwise.engine.models.devices import (
    DTYPES,
    ResolvedPrecision,
    is_out_of_memory,
    multiply_exactly,
)
from rankwise.engine.training.loop import PassObserver, TrainingResult
from rankwise.engine.training.micro_batches import NOBODY, Placed, split_by_budget
from rankwise.engine.training.optimizers import MOMENTS
from rankwise.engine.training.states import UnusableStateError, read_state, write_state
from rankwise.engine.training.trainees import (
    AdapterTrainee,
    FullTrainee,
    StepMetrics,
    Trainee,
    WriteState,
)
from rankwise.errors import DivergedError, ModelError, RecordError
from rankwise.records.config.training import TrainConfig
from rankwise.records.files import (
    FileDigest,
    digest_of,
    remove_shards,
    shards_of,
    sync_folder,
    writing,
)
from rankwise.records.study import PlannedRun
from rankwise.tasks.training_rows import Example

# A process waits so long for another: loading a model, or writing its state, may take a while.
# One that is gone is noticed at once.
_PATIENCE = timedelta(hours=2)
_CPU = torch.device("cpu")

LEAVE = "leave"
"""Told to the others where the first process ends before its training does."""


def can_shard() -> bool:
    """Whether PyTorch can deal out a model: from 2.8 on, and some builds leave it out."""
    if not dist.is_available():
        return False
    from torch.distributed.fsdp import FSDPModule

    return hasattr(FSDPModule, "set_force_sum_reduction_for_comms")


class Processes(NamedTuple):
    """The processes that train one model, seen by one of them.

    Attributes:
        place: of this one, from 0.
        num_processes: of all.
        device: of this one.
    """

    place: int
    num_processes: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether it is the first."""
        return self.place == 0

    def tell(self, action: str | None, *arguments: Any) -> None:
        """As the first one, tell the others what to do now; None: to go on training."""
        if self.leads:
            dist.broadcast_object_list([action, arguments], src=0, device=_CPU)

    def hear(self) -> tuple[str | None, tuple[Any, ...]]:
        """As another one, wait for what the first one tells."""
        said: list[Any] = [None, None]
        dist.broadcast_object_list(said, src=0, device=_CPU)
        return said[0], said[1]

    def gathered(self, value: Any) -> list[Any]:
        """What every process gives, in their order."""
        values: list[Any] = [None] * self.num_processes
        dist.all_gather_object(values, value)
        return values

    def summed(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes, in float64, the same in each."""
        return [sum(of_all) for of_all in zip(*self.gathered(list(values)), strict=True)]


@contextlib.contextmanager
def joined(device_type: str) -> Generator[Processes]:
    """Within the block, this process is one of those that were started together."""
    place = int(os.environ["LOCAL_RANK"])
    device = torch.device(device_type, place) if device_type == "cuda" else _CPU
    if device_type == "cuda":
        torch.cuda.set_device(device)
        multiply_exactly(device)
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    yield Processes(place, dist.get_world_size(), device)
    dist.destroy_process_group()  # not after an error: it might wait for processes that are gone


class ShardedModel:
    """A model of which every process holds a part.

    Attributes:
        model: whose parameters are the parts, as DTensors.
        processes: that hold it.
    """

    def __init__(
        self,
        folder: Path,
        precision: ResolvedPrecision,
        processes: Processes,
        *,
        is_frozen: bool = False,
    ) -> None:
        """Load it; the processes take turns, so that the machine holds one copy at a time.

        Args:
            folder: of the model.
            precision: of the matrix products. Weights that are trained are float32 and rounded to
                it where they are gathered; their gradients are added up in float32.
            processes: that will hold it.
            is_frozen: the weights are not trained, and held in ``precision``.

        Raises:
            ModelError: the folder cannot be loaded.
        """
        self.processes = processes
        mesh = dist.init_device_mesh(processes.device.type, (processes.num_processes,))
        for place in range(processes.num_processes):
            if place == processes.place:
                self.model = self._loaded(folder, precision, mesh, is_frozen=is_frozen)
            dist.barrier()

    @staticmethod
    def _loaded(folder: Path, precision: ResolvedPrecision, mesh: Any, *, is_frozen: bool) -> Any:
        from torch.distributed.fsdp import (
            FSDPModule,
            MixedPrecisionPolicy,
            fully_shard,
            register_fsdp_forward_method,
        )

        model: Any = load_frozen(folder, precision if is_frozen else "float32", _CPU)
        model.requires_grad_(not is_frozen)
        rounded = None if is_frozen or precision == "float32" else DTYPES[precision]
        policy = MixedPrecisionPolicy(param_dtype=rounded, reduce_dtype=torch.float32)
        for layer in decoder_layers(model).values():
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        # The head is read behind the decoder, chunk by chunk: it stays gathered until the gradients
        # of the whole micro-batch are there.
        fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # losses are weighed by all tokens of the step, wherever these are read
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo has no other
        if is_frozen:
            # Gradients go down to the embeddings, whichever layers the adapters of a micro-batch
            # are in: processes have to gather each layer together on the way back too.
            model.enable_input_require_grads()
        model.decode = lambda **inputs: model.base_model(**inputs)
        register_fsdp_forward_method(model, "decode")
        return model

    @property
    def decoder(self) -> Callable[..., Any]:
        """What gives the last hidden states, with the head's weights at hand afterwards."""
        return self.model.decode

    def groups(self, placed: Sequence[Placed], max_tokens: int) -> list[list[Placed]]:
        """The micro-batches of a step that this process reads; see ``dealt``."""
        kind = self.processes.device.type
        return dealt(placed, self.processes.num_processes, max_tokens, kind)[self.processes.place]

    def summed(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes."""
        return self.processes.summed(values)


def dealt(
    placed: Sequence[Placed], count: int, max_tokens: int, kind: str
) -> list[list[list[Placed]]]:
    """The micro-batches of a step for each process, as many for one as for another.

    Every example is in one of them. A process that has fewer reads the step's shortest example once
    more for each, on behalf of nobody: processes have to gather each layer together. So it does
    where another one has the base read what a trainee is held to in that micro-batch.

    Args:
        placed: the examples of a step.
        count: of processes.
        max_tokens: read in one micro-batch.
        kind: of device.
    """
    in_order = sorted(placed, key=lambda item: (-item.example.num_inputs, item.place))
    of_each = [split_by_budget(in_order[place::count], max_tokens, kind) for place in range(count)]
    filler = Placed(NOBODY, 0, in_order[-1].example)
    held = filler._replace(held=range(1))
    filled: list[list[list[Placed]]] = [[] for _ in of_each]
    for together in zip_longest(*of_each, fillvalue=()):
        has_held = any(item.held for group in together for item in group)
        for into, group in zip(filled, together, strict=True):
            if has_held and not any(item.held for item in group):
                into.append([*group, held])
            else:
                into.append([*group] or [filler])
    return filled


class ReplicatedTrainee(AdapterTrainee):
    """An adapter on a sharded base; each process has one of these, with the same weights.

    Its gradients are added up over the processes, and then each takes the same step.
    """

    def __init__(self, processes: Processes, *arguments: Any) -> None:
        """Take the arguments of ``AdapterTrainee`` after the processes."""
        super().__init__(*arguments)
        self._processes = processes
        dist.broadcast(self.adapter.weights.detach(), src=0)  # to the last bit, whatever drew them
        self._weights_changed()

    def load_state(self, path: Path, until: int | None = None) -> None:
        """Continue from a saved state, in every process.

        Raises:
            ModelError: a process could not read it and another one could.
        """
        self._processes.tell("load_state", self.run.name, path, until)
        try:
            super().load_state(path, until)
        finally:
            if len(set(self._processes.gathered(self.step))) > 1:
                raise ModelError(
                    f"{path} could be read by some of the processes that train together and not by "
                    "others. Check the file system, and run again."
                )

    def _before_step(self) -> None:
        assert self.adapter.weights.grad is not None
        dist.all_reduce(self.adapter.weights.grad)
        super()._before_step()


class ShardedTrainee(FullTrainee):
    """Every weight of a sharded model, in float32, with AdamW; each process has one of these."""

    def __init__(
        self,
        run: PlannedRun,
        examples: Sequence[Example],
        config: TrainConfig,
        sharded: ShardedModel,
        marks: Sequence[int] = (),
    ) -> None:
        self._sharded, self._processes = sharded, sharded.processes
        self._names = [name for name, _ in sharded.model.named_parameters()]
        self._saved_step: int | None = None
        super().__init__(run, examples, config, sharded.model, "adamw", marks)

    def finish_gradients(self) -> Float[Tensor, ""]:
        """The norm of the whole gradient, in every process."""
        norm: Any = super().finish_gradients()
        self._norm = norm.full_tensor()
        return self._norm

    @property
    def is_zero_update(self) -> bool:
        """Whether no weight has moved, in any process."""
        self._processes.tell("is_zero_update", self.run.name)
        return super().is_zero_update

    def _sums(self) -> list[tuple[float, float]]:
        dealt_out: list[Any] = self._weights  # DTensors
        parts = [weights.detach().to_local().double() for weights in dealt_out]
        sums = [float(each) for part in parts for each in (part.sum(), part.abs().sum())]
        of_all = iter(self._processes.summed(sums))
        return list(zip(of_all, of_all, strict=True))

    def whole_weights(self) -> dict[str, Tensor]:
        """The weights of the whole model, on the CPU of the first process; empty in the others.

        What is tied has one name, as in files.
        """
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        self._processes.tell("whole_weights", self.run.name)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        model = self._sharded.model
        whole: dict[str, Any] = get_model_state_dict(model, options=options)
        names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        tied = names - set(self._names)
        return {name: weights for name, weights in whole.items() if name not in tied}

    def save_state(self, path: Path, write: WriteState = write_state) -> None:
        """Write the parts into a folder beside ``path``, then say at ``path`` that they are whole.

        Each process writes its own. The earlier parts are removed at the end. What is saved already
        is not written again: there would be no whole state for a while.

        Raises:
            StorageError: a file cannot be written.
        """
        from torch.distributed.checkpoint import FileSystemWriter, save

        if self._saved_step == self.step:
            return
        self._processes.tell("save_state", self.run.name, path)
        folder = shards_of(path, self.step)
        if self._processes.leads:
            shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        dist.barrier()
        with _writing(folder):
            save(self._parts(), storage_writer=FileSystemWriter(folder))
            own = self._own(sorted(file.name for file in folder.iterdir()))
            digests = self._processes.gathered([(name, digest_of(folder / name)) for name in own])
        if not self._processes.leads:
            return
        sync_folder(folder)
        files = {name: digest.model_dump() for each in digests for name, digest in each}
        write(path, self._progress() | {"shards": folder.name, "files": files})
        remove_shards(path, but=folder)
        self._saved_step = self.step

    def load_state(self, path: Path, until: int | None = None) -> None:
        """Continue from the parts beside ``path``, however many processes have written them."""
        self._processes.tell("load_state", self.run.name, path, until)
        self._folder = path.parent
        super().load_state(path, until)

    def _read(self, path: Path) -> dict[str, Any]:
        """What the first process reads: none waits for another one that could not read it."""
        found: dict[str, Any] | UnusableStateError = {}
        if self._processes.leads:
            try:
                found = read_state(path)
            except UnusableStateError as error:
                found = error
        found = self._processes.gathered(found)[0]
        if isinstance(found, UnusableStateError):
            raise found
        return found

    def _restore(self, state: Mapping[str, Any]) -> None:
        from torch.distributed.checkpoint import CheckpointException, FileSystemReader, load

        folder = self._folder / state["shards"]
        files = {name: FileDigest.model_validate(each) for name, each in state["files"].items()}
        is_whole = all(_is(folder / name, files[name]) for name in self._own(sorted(files)))
        if not all(self._processes.gathered(is_whole)):
            raise ValueError("other bytes than were written")
        moments = self._parts()
        weights = {"weights": moments.pop("weights")}
        try:
            for parts in (moments, weights):  # in place: weights at the end, as of one process
                load(parts, storage_reader=FileSystemReader(folder))
        except CheckpointException as error:
            failed = _failed(error)
            if is_out_of_memory(failed):
                raise failed from error
            raise ValueError(f"PyTorch cannot read its parts: {failed}") from error
        for each in self._optimizer.state.values():
            each["step"].fill_(len(state["metrics"]))
        self._saved_step = len(state["metrics"])

    def _parts(self) -> dict[str, dict[str, Tensor]]:
        """Parts that are held here of the weights and of their moments, by name."""
        named = dict(zip(self._names, self._weights, strict=True))
        moments = {
            moment: {name: self._optimizer.state[part][moment] for name, part in named.items()}
            for moment in MOMENTS
        }
        return {"weights": {name: part.detach() for name, part in named.items()}, **moments}

    def _own(self, names: Sequence[str]) -> Sequence[str]:
        """The files that this process reads to compare them."""
        return names[self._processes.place :: self._processes.num_processes]


def _is(path: Path, digest: FileDigest) -> bool:
    with contextlib.suppress(OSError):
        return digest_of(path) == digest
    return False


@contextlib.contextmanager
def _writing(folder: Path) -> Generator[None]:
    """Turn what PyTorch raises where one of the processes cannot write into ours."""
    from torch.distributed.checkpoint import CheckpointException

    with writing(folder):
        try:
            yield
        except CheckpointException as error:
            raise _failed(error) from error


def _failed(error: Any) -> BaseException:
    """What has failed in a process: an error of the system, if that is among it."""
    failed = [each for each, _ in error.failures.values()]
    return next((each for each in failed if isinstance(each, OSError)), failed[0])


class Leading:
    """Follows a pass in the first process, and lets the others go on after each thing told."""

    def __init__(self, observer: PassObserver, processes: Processes) -> None:
        self._observer, self._processes = observer, processes

    def stepped(self, trainee: Trainee, metrics: StepMetrics) -> None:
        self._observer.stepped(trainee, metrics)
        self._processes.tell(None)

    def reached(self, trainee: Trainee, result: TrainingResult) -> None:
        self._observer.reached(trainee, result)
        self._processes.tell(None)

    def diverged(self, trainee: Trainee, error: DivergedError) -> None:
        self._observer.diverged(trainee, error)
        self._processes.tell(None)

    def shrunk(self, max_tokens: int) -> None:
        self._observer.shrunk(max_tokens)


_ACTIONS: dict[str, Callable[..., Any]] = {
    "is_zero_update": lambda trainee: trainee.is_zero_update,
    "whole_weights": lambda trainee: trainee.whole_weights(),
    "save_state": lambda trainee, path: trainee.save_state(path),
    "load_state": lambda trainee, path, until: trainee.load_state(path, until),
}
"""What the first process tells of a trainee, by its run's name -> what another one does with its
own."""


class Following:
    """Follows a pass in another process: does with the trainees what the first one tells."""

    def __init__(self, trainees: Iterable[Trainee], processes: Processes) -> None:
        self._processes = processes
        self._trainees = {trainee.run.name: trainee for trainee in trainees}

    def obey(self) -> None:
        """Do what the first process tells, until it says to go on.

        A state that cannot be used is refused by all, and the first one says what comes of it.
        """
        while True:
            action, arguments = self._processes.hear()
            if action is None:
                return
            if action == LEAVE:
                raise SystemExit(0)
            name, *others = arguments
            with contextlib.suppress(RecordError):
                _ACTIONS[action](self._trainees[name], *others)

    def stepped(self, trainee: Trainee, metrics: StepMetrics) -> None:
        self.obey()

    def reached(self, trainee: Trainee, result: TrainingResult) -> None:
        self.obey()

    def diverged(self, trainee: Trainee, error: DivergedError) -> None:
        self.obey()

    def shrunk(self, max_tokens: int) -> None:
        raise AssertionError("processes that gather layers together cannot read them differently")
