"""How much memory a pass of training takes, found without any weights.

The tensors that a micro-batch makes and frees are rehearsed; those held from step to step are
counted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import psutil
import torch

from rankwise.engine.models.attention import decoder_layers
from rankwise.engine.models.devices import DTYPES, KERNEL_BYTES, MAX_KERNELS, has_bfloat16_kernels
from rankwise.engine.models.head import BLOCK_BYTES, CHUNK_BYTES
from rankwise.engine.models.lanes import lanes_within
from rankwise.engine.models.placed import cards_of_layers, most_on_a_card, num_weights
from rankwise.engine.models.structure import adaptable_shapes
from rankwise.engine.training.optimizers import optimizer_state_bytes
from rankwise.engine.training.rehearsal import Peaks, TrainingSetting, rehearsed
from rankwise.records.study import FullTraining, Method

LIKELY_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens of a micro-batch unless memory limits it: on a CPU, larger ones are hardly faster."""

KEPT_TOKENS = {"cpu": 0, "cuda": 8192}
"""Tokens of a micro-batch, or those of its whole step, that are left to it rather than filling
memory with more adapters. On a card products of fewer rows are slower, and each micro-batch has as
many small kernels; where that begins is estimated, not measured. On a CPU it is not so."""

_FLOAT32_BYTES = 4
_QUANTISED_BYTES = {"8bit": 1.0, "4bit": 0.56}  # per weight of a linear layer, with its scales
# float32 copies of a block of logits that exist at once in ``head.backward_losses``, by whether the
# distribution is compared with the base's.
_LOGITS_BLOCKS = {False: 3, True: 6}
# Workspace of the libraries that multiply on a CPU, and what the allocator cannot return: measured
# 65 to 150 MB, whatever the model's size. torch's own loops for bfloat16, which are used where
# oneDNN has no kernels, keep less: measured 14 to 59 MB.
_CPU_WORKSPACE = 96 << 20
_CPU_WORKSPACE_OF_LOOPS = 32 << 20
# float32 copies of one weight that stochastic rounding makes in a step.
_ROUNDING_COPIES = 6
# Sequences of the two rehearsals: memory grows linearly with the number of sequences.
_REHEARSED = (1, 4)


class AdapterSize(NamedTuple):
    """One LoRA adapter of a pass.

    Attributes:
        rank: of every layer's update.
        num_parameters: that are trained, of all its matrices.
        num_frozen: that are held and multiplied besides, where it began at what the base holds.
    """

    rank: int
    num_parameters: int
    num_frozen: int = 0


class PassMemory:
    """The peak memory of passes over one base model.

    Rehearsals, of about a second each, are done once, when first needed. A model whose code cannot
    be rehearsed is estimated by a rule for Llama's layers.

    Attributes:
        likely_tokens: read tokens of a micro-batch on this device if memory does not limit it.
        kept_tokens: read tokens of a micro-batch for which another pass is begun; 0: none is.
        longest: read tokens of the longest example.
    """

    def __init__(
        self,
        skeleton: Any,
        setting: TrainingSetting,
        layer_names: Sequence[str] = (),
        process_bytes: int | None = None,
    ) -> None:
        """Take a model's skeleton and the settings of its passes.

        Args:
            skeleton: the model on the meta device.
            setting: of the study.
            layer_names: that any of the adapters adapts.
            process_bytes: of the process without the pass; None: on a CPU its present size and the
                workspace that its libraries will take, nothing on CUDA.
        """
        self._config, self._setting = skeleton.config, setting
        self.likely_tokens = LIKELY_TOKENS[setting.device.type]
        self.kept_tokens, self.longest = KEPT_TOKENS[setting.device.type], setting.longest
        self._shapes = adaptable_shapes(skeleton)
        self._layer_names = tuple(layer_names)
        sizes = [parameter.numel() for parameter in skeleton.parameters()]
        self._num_parameters, self._largest = sum(sizes), max(sizes)
        self._head_size: int = skeleton.get_output_embeddings().weight.numel()
        layers = decoder_layers(skeleton).values()
        self._layer_sizes = [num_weights(layer) for layer in layers]
        self._outside = self._num_parameters - sum(self._layer_sizes)
        self._num_layers: int = skeleton.config.get_text_config().num_hidden_layers
        self._vocab_size: int = skeleton.config.get_text_config().vocab_size
        self._process = self._process_bytes() if process_bytes is None else process_bytes
        self._rehearsed: dict[tuple[Method, bool], tuple[Peaks, Peaks]] = {}

    @property
    def full(self) -> FullTraining:
        """How full fine-tuning keeps weights and moments."""
        return self._setting.full

    def changed(self, **settings: Any) -> PassMemory:
        """The memory of the same passes under other settings, named as in ``TrainingSetting``."""
        other = copy.copy(self)
        other._setting, other._rehearsed = self._setting._replace(**settings), {}
        return other

    def lora_bytes(
        self, adapters: Sequence[AdapterSize], max_tokens: int, gradient_checkpointing: bool
    ) -> int:
        """Peak of a pass that trains these adapters: of the process on a CPU, else of a card.

        Of several cards it is that of the fullest: adapters and activations lie with their layers.

        Args:
            adapters: at least one.
            max_tokens: read at once; the longest example is always read whole.
            gradient_checkpointing: a layer's activations are computed again.
        """
        width = DTYPES[self._setting.precision].itemsize
        lanes = lanes_within(max_tokens, self.longest, self._setting.max_lanes)
        tokens = self._tokens(max_tokens, len(adapters), lanes)
        # Rows of x @ A.T of all layers. Adapters of other seeds or data read other lengths, so that
        # at worst all rows belong to the one of the highest rank.
        highest = max(adapter.rank for adapter in adapters)
        inner = tokens * len(self._layer_names) * width * highest
        if gradient_checkpointing:
            inner //= self._num_layers  # one layer's at a time
        num_weights = sum(adapter.num_parameters for adapter in adapters)
        num_frozen = sum(adapter.num_frozen for adapter in adapters)
        # weights, gradients, two moments, and the copy; of what is frozen, weights and the copy
        state = num_weights * (4 * _FLOAT32_BYTES + width) + num_frozen * (_FLOAT32_BYTES + width)
        state += (lanes - 1) * num_weights * _FLOAT32_BYTES  # each has gradients of its own
        step = lanes * self._step_bytes(
            "lora", tokens, gradient_checkpointing, inner, num_trainees=len(adapters)
        )
        held = self.base_bytes + self._setting.beside_bytes.get("lora", 0)
        return self._process + held + math.ceil(self._share * state) + step

    @property
    def _share(self) -> float:
        """The base's layers on the card that has most of them."""
        cards = cards_of_layers(self._layer_sizes, self._outside, self._setting.num_cards)
        return max(map(cards.count, cards), default=1) / max(len(cards), 1)

    def full_bytes(self, max_tokens: int, gradient_checkpointing: bool) -> int:
        """Peak of a full fine-tuning, which is on one card; see ``lora_bytes``."""
        weights, width = DTYPES[self.full.weights], DTYPES[self._setting.precision].itemsize
        held = optimizer_state_bytes(self._num_parameters, weights, self.full.optimizer)
        held += self._num_parameters * weights.itemsize
        held += self._setting.beside_bytes.get("full", 0)
        tokens = self._tokens(max_tokens, 1)
        if weights.itemsize > width:
            held += self._head_size * width  # autocast's copy
        step = self._step_bytes("full", tokens, gradient_checkpointing)
        if weights == torch.bfloat16:
            step = max(step, _ROUNDING_COPIES * _FLOAT32_BYTES * self._largest)
        return self._process + held + step

    def _tokens(self, max_tokens: int, num_trainees: int, lanes: int = 1) -> int:
        """Tokens of the largest micro-batch: no step has more than its examples."""
        of_step = num_trainees * self._setting.examples_per_step * self._setting.longest
        return max(min(max_tokens, of_step) // lanes, self._setting.longest)

    def _step_bytes(
        self,
        method: Method,
        tokens: int,
        gradient_checkpointing: bool,
        inner: int = 0,
        num_trainees: int = 1,
    ) -> int:
        """Peak bytes of a step without those held from step to step; ``inner`` is added.

        A micro-batch may consist of the shortest examples, but has no more than those of a step.
        """
        peaks = self._peaks_at(method, gradient_checkpointing, tokens)
        most = num_trainees * self._setting.examples_per_step
        padding = min(tokens // self._shortest, most) * peaks.padding
        high = max(peaks.high, peaks.flash + padding)
        logits = self._loss_bytes(method, tokens)
        if method == "full" or self._setting.num_cards == 1:
            return max(max(peaks.loss + logits, high) + inner, peaks.end)
        # what is kept lies with the layers; what is made of it in the backward pass, on one card
        kept = math.ceil(self._share * (peaks.loss + inner))
        return kept + max(logits, high - peaks.loss, peaks.end - peaks.loss)

    @property
    def _shortest(self) -> int:
        shortest = self._setting.shortest
        return self._setting.longest if shortest is None else shortest

    def _process_bytes(self) -> int:
        """The process without the pass: its present size and its libraries' workspace."""
        if self._setting.device.type != "cpu":
            return 0
        held = psutil.Process().memory_info().rss
        if self._setting.precision != "bfloat16":
            return held + _CPU_WORKSPACE
        if not has_bfloat16_kernels():
            return held + _CPU_WORKSPACE_OF_LOOPS
        return held + _CPU_WORKSPACE + self._kernel_bytes()

    def _kernel_bytes(self) -> int:
        """Kernels that oneDNN generates, one for every shape of product, forward and backward.

        The rows of a product are the tokens of a micro-batch; ragged examples have many sums.
        """
        setting = self._setting
        num_sums = 1 + setting.examples_per_step * (setting.longest - self._shortest)
        num_products = 2 * len(set(self._shapes.values())) * num_sums
        return min(num_products, MAX_KERNELS) * KERNEL_BYTES

    @property
    def base_bytes(self) -> int:
        """What a card holds of the frozen base, or the fullest of several cards.

        Of a quantised base one layer is unpacked.
        """
        width = DTYPES[self._setting.precision].itemsize
        packed = _QUANTISED_BYTES.get(self._setting.base_precision)
        if packed is None:
            num_cards = self._setting.num_cards
            return most_on_a_card(self._layer_sizes, self._outside, num_cards) * width
        sizes = [shape.in_features * shape.out_features for shape in self._shapes.values()]
        others = self._num_parameters - sum(sizes)
        return int(sum(sizes) * packed) + others * width + max(sizes) * width

    def _peaks_at(self, method: Method, gradient_checkpointing: bool, tokens: int) -> Peaks:
        """The peaks on straight lines through two rehearsals."""
        key = (method, gradient_checkpointing)
        if key not in self._rehearsed:
            few, many = (self._peaks(method, gradient_checkpointing, count) for count in _REHEARSED)
            self._rehearsed[key] = few, many
        low, high = (count * self.longest for count in _REHEARSED)
        pairs = zip(*self._rehearsed[key], strict=True)
        lines = ((at_low, (at_high - at_low) / (high - low)) for at_low, at_high in pairs)
        return Peaks(*(max(0, int(at_low + (tokens - low) * slope)) for at_low, slope in lines))

    def _peaks(self, method: Method, gradient_checkpointing: bool, count: int) -> Peaks:
        try:
            return self._rehearse(method, gradient_checkpointing, count)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            # The architecture's code needs numbers and cannot be rehearsed. A layer of Llama keeps
            # about 14 vectors of the hidden size and 5 of the MLP's size per token.
            config = self._config.get_text_config()
            width = DTYPES[self._setting.precision].itemsize * count * self._setting.longest
            intermediate = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
            layer = (14 * config.hidden_size + 5 * intermediate) * width
            kept = config.hidden_size * width if gradient_checkpointing else layer
            return Peaks(self._num_layers * kept, self._num_layers * kept + layer, layer)

    def _rehearse(self, method: Method, gradient_checkpointing: bool, count: int) -> Peaks:
        shapes = {name: self._shapes[name] for name in self._layer_names}
        adapted = None if method == "full" else shapes
        return rehearsed(self._config, self._setting, adapted, count, gradient_checkpointing)

    def _loss_bytes(self, method: Method, tokens: int) -> int:
        """Logits of a chunk, and with them either their copies or the head's gradient.

        A chunk's gradient of the head is made whole before it is added to the head's ``grad``.
        """
        kind = self._setting.device.type
        width = DTYPES[self._setting.precision].itemsize
        logits = min(tokens * self._vocab_size * width, CHUNK_BYTES[kind])
        block = min(tokens * self._vocab_size * _FLOAT32_BYTES, BLOCK_BYTES[kind])
        gradient = 0
        if method == "full":
            weights = DTYPES[self._setting.full.weights].itemsize
            # under autocast, in its dtype and then cast to the weights'
            gradient = self._head_size * (weights if weights == width else weights + width)
        return logits + max(_LOGITS_BLOCKS[self._setting.is_held] * block, gradient)


def estimate_training_memory(
    memory: PassMemory,
    *,
    method: Method,
    rank: int | None,
    num_trainable: int,
    max_tokens: int,
    num_beside: int = 0,
) -> int:
    """Peak bytes of a run that is trained alone, without gradient checkpointing.

    ``num_trainable`` parameters get gradients, and it is trained beside ``num_beside``; a
    micro-batch reads at most ``max_tokens``.
    """
    if method == "full":
        return memory.full_bytes(max_tokens, gradient_checkpointing=False)
    assert rank is not None
    return memory.lora_bytes([AdapterSize(rank, num_trainable, num_beside)], max_tokens, False)
