"""Where a decoder's heads lie: rows of its q, k and v projections, columns of its output's.

Every kind of layout is an entry of ``LAYOUTS``; a contract test checks each of them on a model. A
layer that fits no entry is refused by the name of its class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn
from transformers.pytorch_utils import Conv1D

from rankwise.engine.models.attention import INSTEAD, decoder_layers, decoder_of
from rankwise.engine.models.structure import LinearShape, linear_shape, text_part
from rankwise.errors import ModelError

# names of output projections in transformers
_OUTPUTS = ("o_proj", "out_proj", "dense")


class LayerSlice(NamedTuple):
    """Neighbouring outputs (rows of the weight) or inputs (columns) of a linear layer.

    Attributes:
        module: the layer's full name.
        span: which of them; also of a Conv1D, whose weight is transposed, outputs and inputs.
        is_input: whether they are inputs.
    """

    module: str
    span: slice
    is_input: bool = False

    @property
    def block(self) -> tuple[slice, slice]:
        """The rows and columns of the layer's matrix (out, in)."""
        return (slice(None), self.span) if self.is_input else (self.span, slice(None))


class _Rows(NamedTuple):
    """A layer's rows: of number n, a head or a group, those from start + n * (width + gap) on."""

    layer: str
    start: int
    width: int
    gap: int = 0

    def of(self, number: int, attention: str) -> LayerSlice:
        """The slice in the attention module of that name."""
        first = self.start + number * (self.width + self.gap)
        return LayerSlice(f"{attention}.{self.layer}", slice(first, first + self.width))


@dataclass(frozen=True)
class _FittedLayout:
    """An attention module's heads under a kind of layout: a head's q, a group's k and v.

    Attributes:
        num_heads: of queries.
        num_groups: of keys and values; ``num_heads / num_groups`` heads share one.
        width: features of a head.
    """

    num_heads: int
    num_groups: int
    width: int
    _query: _Rows
    _key: _Rows
    _value: _Rows
    _output: str


@dataclass(frozen=True)
class HeadLayout(_FittedLayout):
    """The heads of one layer.

    Attributes:
        layer: its number.
        layer_name: full name of the decoder layer.
        attention: full name of the attention module in it.
        kind: which entry of ``LAYOUTS`` fits.
    """

    layer: int
    layer_name: str
    attention: str
    kind: str

    @property
    def output(self) -> str:
        """Full name of the output projection."""
        return f"{self.attention}.{self._output}"

    @property
    def projections(self) -> tuple[str, ...]:
        """Full names of the q, k, v and output projections, each once."""
        parts = (self.query(0), self.key(0), self.value(0), self.columns(0))
        return tuple(dict.fromkeys(part.module for part in parts))

    def group_of(self, head: int) -> int:
        """The group of keys and values that a head reads."""
        return head // (self.num_heads // self.num_groups)

    def sharers(self, head: int) -> tuple[int, ...]:
        """The heads that read the same keys and values, the head itself included."""
        size = self.num_heads // self.num_groups
        first = self.group_of(head) * size
        return tuple(range(first, first + size))

    def query(self, head: int) -> LayerSlice:
        """A head's own rows of q."""
        return self._query.of(head, self.attention)

    def key(self, head: int) -> LayerSlice:
        """The rows of k that a head shares with its group."""
        return self._key.of(self.group_of(head), self.attention)

    def value(self, head: int) -> LayerSlice:
        """The rows of v that a head shares with its group."""
        return self._value.of(self.group_of(head), self.attention)

    def keys_and_values(self, head: int) -> list[LayerSlice]:
        """The rows of k, and those of v where these are others."""
        key, value = self.key(head), self.value(head)
        return [key] if key == value else [key, value]

    def columns(self, head: int) -> LayerSlice:
        """A head's columns of the output projection."""
        return LayerSlice(self.output, slice(head * self.width, (head + 1) * self.width), True)


def head_layouts(model: nn.Module) -> tuple[HeadLayout, ...]:
    """The heads of every layer of a decoder, in order; also of a model on the meta device.

    Args:
        model: of transformers, without adapters.

    Raises:
        ModelError: layers are not found, or the heads of one are laid out in no known way.
    """
    decoder, text = decoder_of(model), text_part(model)
    count = decoder.config.get_text_config().num_hidden_layers
    layers = [(name, at) for name, at in decoder_layers(model).items() if name.startswith(text)]
    if len(layers) != count:  # a vision tower within the text model has a list of its own
        lists = Counter(name.rpartition(".")[0] for name, _ in layers)
        text_list = next((name for name, number in lists.items() if number == count), None)
        layers = [each for each in layers if each[0].rpartition(".")[0] == text_list]
    if len(layers) != count:
        raise ModelError(f"the {count} layers of {type(decoder).__name__} are not found. {INSTEAD}")
    layouts: list[HeadLayout] = []
    for number, (name, layer) in enumerate(layers):
        fits = [
            (kind, path, fit)
            for path, module in layer.named_modules()
            for kind, resolve in LAYOUTS.items()
            if path and (fit := resolve(module)) is not None
        ]
        if len(fits) != 1:
            classes = (type(module).__name__ for module in layer.modules())
            attention = ", ".join(dict.fromkeys(c for c in classes if "ttention" in c))
            raise ModelError(
                f"{type(decoder).__name__} lays its heads out in a way that is not known here: "
                f"{name} ({type(layer).__name__}) has {attention or 'no attention'}, and known are "
                f"{', '.join(LAYOUTS)}. {INSTEAD}"
            )
        ((kind, path, fit),) = fits
        layouts.append(
            HeadLayout(
                **vars(fit), layer=number, layer_name=name, attention=f"{name}.{path}", kind=kind
            )
        )
    return tuple(layouts)


def _size(module: nn.Module, name: str) -> LinearShape | None:
    """The size of a module's linear layer of that name; None if it has none."""
    return linear_shape(getattr(module, name, None))


def _output(module: nn.Module) -> tuple[str, int] | None:
    """The output projection's name and number of inputs; None unless there is exactly one."""
    outputs = [(name, size[0]) for name in _OUTPUTS if (size := _size(module, name)) is not None]
    return outputs[0] if len(outputs) == 1 else None


def _width(module: nn.Module) -> int | None:
    widths = (getattr(module, name, None) for name in ("head_dim", "head_size"))
    return next((width for width in widths if isinstance(width, int)), None)


def _separate(module: nn.Module) -> _FittedLayout | None:
    """q_proj, k_proj and v_proj: Llama, Mistral, Qwen, Gemma, OLMo, Phi ..."""
    # Gemma 4's large kind has layers whose keys are their values: there v_proj is None
    v_proj = "k_proj" if getattr(module, "v_proj", module) is None else "v_proj"
    q, k, v = (_size(module, name) for name in ("q_proj", "k_proj", v_proj))
    output, width = _output(module), _width(module)
    if q is None or k is None or v is None or output is None or width is None:
        return None
    heads, groups = q[1] // width, k[1] // width
    if q[1] != heads * width or output[1] != q[1] or k != v or k[1] != groups * width:
        return None  # projections carry more than heads: gates, latent keys
    if groups == 0 or heads % groups:
        return None
    q_rows, k_rows, v_rows = (_Rows(name, 0, width) for name in ("q_proj", "k_proj", v_proj))
    return _FittedLayout(heads, groups, width, q_rows, k_rows, v_rows, output[0])


def _interleaved(module: nn.Module) -> _FittedLayout | None:
    """query_key_value of GPT-NeoX: head by head its q, k and v.

    Other classes have a layer of this name with other orders.
    """
    fused, output, width = _size(module, "query_key_value"), _output(module), _width(module)
    if type(module).__name__ != "GPTNeoXAttention":
        return None
    if fused is None or output is None or width is None or fused[1] != 3 * output[1]:
        return None
    heads = output[1] // width
    q, k, v = (_Rows("query_key_value", n * width, width, 2 * width) for n in range(3))
    return _FittedLayout(heads, heads, width, q, k, v, output[0])


def _side_by_side(module: nn.Module) -> _FittedLayout | None:
    """qkv_proj of Phi-3: all of q, then all of k, then all of v."""
    fused, output, width = _size(module, "qkv_proj"), _output(module), _width(module)
    groups = getattr(module, "num_key_value_heads", None)
    if fused is None or output is None or width is None or not isinstance(groups, int):
        return None
    heads = output[1] // width
    if fused[1] != (heads + 2 * groups) * width or heads % groups:
        return None
    q, k, v = (_Rows("qkv_proj", n * width, width) for n in (0, heads, heads + groups))
    return _FittedLayout(heads, groups, width, q, k, v, output[0])


def _conv1d(module: nn.Module) -> _FittedLayout | None:
    """c_attn of GPT-2, a Conv1D: all of q, then all of k, then all of v."""
    fused, output, width = _size(module, "c_attn"), _size(module, "c_proj"), _width(module)
    if not isinstance(getattr(module, "c_attn", None), Conv1D):
        return None  # a linear layer of this name (GPT-BigCode) has each head's q, k and v together
    if fused is None or output is None or width is None or fused[1] != 3 * output[0]:
        return None
    heads = output[0] // width
    q, k, v = (_Rows("c_attn", n * heads * width, width) for n in range(3))
    return _FittedLayout(heads, heads, width, q, k, v, "c_proj")


LAYOUTS: dict[str, Callable[[nn.Module], _FittedLayout | None]] = {
    "q_proj, k_proj, v_proj": _separate,
    "query_key_value": _interleaved,
    "qkv_proj": _side_by_side,
    "c_attn": _conv1d,
}
"""Kinds of layout by the names of their projections; each returns None if a module is not one."""
