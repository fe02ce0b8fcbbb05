"""The folder of a base model: embedded, local or fetched from a hub, and its fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rankwise.engine.models.embedded import EMBEDDED_MODELS, embedded_model_folder
from rankwise.engine.models.files import CHECK_CONFIG, refuse_adapter, unusable, weights_files
from rankwise.engine.models.limits import refuse_large_files
from rankwise.errors import ModelError
from rankwise.records.config.study import BaseModelConfig
from rankwise.records.files import merged_base_folder

SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
"""What a folder needs besides the weights: no pickles, no code."""

# of one sample of a weights file; changing this would change every folder's fingerprint
_SAMPLE_BYTES = 1 << 16

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
"""Endings of weights that are not read: some can run code."""

_FOLDER, _PLANNED = "folder:", "planned:"
"""Begin the fingerprints of a folder with its weights, and of one without any."""

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


class BaseModel(NamedTuple):
    """A base model on disk.

    Attributes:
        name: as in the study file.
        folder: a transformers folder.
        fingerprint: of weights and tokenizer; a local folder's weights are sampled for it.
        start: name of the adapter that is merged into the weights; see ``start.with_start``.
    """

    name: str
    folder: Path
    fingerprint: str
    start: str | None = None

    @property
    def has_weights(self) -> bool:
        """Whether its weights are in the folder: those of a hub may come later."""
        return not self.fingerprint.startswith(("hub:", _PLANNED))

    @property
    def recorded_name(self) -> str:
        """What an adapter that was trained on it names as its base."""
        return self.name if self.start is None else str(merged_base_folder(self.fingerprint))


def find_base_model(
    config: BaseModelConfig, report: Callable[[str], None] = lambda _: None, *, weights: bool = True
) -> BaseModel:
    """Turn a name into a folder: an embedded model, a local folder, or a hub repository.

    Args:
        config: name and, for a hub repository, revision.
        report: receives a line before a download.
        weights: False needs config and tokenizer only, which planning does; of a hub these are
            fetched, and a local folder may have no weights.

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
        found = BaseModel(config.name, here, _folder_fingerprint(here, weights))
        if found.fingerprint.startswith(_PLANNED):
            report(f"{here} has no weights: a study of it can be planned, and not be run")
        return found
    if not _may_be_on_the_hub(config.name):
        raise ModelError(f"base_model {config.name!r} is not a folder; check the path.")
    return _hub_model(config, report, weights)


def own_weights(base: BaseModel) -> Path:
    """The folder of a planned base with its own weights; of a hub model, the exact commit.

    Raises:
        ModelError: the weights cannot be fetched, are no safetensors, or are not there.
    """
    refuse_without_weights(base)
    if not base.fingerprint.startswith("hub:"):
        return base.folder
    config = BaseModelConfig(name=base.name, revision=base.folder.name)
    return _hub_model(config, lambda _: None, weights=True).folder


def refuse_without_weights(base: BaseModel) -> None:
    """Refuse a base that was planned with from its config and tokenizer alone.

    Raises:
        ModelError: it is one.
    """
    if base.fingerprint.startswith(_PLANNED):
        raise ModelError(
            f"{base.folder} has no *.safetensors: a study of it can be planned, and not be run. "
            "Put the weights there."
        )


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


def _folder_fingerprint(folder: Path, needs_weights: bool) -> str:
    """A digest of a model folder: small files whole, each weights file by its size and samples.

    The samples are 64 blocks of 64 KiB spread over every file: two fine-tunings of one model differ
    there, and fingerprinting 16 GB takes a moment instead of a minute.
    """
    digest = hashlib.sha256()
    weights = weights_files(folder)
    has_others = any(path.suffix in _PICKLES for path in folder.iterdir())
    is_enough = bool(weights) or not (needs_weights or has_others)
    if not (folder / "config.json").is_file() or not is_enough:
        raise ModelError(
            f"{folder} is not a transformers folder with safetensors: it needs config.json and "
            "*.safetensors."
        )
    for path in folder.iterdir():
        if path.exists() and not (path.is_file() or path.is_dir()):  # reading it may not end
            raise ModelError(f"{path} is a pipe or a device. Take it out of the folder.")
    with unusable(f"{folder} cannot be used", CHECK_CONFIG):
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
    return f"{_FOLDER if weights else _PLANNED}{digest.hexdigest()}"
