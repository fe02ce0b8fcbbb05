"""Reading a prefix tree from left to right with several models: every token once for each.

A step reads the next places, as many as its budget of tokens allows; after it, keys and values of
the next place's ancestors stay cached, and all others are freed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankwise.engine.models.attention import attention_of, decoder_of
from rankwise.engine.models.devices import free_bytes, give_back_memory, is_out_of_memory
from rankwise.engine.models.frozen_adapters import FrozenAdapter, FrozenBank, FrozenPiece
from rankwise.engine.models.lanes import twin
from rankwise.engine.models.placed import devices_of
from rankwise.engine.scoring.tree.attention import TREE_ATTENTION, KeyValues, TreeStep
from rankwise.engine.scoring.tree.layout import TreeLayout
from rankwise.engine.scoring.tree.prefixes import PrefixTree

# Steps are not made smaller than this: what then does not fit is not the step.
_FEWEST_TOKENS = 64
# A step's share of the free memory; and vectors of each size that a layer has of a token at once.
_STEP_SHARE, _STEP_VECTORS = 0.5, 4


class ReadPlaces(NamedTuple):
    """Hidden states of several models at neighbouring places of a tree.

    Attributes:
        start: the first place; ``stop`` is the one after the last.
        stop: see ``start``.
        hidden: of the last layer: the head's input.
        step: keeps the keys and values until the next places are read.
    """

    start: int
    stop: int
    hidden: Float[Tensor, "models places hidden"]
    step: TreeStep


class TreeReader:
    """A resident model that reads prefix trees, as it is and under adapters.

    Attributes:
        max_tokens: of one forward pass, all models together.
        cache_bytes: for cached keys and values; a single model is read even if it needs more.
        peak_cache_bytes: the most that was cached at once so far.
    """

    def __init__(
        self,
        model: nn.Module,
        bank: FrozenBank,
        *,
        max_tokens: int,
        cache_bytes: int,
        keeps_layouts: bool = False,
    ) -> None:
        """Take a model; ``keeps_layouts`` pays where one tree is read again and again."""
        self._model: Any = decoder_of(model)
        self._bank = bank
        self._token_bytes = _token_bytes(self._model)
        if self._model.device.type == "cuda":
            max_tokens = self._fitting_step(max_tokens)
        self.max_tokens, self.cache_bytes, self.peak_cache_bytes = max_tokens, cache_bytes, 0
        self._keeps_layouts = keeps_layouts
        self._layouts: dict[tuple[int, int], TreeLayout] = {}

    def _fitting_step(self, max_tokens: int) -> int:
        """Tokens, halved until a step of them fits into half of the memory that is free.

        The other half is for the caches. A step has keys and values of all layers, and of one layer
        some vectors of the hidden size and of the MLP's.
        """
        config = self._model.config.get_text_config()
        hidden: int = config.hidden_size
        wide: int = getattr(config, "intermediate_size", None) or 4 * hidden
        numbers = _STEP_VECTORS * (hidden + wide)
        element = next(self._model.parameters()).element_size()
        free = _STEP_SHARE * min(map(free_bytes, devices_of(self._model)))
        most = free / (self._token_bytes + numbers * element)
        while max_tokens > max(most, _FEWEST_TOKENS):
            max_tokens //= 2
        return max_tokens

    def beside(self, count: int) -> TreeReader:
        """One of ``count`` readers over the same weights, each for a thread of its own.

        They share steps and cache, and carry the adapters that are attached now.
        """
        model, bank = twin(self._model, self._bank)
        size = max(1, self.max_tokens // count), self.cache_bytes // count
        return TreeReader(model, bank, max_tokens=size[0], cache_bytes=size[1])

    def together(self, tree: PrefixTree, num_models: int) -> int:
        """How many models to read a tree with at once.

        As many as fill a forward pass (more would only need more cache), but no more than the
        cache has room for.
        """
        filling = -(-self.max_tokens // max(1, len(tree)))
        fitting = self.cache_bytes // max(1, tree.longest * self._token_bytes)
        return max(1, min(num_models, filling, fitting))

    def shrink(self) -> bool:
        """Halve the steps and the cache; False where the steps are as small as is sensible."""
        if self.max_tokens <= _FEWEST_TOKENS:
            return False
        self.forget_layouts()
        self.max_tokens //= 2
        self.cache_bytes //= 2
        return True

    def forget_layouts(self) -> None:
        """Free the layouts that were kept; the tree that they are of is not read again."""
        self._layouts = {}

    @torch.inference_mode()
    def read(
        self, tree: PrefixTree, adapters: Sequence[FrozenAdapter | None]
    ) -> Iterator[ReadPlaces]:
        """Read all places with all of these models at once; None is the model as it is.

        The caller has attached the adapters to their layers (``frozen_adapters.carrying``). Where
        memory runs out in a step, smaller ones go on from its first place.
        """
        device = next(self._model.parameters()).device
        cached: dict[int, KeyValues] = {}
        start = 0
        while start < len(tree):
            stop = min(start + max(1, self.max_tokens // len(adapters)), len(tree))
            if any(layout.tree is not tree for layout in self._layouts.values()):
                self.forget_layouts()
            layout = self._layouts.get((start, stop)) or TreeLayout(tree, start, stop, device)
            if self._keeps_layouts:
                self._layouts[start, stop] = layout
            try:
                read = self._step(TreeStep(layout, cached), adapters)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not self.shrink():
                    raise
                read = None
            if read is None:  # outside of the handler, whose error keeps the step's tensors alive
                give_back_memory(device)
                continue
            yield read
            if stop < len(tree):
                # keep the keys and values of the next place's ancestors, free all others
                slices, pools = layout.pool_slices(tree.ancestors(stop)), read.step.pools
                cached = {layer: pools[layer].at(slices) for layer in pools} if slices else {}
                pools.clear()
                held = sum(x.nbytes for layer in cached.values() for x in layer)
                self.peak_cache_bytes = max(self.peak_cache_bytes, held)
            start = stop

    def _step(self, step: TreeStep, adapters: Sequence[FrozenAdapter | None]) -> ReadPlaces:
        layout, models = step.layout, len(adapters)
        with (
            self._bank.rows_of(pieces_of(adapters, layout.num_queries)),
            attention_of(self._model, TREE_ATTENTION),
        ):
            hidden: Tensor = self._model.base_model(  # (models, places, hidden)
                input_ids=layout.tokens.expand(models, -1),  # (models, places)
                position_ids=layout.positions.expand(models, -1),  # (models, places)
                tree_step=step,
                use_cache=False,
            ).last_hidden_state
        return ReadPlaces(layout.start, layout.stop, hidden.to(layout.device), step)


def pieces_of(adapters: Sequence[FrozenAdapter | None], num_rows: int) -> list[FrozenPiece]:
    """Which rows belong to which adapter, ``num_rows`` a model; neighbours alike are one piece."""
    pieces: list[FrozenPiece] = []
    for number, adapter in enumerate(adapters):
        start, stop = number * num_rows, (number + 1) * num_rows
        if pieces and pieces[-1].adapter is adapter and pieces[-1].stop == start:
            pieces[-1] = pieces[-1]._replace(stop=stop)
        elif adapter is not None:
            pieces.append(FrozenPiece(adapter, start, stop))
    return pieces


def _token_bytes(model: Any) -> int:
    """Bytes of one token's keys and values in all layers by the config; where they differ, at most.

    ``head_dim`` is asked for by name of the entry: Gemma 4, whose layers have two widths, raises an
    error for the attribute. DeepSeek keeps keys of two parts and values of their own width.
    """
    config = model.config.get_text_config()
    entries = config.to_dict()
    # some layers may have entries of their own
    layers = [entries, *dict(entries.get("per_layer_config") or {}).values()]
    heads = max(layer.get("num_key_value_heads") or 0 for layer in layers)
    heads = heads or config.num_attention_heads
    width = max(layer.get("head_dim") or 0 for layer in layers)
    both = 2 * (width or config.hidden_size // config.num_attention_heads)
    if "qk_nope_head_dim" in entries:
        both = sum(entries[f"{name}_head_dim"] for name in ("qk_nope", "qk_rope", "v"))
    element = next(model.parameters()).element_size()
    return config.num_hidden_layers * heads * both * element
