"""Loading a base model: its tokenizer, and its weights, in a dtype or quantised, frozen.

A frozen base can be in 8 or 4 bits, as QLoRA users know it: bitsandbytes through transformers.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from rankwise.engine.models.devices import (
    DTYPES,
    ResolvedPrecision,
    limit_kernel_cache,
    multiply_exactly,
)
from rankwise.engine.models.files import (
    CHECK_BOTH,
    diverged,
    loaded_files,
    read_json,
    refuse_other_dtypes,
    refuse_unfit,
    renaming,
    tensor_headers,
    unusable,
)
from rankwise.engine.models.limits import (
    refuse_false_charsmaps,
    refuse_growing,
    refuse_large_files,
)
from rankwise.errors import ModelError, to_install
from rankwise.records.config.training import BasePrecision

# kinds of device that a base can be quantised on
_QUANTISING = ("cpu", "cuda")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder, with a pad token (its own, else end of text).

    Raises:
        ModelError: it cannot be loaded, or has no end token.
    """
    what = f"the tokenizer in {folder} cannot be loaded"
    with unusable(what, "Check tokenizer.json and tokenizer_config.json there."):
        refuse_large_files(folder)
        refuse_false_charsmaps(folder)
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        longest = tokenizer.model_max_length
        if not (isinstance(longest, int | float) and longest >= 1):
            raise ValueError(f"model_max_length is {longest!r:.40}, not a number of tokens")
        refuse_growing(tokenizer)
        tokens = tokenizer.encode("a b", add_special_tokens=False)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer in {folder} has no end token; add eos_token to it.")
    if not tokens:
        raise ModelError(f"the tokenizer in {folder} produces no tokens for a text. Save it again.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(folder: Path, dtype: torch.dtype, **options: Any) -> Any:
    """Load a causal language model, all of whose weights are in its files.

    Args:
        folder: of the model.
        dtype: of its weights.
        options: of transformers' ``from_pretrained``.

    Raises:
        ModelError: the folder cannot be loaded, does not hold the model of its config, or weights
            are stored in a dtype that nothing here computes in.
    """
    files, is_quantised_there = loaded_files(folder), is_stored_quantised(folder)
    headers = {path: tensor_headers(path) for path in files}
    if not is_quantised_there:
        for path in files:
            refuse_other_dtypes(path, headers[path])
    names = renaming(name for of_file in headers.values() for name in of_file)
    with unusable(f"{folder} cannot be loaded", CHECK_BOTH):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            use_kernels=False,  # else the package kernels would swap layers, where it is installed
            output_loading_info=True,
            ignore_mismatched_sizes=not is_quantised_there,  # told by name
            key_mapping=names or None,
            **options,
        )
    model, loading = loaded
    if names:
        model._weight_conversions = None  # else ``save_pretrained`` would undo the renaming
    if not is_quantised_there:
        refuse_unfit(folder, model, loading)
    return model


def is_stored_quantised(folder: Path) -> bool:
    """Whether a model's config says that it is stored quantised: its numbers are no weights then.

    Raises:
        ModelError: the config cannot be read.
    """
    with unusable(f"{folder} cannot be loaded", "Save it again."):
        return bool(read_json(folder / "config.json").get("quantization_config"))


@torch.no_grad()
def answers_finitely(model: nn.Module, tokens: Sequence[int]) -> bool:
    """Whether a model's logits behind a text are finite; large weights can make them overflow."""
    (weights, *_) = model.parameters()
    logits = model(torch.tensor([tokens], device=weights.device), use_cache=False).logits
    return bool(torch.isfinite(logits).all())


def load_frozen(
    folder: Path,
    precision: ResolvedPrecision,
    device: torch.device,
    base_precision: BasePrecision = "auto",
    device_map: Mapping[str, int | str] | None = None,
) -> nn.Module:
    """Load a causal language model that will not be trained: no gradients, no dropout.

    Args:
        folder: of the model.
        precision: of its weights and activations.
        device: to put it on.
        base_precision: 8bit or 4bit quantises its linear layers.
        device_map: where its modules are instead, as transformers takes it.

    Raises:
        ModelError: the folder cannot be loaded, needs to run its own code, a weight is NaN or
            infinite, or the package for quantising is not installed.
    """
    limit_kernel_cache()
    multiply_exactly(device)
    quantization = quantization_config(base_precision, DTYPES[precision], device)
    options: dict[str, Any] = {} if device_map is None else {"device_map": dict(device_map)}
    if quantization is not None:
        options = {"quantization_config": quantization, "device_map": {"": device}}
    model = load_model(folder, DTYPES[precision], **options)
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.numel():
            least, most = weight.aminmax()  # both are NaN if any number is
            if not bool(torch.isfinite(least) & torch.isfinite(most)):
                raise diverged(folder, name)
    freeze(model)
    prepare_quantised(model)
    return model if options else model.to(device)


def freeze(model: Any) -> None:
    """No gradients and no dropout any more, and a head that reads slices without a detour."""
    model.requires_grad_(False).eval()
    # ``logits_to_keep`` gives the head a slice, and for a slice torch's matmul copies the weights
    # once per row: 26 GB for 460 rows of a vocabulary of 49,152, and hours of paging.
    model.get_output_embeddings().register_forward_pre_hook(
        lambda _, inputs: tuple(tensor.contiguous() for tensor in inputs)
    )


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
    if device.type not in _QUANTISING:
        raise ModelError(
            f"base_precision {base_precision} is not available on {device}. "
            f"Use {' or '.join(_QUANTISING)}, or base_precision auto."
        )
    require_bitsandbytes(f"base_precision {base_precision}")
    if base_precision == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def require_bitsandbytes(what: str) -> None:
    """Refuse what needs bitsandbytes where that cannot be imported.

    Raises:
        ModelError: begins with ``what``.
    """
    try:
        importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise ModelError(
            f"{what} needs bitsandbytes, which cannot be imported ({error}). Install it: "
            f"{to_install('quantization')}."
        ) from error


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
