"""What a model's folder may ask for: sizes of its small files, of its layers, of texts as tokens.

Each is far beyond the models of today, and is looked at before memory is taken: where that runs
out, tokenizers ends the process, and torch is ended by the system.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rankwise.records.patterns import Pattern

_MIB = 1 << 20

_MAX_BYTES = {
    "tokenizer.json": 128 * _MIB,  # 33 MB are the most, for 262,144 tokens
    "vocab.json": 128 * _MIB,
    ".txt": 128 * _MIB,
    ".model": 128 * _MIB,
    ".json": 16 * _MIB,
    ".jinja": 4 * _MIB,  # 0.02 MB are usual
}
"""The most bytes of a file, by its name or by its ending."""

_TEMPLATES_FOLDER = "additional_chat_templates"

# What an entry of a config may be at most, by its name; the first that fits counts. Modules are
# made for each layer and expert, before any of their weights is looked at.
_MAX_NUMBERS = (
    (re.compile(r"vocab_size$"), 1 << 23),
    (re.compile(r"layers?$"), 1 << 10),
    (re.compile(r"heads?$"), 1 << 12),
    (re.compile(r"experts$"), 1 << 15),
    (re.compile(r"head_dim$"), 1 << 14),
    (re.compile(r"(position_embeddings|n_positions|n_ctx|seq_len|seq_length)$"), 1 << 24),
    (re.compile(r"(rotary_factor|rotary_pct)$"), 16),
    (re.compile(r"(size|dim|rank|width|embd|inner|d_model|d_ff)$"), 1 << 22),
)
_MAX_EXPERTS_OF_ALL_LAYERS = 1 << 20  # Doge has 524,288, all others at most 50,000

MAX_GROWTH = 1_000
"""Characters that a tokenizer may make of one. XLNet's might make 650 of a ligature that none has:
each of three steps makes 18 at most."""

_UNICODE_FORM = 18  # characters that NFKC and NFKD make of U+FDFA
_GROWTH = {
    **dict.fromkeys(("NFC", "NFD", "NFKC", "NFKD", "BertNormalizer"), _UNICODE_FORM),
    "ByteLevel": 4,  # one for each byte
    "Lowercase": 2,
    "Metaspace": 2,
}
_PROPERTY = re.compile(r"\\[pP]\{\^?\w+\}")  # such as \p{L}, which re does not know
_STEPS = ("normalizers", "pretokenizers", "decoders", "processors")
_MOST_ADDED_TOKENS = 100  # to each text; 3 are usual


def refuse_large_files(folder: Path) -> None:
    """Raises ValueError for a file of config, tokenizer or template that is larger than any is."""
    for path in (*folder.iterdir(), *(folder / _TEMPLATES_FOLDER).glob("*")):
        most = _MAX_BYTES.get(path.name) or _MAX_BYTES.get(path.suffix)
        if most is None or path.name.endswith(".index.json") or not path.is_file():
            continue
        if path.stat().st_size > most:
            raise ValueError(f"{path.name} has more than {most >> 20} MiB")


def refuse_false_charsmaps(folder: Path) -> None:
    """Raises ValueError for a normalizer's map whose first four bytes say that it is longer.

    The tokenizers package takes as much memory as they say, and the process ends where there is
    less.
    """
    path = folder / "tokenizer.json"

    def look(pairs: list[tuple[str, Any]]) -> None:
        """Every value of the key, also where a key stands twice or is written with escapes."""
        for key, value in pairs:
            if key == "precompiled_charsmap" and isinstance(value, str):
                content = base64.b64decode(value)
                if len(content) < 4 or int.from_bytes(content[:4], "little") > len(content) - 4:
                    raise ValueError(f"the precompiled_charsmap of {path.name} is cut")

    if path.is_file():
        json.loads(path.read_bytes(), object_pairs_hook=look)


def refuse_large_numbers(config: Mapping[str, Any]) -> None:
    """Raises ValueError for a size in a config, or in a section of it, that no model has."""
    layers = experts = 1
    for name, number in _numbers(config):
        most = next((most for pattern, most in _MAX_NUMBERS if pattern.search(name)), None)
        if most is not None and number > most:
            raise ValueError(f"{name} is {number!r:.40}, and at most {most:,} is believed")
        if name.endswith(("layers", "layer")):
            layers = max(layers, number)
        if name.endswith("experts"):
            experts = max(experts, number)
    if layers * experts > _MAX_EXPERTS_OF_ALL_LAYERS:
        raise ValueError(f"{experts:,} experts in each of {layers:,} layers are more than any has")


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Each number in a config, and the name that it has, or that its list has."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def refuse_growing(tokenizer: Any) -> None:
    """Raises ValueError for a tokenizer that makes texts much longer, read or written."""
    parts: Any = getattr(tokenizer, "backend_tokenizer", None)  # of Rust's; others are no files
    if parts is None:
        return
    reads = growth(_steps(parts.normalizer)) * growth(_steps(parts.pre_tokenizer))
    for what, times in (("normalizer", reads), ("decoder", growth(_steps(parts.decoder)))):
        if times > MAX_GROWTH:
            raise ValueError(
                f"its {what} may make {times:.3g} characters of one, more than {MAX_GROWTH:,}"
            )
    added = sum(map(_num_added, _steps(parts.post_processor)))
    if added > _MOST_ADDED_TOKENS:
        raise ValueError(f"it adds {added:,} tokens to each text")


def _steps(part: Any) -> list[dict[str, Any]]:
    """A part of a tokenizer as tokenizer.json has it, sequences written out."""
    return [] if part is None else list(_flat(json.loads(part.__getstate__())))


def _flat(step: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    inner = next((step[name] for name in _STEPS if name in step), None)
    if inner is None:
        yield dict(step)
    else:
        for each in inner:
            yield from _flat(each)


def growth(steps: list[dict[str, Any]]) -> float:
    """The most characters that steps make of one, from what the last makes to the first.

    What a text is replaced by is shared among its characters; a regular expression may match any.
    """
    usual, named = 1.0, dict[str, float]()  # of any character, and of those that steps name
    for step in reversed(steps):
        kind = step.get("type")
        if kind != "Replace":  # may make any character of any
            usual, named = max([usual, *named.values()]) * _growth_of(kind, step), {}
            continue
        made = sum(named.get(character, usual) for character in str(step["content"]))
        text, expression = (step["pattern"].get(each) for each in ("String", "Regex"))
        for character in text or "":
            named[character] = max(named.get(character, usual), made / len(text))
        if expression is not None:
            # of an empty match, the content comes beside the character
            stays = _may_match_nothing(expression)
            after = [each + made if stays else max(each, made) for each in (usual, *named.values())]
            usual, named = after[0], dict(zip(named, after[1:], strict=True))
    return max([usual, *named.values()])


def _may_match_nothing(expression: str) -> bool:
    """Whether it matches an empty text somewhere; True where that is not known."""
    try:
        return Pattern(_PROPERTY.sub(".", expression)).least_width == 0
    except ValueError:
        return True


def _growth_of(kind: Any, step: Mapping[str, Any]) -> float:
    if kind == "Prepend":
        return 1.0 + len(str(step["prepend"]))
    if kind == "Precompiled":  # a table of texts that end with a zero, behind its index
        content = base64.b64decode(step["precompiled_charsmap"])
        texts = content[4 + int.from_bytes(content[:4], "little") :]
        return float(max(len(text.decode(errors="replace")) for text in texts.split(b"\0")))
    return float(_GROWTH.get(kind, 1))


def _num_added(step: Mapping[str, Any]) -> int:
    """Tokens that a step adds to each text."""
    ids = {name: len(token["ids"]) for name, token in step.get("special_tokens", {}).items()}
    pieces = [piece.get("SpecialToken") for piece in step.get("single", ())]
    return sum(ids.get(piece["id"], 1) for piece in pieces if piece is not None)
