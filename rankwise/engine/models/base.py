"""Base models: finding them, loading them frozen, and their layers that can be adapted.

A frozen base can be in 8 or 4 bits, as QLoRA users know it: bitsandbytes through transformers.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import hashlib
import importlib
import inspect
import itertools
import logging
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from rankwise.engine.models.devices import (
    DTYPES,
    ResolvedPrecision,
    limit_kernel_cache,
    multiply_exactly,
)
from rankwise.engine.models.embedded import EMBEDDED_MODELS, embedded_model_folder
from rankwise.engine.models.files import (
    diverged,
    loaded_files,
    read_json,
    refuse_adapter,
    refuse_other_dtypes,
    refuse_unfit,
    tensor_headers,
    unusable,
    weights_files,
)
from rankwise.engine.models.limits import (
    refuse_growing,
    refuse_large_files,
    refuse_large_numbers,
)
from rankwise.errors import ModelError
from rankwise.records.config.study import BaseModelConfig
from rankwise.records.config.training import BasePrecision
from rankwise.records.files import merged_base_folder

SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
"""What a folder needs besides the weights: no pickles, no code."""
# of one sample of a weights file; changing this would change every folder's fingerprint
_SAMPLE_BYTES = 1 << 16
# kinds of device that a base can be quantised on
_QUANTISING = ("cpu", "cuda")
# The small files that decide what a model computes and generates, and how text becomes tokens.
_FINGERPRINTED_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


_CHECK_CONFIG = "Check its config.json, or save the model again."
# The largest sizes that are believed: modules are made before any of their weights is looked at.
_SIZES = {"num_hidden_layers": 1 << 10, "hidden_size": 1 << 17, "vocab_size": 1 << 23}

ARCHITECTURE = ("model_type", "hidden_size", "num_hidden_layers")
"""Entries of a model's config that no fine-tuning changes."""


class BaseModel(NamedTuple):
    """A base model on disk.

    Attributes:
        name: as in the study file.
        folder: a transformers folder.
        fingerprint: of weights and tokenizer; a local folder's weights are sampled for it.
        start: adapter that is merged into the folder's weights; see ``start.with_start``.
    """

    name: str
    folder: Path
    fingerprint: str
    start: str | None = None

    @property
    def recorded_name(self) -> str:
        """What an adapter that was trained on it names as its base."""
        return self.name if self.start is None else str(merged_base_folder(self.fingerprint))


class LinearShape(NamedTuple):
    """The size of one matrix that can be adapted."""

    in_features: int
    out_features: int


def linear_shape(module: nn.Module | None) -> LinearShape | None:
    """The size of a linear layer, GPT-2's Conv1D too; None for other modules."""
    if isinstance(module, Conv1D):
        return LinearShape(module.nx, module.nf)
    if isinstance(module, nn.Linear):
        return LinearShape(module.in_features, module.out_features)
    return None


def find_base_model(
    config: BaseModelConfig, report: Callable[[str], None] = lambda _: None, *, weights: bool = True
) -> BaseModel:
    """Turn a name into a folder: an embedded model, a local folder, or a hub repository.

    Args:
        config: name and, for a hub repository, revision.
        report: receives a line before a download.
        weights: False fetches config and tokenizer only from a hub.

    Raises:
        ModelError: there is no such model, it has no safetensors, or it is an adapter.
    """
    if config.name in EMBEDDED_MODELS:
        embedded = EMBEDDED_MODELS[config.name]
        folder = embedded_model_folder(embedded, report)
        return BaseModel(config.name, folder, f"sha256:{embedded.sha256}")
    here = folder_here(config.name)
    if here is not None:
        refuse_adapter(here)
        return BaseModel(config.name, here, _folder_fingerprint(here))
    if not _may_be_on_the_hub(config.name):
        raise ModelError(f"base_model {config.name!r} is not a folder; check the path.")
    return _hub_model(config, report, weights)


def fetch_weights(base: BaseModel) -> Path:
    """The folder of a planned base model with its weights; of a hub model, the exact commit.

    Raises:
        ModelError: the weights cannot be fetched, are no safetensors, or its start is another now.
    """
    from rankwise.engine.models.start import merged  # which reads adapters, and they need this

    folder = base.folder
    if base.fingerprint.startswith("hub:"):
        config = BaseModelConfig(name=base.name, revision=folder.name)
        folder = _hub_model(config, lambda _: None, weights=True).folder
    return folder if base.start is None else merged(base, folder)


def trained_folder(name: str, report: Callable[[str], None] = lambda _: None) -> Path:
    """The folder of an adapter or a checkpoint: itself, or a repository of the hub, fetched.

    Args:
        name: a folder, or org/name.
        report: receives a line before a download.

    Raises:
        ModelError: it is neither, or the hub cannot give it.
    """
    here = folder_here(name)
    if here is not None:
        return here
    if "/" not in name or not _may_be_on_the_hub(name):
        raise ModelError(f"{name} is not a folder; check the path.")
    patterns = [*SMALL_FILES, "*.safetensors"]
    return _snapshot(name, None, patterns, f"{name} is not a folder here", report)


def folder_here(name: str) -> Path | None:
    """The folder on this machine that a name leads to, if it does."""
    try:
        path = Path(name).expanduser()
        return path if path.is_dir() else None
    except (OSError, RuntimeError):  # too long for a path; no such user
        return None


def _may_be_on_the_hub(name: str) -> bool:
    return not (Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1)


def _hub_model(config: BaseModelConfig, report: Callable[[str], None], weights: bool) -> BaseModel:
    patterns = [*SMALL_FILES, "*.safetensors"] if weights else SMALL_FILES
    names = ", ".join(EMBEDDED_MODELS)
    said = f"base_model {config.name!r} is neither an embedded model ({names}) nor a folder here"
    folder = _snapshot(config.name, config.revision, patterns, said, report)
    refuse_adapter(folder)
    if weights and not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"{config.name} has no safetensors; other formats can run code when they are loaded. "
            "Choose a revision that has them, or convert the model."
        )
    return BaseModel(config.name, folder, f"hub:{config.name}@{folder.name}")


def _snapshot(
    name: str,
    revision: str | None,
    patterns: Sequence[str],
    said: str,
    report: Callable[[str], None],
) -> Path:
    """Files of a hub repository, in the hub's cache; ``said`` begins an error."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    report(f"looking up {name} on the hub")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{said}, and the hub could not provide it: {str(error).splitlines()[0]}. Check the "
            "name and the revision, `hf auth login` for gated models, and the network "
            "(HF_HUB_OFFLINE)."
        ) from error


def _folder_fingerprint(folder: Path) -> str:
    """A digest of a model folder: small files whole, each weights file by its size and samples.

    The samples are 64 blocks of 64 KiB spread over every file: two fine-tunings of one model differ
    there, and fingerprinting 16 GB takes a moment instead of a minute.
    """
    digest = hashlib.sha256()
    weights = weights_files(folder)
    if not (folder / "config.json").is_file() or not weights:
        raise ModelError(
            f"{folder} is not a transformers folder with safetensors: it needs config.json and "
            "*.safetensors."
        )
    for path in folder.iterdir():
        if path.exists() and not (path.is_file() or path.is_dir()):  # reading it may not end
            raise ModelError(f"{path} is a pipe or a device. Take it out of the folder.")
    with unusable(f"{folder} cannot be used", _CHECK_CONFIG):
        refuse_large_files(folder)
    for name in _FINGERPRINTED_FILES:
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    for path in weights:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            for block in range(64):
                file.seek(max(size - _SAMPLE_BYTES, 0) * block // 63)  # from the start to the end
                digest.update(file.read(_SAMPLE_BYTES))
    return f"folder:{digest.hexdigest()}"


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder, with a pad token (its own, else end of text).

    Raises:
        ModelError: it cannot be loaded, or has no end token.
    """
    what = f"the tokenizer in {folder} cannot be loaded"
    with unusable(what, "Check tokenizer.json and tokenizer_config.json there."):
        refuse_large_files(folder)
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
    if not is_quantised_there:
        for path in files:
            refuse_other_dtypes(path, tensor_headers(path))
    with unusable(f"{folder} cannot be loaded", "Save it again."):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=not is_quantised_there,  # told by name
            **options,
        )
    model, loading = loaded
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
            "pip install 'rankwise[quantization]'."
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


def model_skeleton(folder: Path) -> nn.Module:
    """The model without its weights (on the meta device): shapes and names only."""
    config = _model_config(folder)
    with unusable(f"{folder} is not a causal language model", _CHECK_CONFIG), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _model_config(folder: Path) -> Any:
    what = f"{folder} has no usable model config"
    with unusable(what, _CHECK_CONFIG):
        refuse_large_numbers(read_json(folder / "config.json"))  # before transformers reads it
        config: Any = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        text = config.get_text_config()
    for name in _SIZES:
        size = getattr(text, name, None)
        if size is not None and not (type(size) is int and 1 <= size <= _SIZES[name]):
            raise ModelError(f"{what}: {name} is {size!r:.40}. {_CHECK_CONFIG}")
    return config


def refuse_other_architecture(
    folder: Path, base_config: Any, compared: Sequence[str] = ARCHITECTURE
) -> None:
    """Refuse a checkpoint whose config cannot be that of a fine-tuning of the base.

    Args:
        folder: of the checkpoint.
        base_config: the base model's, as transformers has it.
        compared: entries of both configs that have to be equal.

    Raises:
        ModelError: an entry differs, or the checkpoint's config cannot be read.
    """
    ours, theirs = base_config.get_text_config(), _model_config(folder).get_text_config()
    for name in compared:
        expected, other = getattr(ours, name, None), getattr(theirs, name, None)
        if expected != other:
            raise ModelError(
                f"{folder} has {name} {other} and the base model {expected}: it is no "
                "fine-tuning of this base. Name the base that it was trained from."
            )


def adaptable_shapes(model: nn.Module, *, beside_text: bool = False) -> dict[str, LinearShape]:
    """Every linear layer of the text model below the head: its full name and its size.

    A router is none that is a linear layer by class alone and returns more than a product, or whose
    weight is read past it: what an adapter adds to its output would be lost.

    Args:
        model: a causal language model, or its skeleton.
        beside_text: also the layers of a vision tower, which reads no rows of text, but which an
            adapter of somebody else may have.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    text = "" if beside_text else text_part(model)
    shapes: dict[str, LinearShape] = {}
    for name, module in model.named_modules():
        if module is head or not name.startswith(text):
            continue
        if (shape := linear_shape(module)) is not None and not _is_router(model, name):
            shapes[name] = shape
    return shapes


def text_part(model: nn.Module) -> str:
    """How the names of the text model's modules begin; "" where there is nothing beside it."""
    config: Any = getattr(model, "config", None)
    if config is None or config.get_text_config() is config:
        return ""
    decoder = getattr(model, "get_decoder", lambda: None)()
    names = [name for name, module in model.named_modules() if module is decoder]
    return f"{names[0]}." if names and names[0] else ""


def _is_router(model: nn.Module, name: str) -> bool:
    """Whether a model's own class made something else of a linear layer; FP8's is no model's."""
    kind = type(model.get_submodule(name))
    if kind is Conv1D:
        return False
    is_own = kind.__module__.startswith("transformers.models.")
    owner, _, own = name.rpartition(".")
    return (is_own and kind.forward is not nn.Linear.forward) or _reads_weight(
        type(model.get_submodule(owner)), own
    )


@functools.cache
def _reads_weight(kind: type[nn.Module], layer: str) -> bool:
    """Whether the code of a class has ``self.layer.weight``."""
    classes = kind.__mro__[: kind.__mro__.index(nn.Module)]
    functions = filter(inspect.isfunction, (each for cls in classes for each in vars(cls).values()))
    return any(
        (layer, "weight") in itertools.pairwise(step.argval for step in dis.get_instructions(each))
        for each in map(inspect.unwrap, functions)
    )


def not_linear(model: nn.Module) -> list[str]:
    """Modules of the text model with matrices that no adapter is put on: experts and routers."""
    shapes, text = adaptable_shapes(model), text_part(model)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return [
        name
        for name, module in model.named_modules()
        if name.startswith(text)
        and name not in shapes
        and module is not head
        and not isinstance(module, nn.Embedding)
        and any(weight.ndim > 1 for weight in module.parameters(recurse=False))
    ]


MODULE_KINDS = {
    "attention": re.compile(r"attn|attention"),
    "mlp": re.compile(r"mlp|feed_?forward|ffn|experts|fc\d"),
    "all-linear": re.compile(""),
}
"""Names for sets of layers, and a pattern that the path of each of their layers contains."""


def resolved_targets(
    shapes: Mapping[str, LinearShape], target_modules: Sequence[str]
) -> tuple[str, ...]:
    """Targets as PEFT takes them: ``attention``, ``mlp`` and ``all-linear`` become layer names.

    A layer belongs to a kind if its path matches the kind's pattern in ``MODULE_KINDS``. A target
    is the last part of the path, or the last two if layers outside the kind share the last one or
    it is a number in a list, which other modules share.
    """
    resolved: list[str] = []
    for target in target_modules:
        kind = MODULE_KINDS.get(target)
        if kind is None:
            resolved.append(target)
            continue
        inside = [name for name in shapes if kind.search(name)]
        outside = {name.rpartition(".")[2] for name in shapes.keys() - set(inside)}
        for name in inside:
            *_, parent, last = ["", *name.split(".")]
            resolved.append(f"{parent}.{last}" if last in outside or last.isdigit() else last)
    return tuple(dict.fromkeys(resolved))


def matching_modules(
    shapes: Mapping[str, LinearShape], target_modules: Sequence[str]
) -> dict[str, list[str]]:
    """The layers that each target names, by PEFT's rule: the whole name, or its end after a dot."""
    return {
        target: [name for name in shapes if name == target or name.endswith(f".{target}")]
        for target in target_modules
    }


def target_shapes(
    shapes: Mapping[str, LinearShape], target_modules: Sequence[str]
) -> dict[str, LinearShape]:
    """The layers that any of the targets names, each once, with its size."""
    matches = matching_modules(shapes, target_modules)
    return {name: shapes[name] for names in matches.values() for name in names}


def context_length(model_config: Any, tokenizer: Any) -> int:
    """The most tokens that the model reads at once, as lm-eval resolves it.

    LongRoPE rotates all texts of a batch by other angles as soon as one of them is longer than the
    model's original context. Scores of a text would then depend on the other texts, so such a
    model is limited to its original context.
    """
    from lm_eval.models.utils import resolve_max_length

    limit = int(resolve_max_length(model_config, tokenizer))
    rope = getattr(model_config.get_text_config(), "rope_parameters", None) or {}
    for section in (rope, *rope.values()):  # one section for all layers, or one for each kind
        if isinstance(section, Mapping) and section.get("rope_type") == "longrope":
            limit = min(limit, int(section["original_max_position_embeddings"]))
    if limit < 1:
        raise ModelError(f"the model reads at most {limit} tokens. {_CHECK_CONFIG}")
    return limit


@contextlib.contextmanager
def layers_replaced(base_model: nn.Module, layers: Mapping[str, nn.Module]) -> Generator[None]:
    """Within the block, a model has other layers under these names; afterwards the originals."""
    originals = {name: base_model.get_submodule(name) for name in layers}
    try:
        for name, layer in layers.items():
            base_model.set_submodule(name, layer)
        yield
    finally:
        for name, layer in originals.items():
            base_model.set_submodule(name, layer)
