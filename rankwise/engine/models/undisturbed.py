"""A model in the middle of its training, lent out for scoring and given back as it was."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Generator
from typing import Any

import numpy as np
import peft
import torch
from torch import nn

from rankwise.engine.models.adapter_config import PLAIN_INITIALISATIONS
from rankwise.errors import ModelError


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Generator[None]:
    """Within the block, a model is in eval mode and computes in the dtype of its weights.

    Afterwards every module's mode, every weight's ``requires_grad`` and the random states of
    Python, numpy and torch are what they were, so its training goes on as if nothing had happened.

    Args:
        model: on one device; as a Trainer trains it, with PEFT's adapters or without.
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = [(weight, weight.requires_grad) for weight in model.parameters()]
    weights_device = trained[0][0].device
    cards = [weights_device] if weights_device.type == "cuda" else []
    python_state, numpy_state = random.getstate(), np.random.get_state()
    # where accelerate prepared the model for mixed precision: its forward would round the logits,
    # and not those of the head
    attributes, prepared = vars(model), vars(model).get("forward")
    with torch.random.fork_rng(devices=cards):
        try:
            model.eval()
            if "_original_forward" in attributes:
                attributes["forward"] = attributes["_original_forward"]
            yield
        finally:
            if "_original_forward" in attributes:
                attributes["forward"] = prepared
            for module, mode in modes:
                module.training = mode
            for weight, is_trained in trained:
                weight.requires_grad_(is_trained)
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def untrained(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Within the block, a model at the beginning of its training is the base.

    With PEFT's adapters it is the model without them, else the model as it is.

    Raises:
        ModelError: an adapter whose initialisation changes the base's weights, or that is not in
            the layers (prompt tuning and its like).
    """
    if not isinstance(model, peft.PeftModel):
        return contextlib.nullcontext()
    for name in model.active_adapters:
        config: Any = model.peft_config[name]
        if config.is_prompt_learning or config.is_adaption_prompt:
            raise ModelError(
                f"an adapter of kind {config.peft_type.value} is not in the model's layers, and "
                "cannot be scored while it trains. Score it when it is saved."
            )
        init = getattr(config, "init_lora_weights", True)
        if init not in PLAIN_INITIALISATIONS:
            raise ModelError(
                f"init_lora_weights {init!r} changes the weights of the base, so the model "
                "without its adapter is not the base. Compare the saved adapter with its base "
                "(`rankwise check`)."
            )
    return model.disable_adapter()
