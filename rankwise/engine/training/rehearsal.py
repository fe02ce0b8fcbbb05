"""A step of training without numbers: how much memory its tensors take, and when.

A copy of the model with PyTorch's fake tensors, which have shapes only, reads a packed micro-batch
and goes backward, under the same adapters, attention and checkpointing as in training. The sizes of
all tensors that are made and freed are added up. Of equal layers two are rehearsed and the rest
counted.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AutoModelForCausalLM

from rankwise.engine.models import packed_kernels
from rankwise.engine.models.attention import decoder_layers
from rankwise.engine.models.devices import DTYPES, ResolvedPrecision
from rankwise.engine.models.packed_attention import packed_attention, packed_states
from rankwise.engine.models.packed_layout import PackedLayout
from rankwise.engine.models.structure import LinearShape
from rankwise.engine.models.trained_adapters import Adapter, DroppedSequence, Piece, adapted
from rankwise.records.config.training import BasePrecision
from rankwise.records.study import FullTraining, Method

_CUDA_STAND_IN = "rankwise_cuda_stand_in"
# Rows by which flash attention pads its sums of each sequence.
_FLASH_PADDING = 128
_CPU = torch.device("cpu")  # fake tensors take no memory, whichever device would train


class Peaks(NamedTuple):
    """Bytes without weights, gradients and optimizer state.

    Attributes:
        loss: when the loss is computed, without the logits.
        high: peak until the backward pass has left the last layer, when most activations exist.
        end: peak after that.
        flash: of flash attention's backward pass in the last layer, without padding; 0: none is.
        padding: of flash attention, for each sequence.
    """

    loss: int
    high: int
    end: int
    flash: int = 0
    padding: int = 0


class TrainingSetting(NamedTuple):
    """The settings that all passes of a study share.

    Attributes:
        device: that trains.
        precision: of the matrix products.
        longest: read tokens of the longest example.
        examples_per_step: of one trainee's optimizer step.
        shortest: read tokens of the shortest example; None: all are equally long.
        base_precision: of the frozen base under LoRA.
        dropout: of LoRA.
        full: how a full fine-tuning keeps weights and moments.
        is_held: whether any adapter is held to the base's distributions.
        num_cards: over which the layers of the frozen base lie under LoRA; see ``placed``.
        max_lanes: micro-batches of adapters that are read side by side; see ``lanes``.
        beside_bytes: by method, of a model that is in memory beside what is trained.
    """

    device: torch.device
    precision: ResolvedPrecision
    longest: int
    examples_per_step: int
    shortest: int | None = None
    base_precision: BasePrecision = "auto"
    dropout: float = 0.0
    full: FullTraining = FullTraining()
    is_held: bool = False
    num_cards: int = 1
    max_lanes: int = 1
    beside_bytes: Mapping[Method, int] = MappingProxyType({})


def rehearsed(
    config: Any,
    setting: TrainingSetting,
    shapes: Mapping[str, LinearShape] | None,
    count: int,
    gradient_checkpointing: bool,
) -> Peaks:
    """Rehearse a micro-batch of a frozen base, or one that adds to gradients of every weight.

    All rows of a frozen base belong to one adapter of rank 1.

    Args:
        config: of the model.
        setting: of the training.
        shapes: of the adapted layers, by name; None trains every weight.
        count: of the longest examples in the micro-batch.
        gradient_checkpointing: every layer is computed again in the backward pass.

    Raises:
        ModelError: the model cannot be packed.
    """
    layout, kind = PackedLayout((setting.longest,) * count), setting.device.type
    dtype = DTYPES[setting.full.weights if shapes is None else setting.precision]
    autocast = shapes is None and setting.precision == "bfloat16"
    model = (type(config).__name__, config.to_json_string(use_diff=False))
    settings = (dtype, setting.dropout, autocast, gradient_checkpointing)
    key = repr((model, layout.lengths, kind, settings, shapes and list(shapes.items())))
    if key in _known:
        return _known[key]
    # masks that attention keeps: one without numbers must not meet real tensors, nor the reverse
    masks = packed_kernels._kept_unseen  # pyright: ignore[reportPrivateUsage]
    masks.cache_clear()
    try:
        with FakeTensorMode():
            rehearsal = _Rehearsal(config, dtype, layout, is_cuda=kind == "cuda")
            if shapes is None:
                _known[key] = rehearsal.full(autocast, gradient_checkpointing)
            else:
                _known[key] = rehearsal.lora(shapes, setting.dropout, gradient_checkpointing)
    finally:
        masks.cache_clear()
    return _known[key]


# Results of this process's rehearsals, by everything that they depend on: a study is planned again
# whenever it is extended or shown.
_known: dict[str, Peaks] = {}


class _Rehearsal:
    """A model without numbers, with at most two layers of each kind, that does one step."""

    def __init__(
        self, config: Any, dtype: torch.dtype, layout: PackedLayout, is_cuda: bool
    ) -> None:
        model: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
        # Products of experts have no fake kernel for float32: they are rehearsed in bfloat16, and
        # all bytes are doubled at the end.
        self._is_halved = dtype == torch.float32 and any(p.ndim == 3 for p in model.parameters())
        if self._is_halved:
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.bfloat16)
        self._model = model.requires_grad_(False).eval()
        self._layout, self._is_cuda = layout, is_cuda
        # of several lists of layers, such as a small encoder's beside them, the longest
        lists = Counter(name.rpartition(".")[0] for name in decoder_layers(model))
        prefix = lists.most_common(1)[0][0]
        layers: Any = model.get_submodule(prefix)
        # Two layers of each kind are enough: the second shows what one more of them adds.
        alike: dict[str, list[int]] = {}
        for index, layer in enumerate(layers):
            alike.setdefault(_kind(layer), []).append(index)
        kept = sorted(index for indices in alike.values() for index in indices[:2])
        for index in reversed(range(len(layers))):
            if index not in kept:
                del layers[index]
        self._layers = layers
        # per kind: the place of its second layer among the kept ones, and how many are left out
        self._more = [
            (kept.index(indices[1]), len(indices) - 2)
            for indices in alike.values()
            if len(indices) > 2
        ]
        # full model's prefix of a layer's name -> its prefix in the shortened model
        self._names = {
            f"{prefix}.{index}.": f"{prefix}.{place}." for place, index in enumerate(kept)
        }
        text = model.config.get_text_config()
        if getattr(text, "layer_types", None):
            text.layer_types = [text.layer_types[index] for index in kept]
        self._prefix = prefix

    def full(self, autocast: bool, gradient_checkpointing: bool) -> Peaks:
        for weight in self._model.parameters():
            weight.requires_grad_().grad = torch.zeros_like(weight)
        return self._step([], autocast and not self._is_halved, gradient_checkpointing)

    def lora(
        self, shapes: Mapping[str, LinearShape], dropout: float, gradient_checkpointing: bool
    ) -> Peaks:
        kept: dict[str, LinearShape] = {}
        for name, shape in shapes.items():
            # the prefix, and one part more: the layer's number
            start = ".".join(name.split(".")[: self._prefix.count(".") + 2]) + "."
            if not name.startswith(f"{self._prefix}."):
                kept[name] = shape
            elif start in self._names:  # others are left out
                kept[self._names[start] + name.removeprefix(start)] = shape
        settings: dict[str, Any] = {"rank": 1, "scaling": 1.0, "dropout": dropout, "seed": 0}
        adapter = Adapter(kept, **settings, device=_CPU, dtype=self._model.dtype)
        tokens = self._layout.num_tokens
        piece = Piece(adapter, 0, tokens, (DroppedSequence(0, tokens, (0,)),))
        # one tensor of each block of memory that the adapter holds; views share its storage
        views = (adapter.copies, adapter.gradients)
        held = [*adapter.weights, *(next(iter(view.values())).lora_A for view in views)]
        with adapted(self._model, list(kept)) as bank, bank.rows_of([piece]):
            return self._step(held, False, gradient_checkpointing)

    def _step(self, held: Sequence[Tensor], autocast: bool, gradient_checkpointing: bool) -> Peaks:
        layout, model = self._layout, self._model
        ids = torch.zeros((1, layout.num_tokens), dtype=torch.int64)
        weights = list(model.parameters())
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        live = _LiveBytes([*held, *weights, *gradients, *model.buffers()])
        at_entry: list[int] = []  # live bytes when each layer begins
        flash: list[tuple[int, int]] = []  # live bytes and padding, by layer from the last one on

        def enter(_: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            if len(at_entry) == len(self._layers):
                return  # a checkpointed layer that is computed again
            at_entry.append(live.bytes)
            if len(at_entry) == len(self._layers):
                # the first phase ends when the backward pass leaves the last layer
                states: Tensor = inputs[0] if inputs else named["hidden_states"]
                states.register_hook(lambda _: live.peaks.append(live.bytes))

        with contextlib.ExitStack() as stack:
            stack.enter_context(packed_attention(model))
            if self._is_cuda:
                stand_in = partial(_cuda_stand_in, lambda size: flash.append((live.bytes, size)))
                AttentionInterface.register(_CUDA_STAND_IN, stand_in)
                model.set_attn_implementation(_CUDA_STAND_IN)
            for module in self._layers:
                layer: Any = module
                stack.callback(layer.register_forward_pre_hook(enter, with_kwargs=True).remove)
                if gradient_checkpointing:  # what transformers' gradient_checkpointing_enable does
                    layer.training = layer.gradient_checkpointing = True
                    layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            stack.enter_context(live)
            stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=autocast))
            hidden = packed_states(model.base_model, ids, layout)
            gradient = torch.zeros_like(hidden)  # the loss's gradient in the hidden states
            at_loss = live.bytes
            hidden.backward(gradient)
        more = sum(count * (at_entry[place] - at_entry[place - 1]) for place, count in self._more)
        peaks = Peaks(at_loss + more, live.peaks[0] + more, live.peaks[-1])
        if flash:
            peaks = peaks._replace(flash=flash[0][0] + more, padding=flash[0][1])
        return Peaks(*(2 * peak for peak in peaks)) if self._is_halved else peaks


class _LiveBytes(TorchDispatchMode):
    """Adds up the memory of tensors that operations inside have made and that still exist."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.bytes = 0
        self.peaks = [0]  # of each phase
        # by storage: views share one, and must be counted once
        self._known: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()
        for tensor in known:
            self._known[tensor.untyped_storage()] = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for output in result if isinstance(result, tuple | list) else (result,):
            storage: Any = output.untyped_storage() if isinstance(output, Tensor) else None
            if storage is not None and storage not in self._known:
                self._known[storage] = None
                self.bytes += storage.nbytes()
                self.peaks[-1] = max(self.peaks[-1], self.bytes)
                weakref.finalize(storage, self._free, storage.nbytes())
        return result

    def _free(self, size: int) -> None:
        self.bytes -= size


def _kind(layer: nn.Module) -> str:
    """A description that is equal for layers that keep the same activations."""
    settings = [
        (name, type(module).__name__, getattr(module, "sliding_window", None))
        for name, module in layer.named_modules()
    ]
    return repr((settings, [tuple(parameter.shape) for parameter in layer.parameters()]))


class _CudaStandIn(torch.autograd.Function):
    """Keeps what both kernels for CUDA keep: inputs, output, and a float32 number per row.

    Of flash attention ``note`` hears how many bytes pad each sequence, in the backward pass. There
    it sums up the queries' gradients in float32, and makes those of keys and values for every head
    of the queries before it adds up a group's (torch 2.13, ``mha_varlen_bwd``).
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, note: Callable[[int], None] | None
    ) -> Tensor:
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        rows = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, out, rows)
        ctx.note = note
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        gradients = [torch.empty_like(x) for x in (query, key, value)]
        if ctx.note is not None:
            _, heads, tokens, width = query.shape
            # widths are rounded up, and one column more holds products of outputs and gradients
            columns = -(-width // 32) * 32 + 1
            workspace = [torch.empty((heads, tokens, columns), dtype=torch.float32)]
            if key.shape[1] < heads:
                workspace += [torch.empty_like(query) for _ in (key, value)]
            ctx.note(_FLASH_PADDING * heads * columns * workspace[0].itemsize)
        return *gradients, None


def _cuda_stand_in(
    note: Callable[[int], None],
    _: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *__: Any,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **___: Any,
) -> tuple[Tensor, None]:
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (x.to(torch.bfloat16) for x in (query, key, value))
    is_plain, widths = softcap is None and s_aux is None, (query.shape[-1], value.shape[-1])
    kernel = packed_kernels.chosen_kernel(
        "cuda", query.dtype, widths, is_plain=is_plain, has_flash=True
    )
    out: Any = _CudaStandIn.apply(query, key, value, note if kernel == "varlen" else None)
    return out.transpose(1, 2), None  # from (1, heads, tokens, value_width)
