"""A frozen base in 8 or 4 bits, as QLoRA users know it: bitsandbytes through transformers."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from rankwise.errors import ModelError
from rankwise.records.config import BasePrecision

_DEVICES = ("cpu", "cuda")


def quantization_config(
    base_precision: BasePrecision, compute_dtype: torch.dtype, device: torch.device
) -> Any | None:
    """What ``from_pretrained(quantization_config=...)`` takes; None for ``auto``.

    ``4bit`` is NF4 in blocks of 64 with doubly quantised scales (about 4.13 bits per weight); each
    matrix is unpacked to ``compute_dtype`` for its product. ``8bit`` is LLM.int8(): one scale per
    row of a matrix; columns of the input that hold a number of at least 6 are multiplied unrounded.
    Which columns these are depends on all rows of a batch, so an 8-bit model's outputs depend
    slightly on the rest of the batch. On a CPU, layers in training mode skip the rounding of the
    inputs. Embeddings, norms and the head stay in the dtype that the model is loaded in.

    Load with ``device_map={"": device}`` and call :func:`prepare_quantised` on the model.

    Args:
        base_precision: ``auto`` (not quantised), ``8bit`` or ``4bit``.
        compute_dtype: of the products of ``4bit``; ``8bit`` takes its inputs'.
        device: where the model will be: a CPU or a CUDA device.

    Raises:
        ModelError: bitsandbytes cannot be imported, or the device is another one.
    """
    if base_precision == "auto":
        return None
    if device.type not in _DEVICES:
        raise ModelError(
            f"base_precision {base_precision} is not available on {device}. "
            f"Use {' or '.join(_DEVICES)}, or base_precision auto."
        )
    try:
        importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise ModelError(
            f"base_precision {base_precision} needs bitsandbytes, which cannot be imported "
            f"({error}). Install it: pip install 'rankwise[quantization]'."
        ) from error
    if base_precision == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def is_quantised(model: nn.Module) -> bool:
    """Whether any weight is held as integers (packed or not), or transformers says so."""
    if getattr(model, "is_quantized", False):
        return True
    return any(not weight.is_floating_point() for weight in model.parameters())


def prepare_quantised(model: nn.Module) -> None:
    """Make a loaded model's quantised layers safe to train through; call it before any forward.

    On CPUs that multiply bfloat16, a 4-bit layer repacks its weights at its first forward in
    evaluation mode, for a kernel without a backward pass: from then on its input gets no gradient,
    and every layer below would stay untrained. This turns the repacking off. It also silences the
    log message of each 8-bit product about the precision of its input. A model that is not
    quantised is left unchanged.
    """
    for module in model.modules():
        layer: Any = module
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    if is_quantised(model):
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
