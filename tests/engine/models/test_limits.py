"""What a model's folder may ask for, before memory is taken for it."""

from __future__ import annotations

import base64
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors

from rankwise.engine.models.limits import growth, refuse_growing, refuse_large_numbers
from rankwise.engine.models.loading import load_tokenizer
from rankwise.errors import DataError, ModelError
from rankwise.tasks.training_rows import TextEncoder


def replace(pattern: str, content: str, kind: str = "Regex") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def test_texts_grow_no_more_than_is_said() -> None:
    """Against tokenizers itself, with replacements that feed each other."""
    draw = random.Random(0)

    def some(letters: int) -> str:
        return "".join(draw.choice("abc") for _ in range(letters))

    for _ in range(2_000):
        steps: list[dict[str, Any]] = []
        ours: list[Any] = []
        for _ in range(draw.randint(1, 5)):
            kind, content = draw.choice(["String", "Regex"]), some(draw.randint(0, 4))
            pattern = some(draw.randint(1, 2))
            if kind == "Regex":
                pattern = draw.choice([pattern, "[ab]", "a|", "(?=b)", ".", "a*", r"\p{L}", "b+"])
            steps.append(replace(pattern, content, kind))
            ours.append(
                normalizers.Replace(Regex(pattern) if kind == "Regex" else pattern, content)
            )
        text = some(12)
        written = normalizers.Sequence(ours).normalize_str(text)
        assert len(written) <= (len(text) + 1) * growth(steps) + 1e-9, (text, steps)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], 1),
        ([{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁", "String")], 2),  # Llama's
        ([replace(" {2,}", "▁")], 1),  # T5's
        ([replace(letter, 2 * letter, "String") for letter in "abcdefghij"], 2),
        ([replace("a", "bb", "String"), replace("b", "cc", "String")], 4),
        ([replace(".", 10 * "a")] * 7, 10**7),
        ([{"type": "NFKC"}, {"type": "Lowercase"}], 36),
        ([{"type": "unknown"}], 1),
    ],
)
def test_growth(steps: list[dict[str, Any]], expected: float) -> None:
    assert growth(steps) == expected


def charsmap(*texts: str) -> dict[str, Any]:
    index = (0).to_bytes(4, "little")
    content = index + b"\0".join(text.encode() for text in texts) + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}


def test_growth_of_a_table_of_characters() -> None:
    assert growth([charsmap("a", "bcé", "")]) == 3
    assert growth([charsmap("a" * 5000)]) == 5000


HOSTILE = {
    "normalizer": (
        "normalizer",
        normalizers.Sequence([normalizers.Replace(Regex("."), "a" * 10)] * 7),
        "its normalizer may make 4e\\+07 characters of one",
    ),
    "pre-tokenizer": (
        "pre_tokenizer",
        pre_tokenizers.Sequence([pre_tokenizers.ByteLevel()] * 12),
        "its normalizer may make",
    ),
    "decoder": (
        "decoder",
        decoders.Sequence([decoders.Replace("a", "aa")] * 20),
        "its decoder may make",
    ),
    "post-processor": (
        "post_processor",
        processors.TemplateProcessing(
            single=" ".join(["[A]"] * 200 + ["$A"]), special_tokens=[("[A]", 1)]
        ),
        "it adds 200 tokens to each text",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_tokenizer_that_makes_texts_long(
    name: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    part, value, problem = HOSTILE[name]
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    refuse_growing(load_tokenizer(folder))  # which is good
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    setattr(tokenizer, part, value)
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(ModelError, match=f"cannot be loaded: {problem}"):
        load_tokenizer(folder)


def test_a_text_that_the_tokenizer_gives_up_at(tiny_model_folder: Path) -> None:
    """tokenizers panics there, which is no Exception of Python's."""
    tokenizer = load_tokenizer(tiny_model_folder)
    slow = pre_tokenizers.Split(Regex("(?:.|.)*(?!.|$)"), "isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = slow
    encoder = TextEncoder(tokenizer)
    with pytest.raises(DataError, match="cannot read a text of 3,000 characters, 'aaa"):
        encoder.encode("a" * 3000)


def test_a_tokenizer_that_gives_up_at_every_text(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.pre_tokenizer = pre_tokenizers.FixedLength(7)
    text = tokenizer.to_str().replace('"length":7', '"length":0')
    path.write_text(text)
    with pytest.raises(ModelError, match="refused it: chunk size must be non-zero"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"text_config": {"head_dim": 10**9}}, "head_dim is 1000000000"),
        ({"layers": [{"intermediate_size": [8, 10**12]}]}, "intermediate_size is 1000000000000"),
        ({"n_layer": 5000}, "n_layer is 5000"),
        ({"n_positions": 10**9}, "n_positions is"),
        ({"num_experts": 30_000, "num_hidden_layers": 1000}, "30,000 experts in each of 1,000"),
        ({"moe_intermediate_size": 1e300}, "moe_intermediate_size is 1e\\+300"),
    ],
)
def test_numbers_that_no_model_has(config: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        refuse_large_numbers(config)


def test_the_usual_config_of_every_kind_of_model_is_accepted() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    accepted = 0
    for kind in CONFIG_MAPPING.keys():  # noqa: SIM118 (it is lazy)
        try:
            config = CONFIG_MAPPING[kind]().to_dict()
        except Exception:  # noqa: BLE001 (needs arguments, or a library)
            continue
        refuse_large_numbers(config)
        accepted += 1
    assert accepted > 100


@pytest.mark.parametrize(
    "content", [b"", b"abc", b"\xff\xff\xff\x7f" + b"a" * 60, b"\x09\x00\x00\x00" + b"a" * 8]
)
def test_a_map_that_says_that_it_is_longer_takes_no_memory(
    content: bytes, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """tokenizers ends the process where the memory that it asks for is not there."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    path = folder / "tokenizer.json"
    map_ = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}
    written = json.dumps(json.loads(path.read_text()) | {"normalizer": map_})
    for text in (written, written.replace("precompiled_", "precompiled\\u005f")):
        path.write_text(text)
        with pytest.raises(ModelError, match=r"precompiled_charsmap of tokenizer\.json is cut"):
            load_tokenizer(folder)
