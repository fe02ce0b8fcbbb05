"""Exact effects of ablating single heads: the layers below a head are computed once.

A model reads the items once and keeps the input of every layer and the outputs of its heads. An
ablation of a head of layer l begins there: its rows of the batch take the kept input of layer l,
differ in that layer, and go through the layers above. On average that is half of the model. All
heads of a layer share a batch, items share their prefixes (``PrefixTree``), and logits exist at
scored positions only.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankwise.engine.models.attention import decoder_of
from rankwise.engine.models.devices import free_bytes, in_smaller_steps
from rankwise.engine.models.frozen_adapters import FrozenAdapter, FrozenBank, carrying
from rankwise.engine.models.head import CompletionHead
from rankwise.engine.models.packed_attention import check_packable
from rankwise.engine.models.structure import layers_replaced
from rankwise.engine.scoring.resident import CACHE_SHARE
from rankwise.engine.scoring.tree.answers import LogLikelihoodSums, Targets, add_answers
from rankwise.engine.scoring.tree.prefixes import PrefixTree
from rankwise.engine.scoring.tree.reader import ReadPlaces, TreeReader
from rankwise.heads.interventions import Head
from rankwise.heads.layouts import HeadLayout, head_layouts
from rankwise.records.grouping import grouped
from rankwise.tasks.questions import Advance, Continuation, LogLikelihood, shared_length

# The share of the free memory for what is kept of the layers; the cache takes as much again.
_KEPT_SHARE = 0.25


class Ablation(NamedTuple):
    """A head's output is replaced by ``value``, or by zeros if that is None."""

    head: Head
    value: Float[Tensor, " width"] | None = None


class HeadScorer:
    """A frozen model, scored with single heads changed.

    Attributes:
        layouts: of the heads, layer by layer.
    """

    def __init__(
        self,
        base_model: nn.Module,
        *,
        max_batch_tokens: int,
        kept_bytes: int | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        """Check that the model can be read in parts and its heads are known.

        Args:
            base_model: frozen, in eval mode, without adapters.
            max_batch_tokens: of one forward pass, all ablations together.
            kept_bytes: for what is kept of the layers; None is a quarter of the free memory. A
                single item is read even if it needs more.
            cache_bytes: for keys and values of rows with an ablated head, likewise.

        Raises:
            ModelError: attention, head or layout of heads are not of a kind that is known here.
        """
        self._model, self._decoder = base_model, decoder_of(base_model)
        self.layouts: tuple[HeadLayout, ...] = head_layouts(base_model)
        check_packable(base_model)
        self._head = CompletionHead(self._decoder)
        free = free_bytes(self._decoder.device)
        self._kept_bytes = int(_KEPT_SHARE * free) if kept_bytes is None else kept_bytes
        self._bank = FrozenBank()
        self._reader = TreeReader(
            base_model,
            self._bank,
            max_tokens=max_batch_tokens,
            cache_bytes=int(CACHE_SHARE * free) if cache_bytes is None else cache_bytes,
            keeps_layouts=True,
        )

    @property
    def heads(self) -> list[Head]:
        """All heads, layer by layer."""
        return [Head(layout.layer, n) for layout in self.layouts for n in range(layout.num_heads)]

    @torch.inference_mode()
    def log_likelihoods(
        self,
        items: Sequence[Continuation],
        ablations: Sequence[Ablation],
        adapter: FrozenAdapter | None = None,
        advance: Advance = lambda _: None,
    ) -> list[list[LogLikelihood]]:
        """Score continuations under every ablation.

        Args:
            items: with their contexts.
            ablations: of one head each.
            adapter: the model is the base with it; None is the base.
            advance: receives how many items were scored, of items * (ablations + 1).

        Returns:
            First those of the model as it is, then by ablation, each in the order of the items.
        """
        blank = LogLikelihood(0.0, False)
        answers = [[blank] * len(items) for _ in range(len(ablations) + 1)]
        for chunk in self._chunks(items):
            members = [items[i] for i in chunk]
            scored = in_smaller_steps(
                lambda tell, part=members: list(self._of_chunk(part, ablations, adapter, tell)),
                self._reader.shrink,
                advance,
                self._decoder.device,
            )
            for number, of_chunk in scored:
                for index, log_likelihood in zip(chunk, of_chunk, strict=True):
                    answers[number][index] = log_likelihood
        return answers

    @torch.inference_mode()
    def mean_outputs(
        self, items: Sequence[Continuation], adapter: FrozenAdapter | None = None
    ) -> dict[Head, Float[Tensor, " width"]]:
        """Every head's output before the output projection, a mean over all distinct tokens.

        A prefix that items share counts once, however the memory cuts the items into parts.
        """
        sums: dict[int, Tensor] = {}
        count, before = 0, tuple[int, ...]()
        for chunk in self._chunks(items):
            tree = PrefixTree([items[i].tokens_read for i in chunk])
            # Items are sorted, so what a part has in common with an earlier one is what its first
            # item has in common with the last item before. Those are the tree's first places.
            begun = shared_length(before, items[chunk[0]].tokens_read)
            before = items[chunk[-1]].tokens_read
            _, kept = in_smaller_steps(
                lambda _, tree=tree: self._read_whole(tree, adapter),
                self._reader.shrink,
                lambda _: None,
                self._decoder.device,
            )
            count += len(tree) - begun
            for layer, heads in kept.items():
                total = heads[begun:].double().sum(dim=0)
                sums[layer] = total if layer not in sums else sums[layer] + total
        dtype = next(self._model.parameters()).dtype
        return {
            head: (sums[head.layer][self.layouts[head.layer].columns(head.head).span] / count).to(
                dtype
            )
            for head in self.heads
        }

    def _of_chunk(
        self,
        items: Sequence[Continuation],
        ablations: Sequence[Ablation],
        adapter: FrozenAdapter | None,
        advance: Advance,
    ) -> Iterator[tuple[int, list[LogLikelihood]]]:
        """(Number of the ablation + 1, its answers); number 0 is the model as it is."""
        tree = PrefixTree([item.tokens_read for item in items])
        targets = Targets(tree, items)
        sums = LogLikelihoodSums(1, len(items), self._decoder.device)
        entering, heads = self._read_whole(
            tree, adapter, lambda read: add_answers(self._head, read, targets, sums)
        )
        yield 0, sums.log_likelihoods()[0]
        advance(len(items))
        by_layer = grouped((one.head.layer, number) for number, one in enumerate(ablations))
        for layer, numbers in sorted(by_layer.items()):
            size = self._reader.together(tree, len(numbers))
            for start in range(0, len(numbers), size):
                group = numbers[start : start + size]
                chosen = [ablations[n] for n in group]
                sums = LogLikelihoodSums(len(group), len(items), self._decoder.device)
                kept = entering[layer], heads[layer]
                with self._ablated(layer, *kept, chosen, adapter):
                    for read in self._reader.read(tree, [adapter] * len(group)):
                        add_answers(self._head, read, targets, sums)
                yield from zip((n + 1 for n in group), sums.log_likelihoods(), strict=True)
                advance(len(items) * len(group))

    def _read_whole(
        self,
        tree: PrefixTree,
        adapter: FrozenAdapter | None,
        on_read: Callable[[ReadPlaces], None] = lambda _: None,
    ) -> tuple[
        dict[int, Float[Tensor, "places hidden"]], dict[int, Float[Tensor, "places heads_width"]]
    ]:
        """Read a tree with the model as it is: each layer's input, and its heads' outputs."""
        kept: dict[str, list[Tensor]] = defaultdict(list)
        # by module; a step that is repeated, as memory ran out, replaces what it had left
        of_step: dict[str, Tensor] = {}
        with contextlib.ExitStack() as stack:
            stack.enter_context(carrying(self._model, [adapter], self._bank))
            for layout in self.layouts:
                for name in (layout.layer_name, layout.output):
                    hook = partial(_keep_input, of_step, name)
                    module = self._model.get_submodule(name)
                    stack.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
            for read in self._reader.read(tree, [adapter]):
                on_read(read)
                for name, piece in of_step.items():
                    kept[name].append(piece)
        # the steps' pieces, (places, width) for every layer
        return (
            {layout.layer: torch.cat(kept[layout.layer_name]) for layout in self.layouts},
            {layout.layer: torch.cat(kept[layout.output]) for layout in self.layouts},
        )

    @contextlib.contextmanager
    def _ablated(
        self,
        layer: int,
        entering: Float[Tensor, "places hidden"],
        heads: Float[Tensor, "places heads_width"],
        ablations: Sequence[Ablation],
        adapter: FrozenAdapter | None,
    ) -> Generator[None]:
        """Within the block, rows begin at a layer, each with one head of it ablated."""
        layout = self.layouts[layer]
        with contextlib.ExitStack() as stack:
            stack.enter_context(carrying(self._model, [adapter], self._bank))
            output = self._model.get_submodule(layout.output)
            changes = [(layout.columns(one.head.head).span, one.value) for one in ablations]
            replaced: dict[str, nn.Module] = {
                layout.attention: _AblatedAttention(output, heads, changes)
            }
            replaced |= {
                below.layer_name: _PassedLayer(self._model.get_submodule(below.layer_name))
                for below in self.layouts[:layer]
            }
            first = self._model.get_submodule(layout.layer_name)
            stack.enter_context(layers_replaced(self._model, replaced))
            hook = partial(_enter_layer, entering)
            stack.enter_context(first.register_forward_pre_hook(hook, with_kwargs=True))
            yield

    def _chunks(self, items: Sequence[Continuation]) -> list[list[int]]:
        """Numbers of the items, in parts whose kept inputs fit into the memory.

        They are sorted by their tokens, so that a part reads a common prefix once.
        """
        element = next(self._model.parameters()).element_size()
        hidden = self._decoder.config.get_text_config().hidden_size
        of_heads = sum(layout.num_heads * layout.width for layout in self.layouts)
        # places that can be kept: of each, the inputs of all layers and the outputs of all heads
        limit = self._kept_bytes // (element * (hidden * len(self.layouts) + of_heads))
        chunks: list[list[int]] = []
        places, before = 0, tuple[int, ...]()
        for index in sorted(range(len(items)), key=lambda i: items[i].tokens_read):
            tokens = items[index].tokens_read
            new = len(tokens) - shared_length(before, tokens)
            if not chunks or places + new > limit:
                chunks.append([])
                places, new = 0, len(tokens)
            chunks[-1].append(index)
            places, before = places + new, tokens
        return chunks


class _AblatedAttention(nn.Module):
    """Replaces a layer's attention by its heads' kept outputs, one changed in each row."""

    def __init__(
        self,
        output: nn.Module,
        heads: Float[Tensor, "places heads_width"],
        changes: Sequence[tuple[slice, Tensor | None]],
    ) -> None:
        super().__init__()
        self.output, self._heads, self._changes = output, heads, changes

    def forward(self, *_: Any, **given: Any) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        layout = given["tree_step"].layout
        # (rows, places, heads * width): one row for each change
        heads = self._heads[layout.start : layout.stop].repeat(len(self._changes), 1, 1)
        for row, (span, value) in enumerate(self._changes):
            heads[row, :, span] = 0 if value is None else value
        return self.output(heads), None


class _PassedLayer(nn.Module):
    """Replaces a layer that is not computed again; has the layer's other attributes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **given: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return args[0] if args else given["hidden_states"]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


def _keep_input(
    into: dict[str, Tensor], name: str, _: nn.Module, args: tuple[Any, ...], given: dict[str, Any]
) -> None:
    """Keep the hidden states, the first input, of a module in a batch of one row."""
    (row,) = args[0] if args else given["hidden_states"]  # (places, width)
    into[name] = row.clone()  # layers may change their input in place


def _enter_layer(
    kept: Float[Tensor, "places hidden"], _: nn.Module, args: tuple[Any, ...], given: dict[str, Any]
) -> Any:
    """Give a layer its kept input, in every row."""
    layout = given["tree_step"].layout
    rows = len(args[0] if args else given["hidden_states"])
    hidden = kept[layout.start : layout.stop].expand(rows, -1, -1)  # (rows, places, hidden)
    if args:
        return (hidden, *args[1:]), given
    return args, given | {"hidden_states": hidden}
