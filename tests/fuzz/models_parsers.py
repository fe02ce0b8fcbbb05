"""What reads patterns, chat templates, configs and tokenizers of models, and strategies for these.

Where a library could end the process, a copy of it reads, with a limit of memory of its own.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from rankwise.engine.models import adapter_config
from rankwise.engine.models.adapter_config import (
    CONFIG_FILE,
    layer_settings,
    read_adapter_config,
    refuse_patterns,
)
from rankwise.engine.models.loading import load_tokenizer
from rankwise.engine.models.structure import (
    adaptable_shapes,
    context_length,
    model_skeleton,
    resolved_targets,
)
from rankwise.errors import RankwiseError
from rankwise.records.study_file import load_contract
from rankwise.tasks import chat_templates
from rankwise.tasks.answer_checks import checker
from rankwise.tasks.training_rows import TextEncoder
from tests.fuzz.strategies import dumped_yaml, values
from tests.support.tiny_models import tiny
from tests.support.tiny_tasks import tiny_tokenizer

MORE_BYTES = 3 << 30
"""Memory that a copy of the process may take beside what it has: a bomb takes any."""

_HOSTILE_NUMBERS = (
    *(0, -1, 1, 2, 3, 2**17, 10**9, 2**31, 10**12, 2**63, 10**18, 10**400, 0.5, 1e9, 1e308, -1e9),
    *(float("nan"), float("inf"), True, None, "3", "x", [], [10**9], {}, [1] * 2000),
)


def in_a_copy(
    read: Callable[[Path, Any], object], prepare: Callable[[], object] = lambda: None
) -> Callable[[Path, Any], object]:
    """The reader in a copy of this process; what it raises, or that it is ended, is raised here.

    What ``prepare`` imports and makes, each copy has.
    """

    def copied(folder: Path, content: Any) -> None:
        prepare()
        fault = folder / "fault"
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _limited(read, folder, content)
                code = 0
            except RankwiseError:
                code = 0
            except BaseException:  # noqa: BLE001 (PanicException, too)
                fault.write_text(traceback.format_exc()[-5000:], errors="replace")
            finally:
                os._exit(code)
        try:
            _, status = os.waitpid(pid, 0)
        except BaseException:  # it took too long
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        if status:
            what = fault.read_text() if fault.exists() else f"ended by status {status}"
            raise AssertionError(what)

    return copied


def _limited(read: Callable[[Path, Any], object], folder: Path, content: Any) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(os.devnull, "w") as nowhere:  # where Rust says that it panics
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    read(folder, content)


# patterns

_ATOMS = st.sampled_from([
    *("a", "b", ".", r"\d", r"\w", r"\s", r"\b", "^", "$", "x{i}", "{e}", "{e<=9}", "[[:alpha:]]"),
    *("[a-z]", r"[^\x00-\x7f]", r"[\x00-\U0010ffff]", r"\1", "(?P=n)", "(?R)", r"\p{L}", "(?i)"),
    "[" + "".join(map(chr, range(0x4E00, 0x4F00))) + "]",
])  # fmt: skip
_REPEATS = st.sampled_from([
    *("*", "+", "?", "*?", "+?", "*+", "++", "{2}", "{0,9}", "{100}", "{1000}", "{10000}"),
    *("{65535}", "{4294967294}", "{99999999999}", "{,}", "{1,", "{"),
])  # fmt: skip
_GROUPS = st.sampled_from(
    ["(?:", "(", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?P<n>", "(?i:", "(?#"]
)
patterns = st.recursive(
    _ATOMS,
    lambda inner: st.one_of(
        st.builds(lambda group, body, times: f"{group}{body}){times}", _GROUPS, inner, _REPEATS),
        st.builds("{}|{}".format, inner, inner),
        st.lists(inner, max_size=4).map("".join),
    ),
    max_leaves=8,
)
_ANSWERS = ("", "a" * 60 + "b", "ab" * 5_000, "zzzx", "9" * 3_000, "\u4e00 é\n" * 100)


def read_pattern(folder: Path, content: tuple[str, str]) -> object:
    """A contract whose clause is judged by a pattern, and an answer."""
    text, answer = content
    path = folder / "contract.yaml"
    (folder / "rows.jsonl").write_text("{}\n")
    clause = {"data": "rows.jsonl", "judged_by": {"regex": {"must": text}}}
    path.write_text(dumped_yaml({"clause": clause}))
    (check,) = load_contract(path)["clause"].judged_by
    return checker(check, {}, "rows.jsonl")(answer, {})


# chat templates

_NUMBERS = st.sampled_from(["0", "1", "-1", "99", "99999", "10**9", "10**12", "10**(10**8)", "1.5"])
_FILTERS = st.sampled_from([
    *("center(N)", "indent(N)", "replace('', 'ab')", "join('x' * N)", "wordwrap(N)", "tojson(N)"),
    *("batch(N)", "slice(N)", "list", "string", "format(N)", "urlize", "pprint", "xmlattr"),
    *("truncate(N)", "round(N)", "filesizeformat", "map('upper')", "sort", "unique", "nope"),
])  # fmt: skip
_VALUES = st.sampled_from([
    *("messages", "messages[0].content", "'ab' * N", "range(N)", "N", "nothing", "nothing.at"),
    *("bos_token", "lipsum(n=N)", "cycler.__init__.__globals__", "'%Nd' % 1", "[0] * N", "1/0"),
    *("dict(a=N)", "namespace(a=N)", "raise_exception('x' * N)", "strftime_now('%Y' * N)"),
    "'{:>N}'.format(1)",
])  # fmt: skip


def _numbered(text: str, number: str) -> str:
    return text.replace("N", number)


_EXPRESSIONS = st.builds(_numbered, _VALUES, _NUMBERS)
_FILTERED = st.builds(
    lambda value, filters: "|".join([f"({value})", *filters]),
    _EXPRESSIONS,
    st.lists(st.builds(_numbered, _FILTERS, _NUMBERS), max_size=3),
)
templates = st.recursive(
    st.one_of(
        _FILTERED.map(lambda value: f"{{{{ {value} }}}}"),
        st.sampled_from(["{{ messages[-1].content }}", "{% for", "{{", "x", "{% break %}", "{#"]),
    ),
    lambda inner: st.one_of(
        st.builds("{{% for i in {} %}}{}{{% endfor %}}".format, _EXPRESSIONS, inner),
        st.builds("{{% if {} %}}{}{{% else %}}{}{{% endif %}}".format, _EXPRESSIONS, inner, inner),
        st.builds("{{% macro m() %}}{}{{{{ m() }}}}{{% endmacro %}}{{{{ m() }}}}".format, inner),
        st.builds(
            "{{% set n = namespace(a='ab') %}}{{% for i in range(60) %}}"
            "{{% set n.a = n.a ~ n.a %}}{}{{% endfor %}}".format,
            inner,
        ),
        st.builds("{{% generation %}}{}{{% endgeneration %}}".format, inner),
        st.lists(inner, max_size=3).map("".join),
    ),
    max_leaves=6,
)


@cache
def _process() -> chat_templates.TemplateProcess:
    return chat_templates.TemplateProcess(seconds=0.5)


def read_template(_: Path, text: str) -> object:
    """What a study asks of its base's chat template."""
    tokenizer = _tokenizer()
    tokenizer.chat_template = text
    with mock.patch.object(chat_templates, "_process", _process()):
        fault = chat_templates.chat_template_fault(tokenizer)
        return fault, chat_templates.end_of_turn(tokenizer, chat_template=True)


# configs of models

FAMILIES = ("Llama", "GPT2", "Gemma4", "GptOss", "Phi3")


@cache
def _config(family: str) -> dict[str, Any]:
    return json.loads(json.dumps(tiny(family).config.to_dict(), default=str))


@st.composite
def model_configs(draw: st.DrawFn) -> dict[str, Any]:
    """A good config in which one entry or a few are numbers beyond all use, or anything."""
    config = dict(_config(draw(st.sampled_from(FAMILIES))))
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        names = [name for name, value in config.items() if isinstance(value, int | float)]
        name = draw(st.sampled_from(names) | st.sampled_from(sorted(config)))
        config[name] = draw(st.sampled_from(_HOSTILE_NUMBERS) | values)
    if draw(st.booleans()):
        inner = st.sampled_from(_HOSTILE_NUMBERS)
        names = st.sampled_from(["rope_type", "factor", "rope_theta", "partial_rotary_factor"])
        config["rope_parameters"] = draw(st.dictionaries(names, inner, max_size=3))
    return config


@cache
def _tokenizer() -> Any:
    return tiny_tokenizer()


@cache
def _imported() -> None:
    """What a plan imports for configs, of each family."""
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            read_config(Path(folder), _config(family))


def read_config(folder: Path, config: dict[str, Any]) -> object:
    """What a plan does with a base's config."""
    (folder / "config.json").write_text(json.dumps(config))
    skeleton: Any = model_skeleton(folder)
    shapes = adaptable_shapes(skeleton)
    length = context_length(skeleton.config, _tokenizer())
    assert length >= 1
    return resolved_targets(shapes, ("all-linear", "attention")), length


# tokenizers

_TEXTS = st.sampled_from(["", "a", "▁", " ", "ab" * 50, "x" * 100_000, "\0", "é"])
_EXPRESSIONS_OF_ONIGURUMA = st.sampled_from([
    *("", ".", "a|", "(?=b)", r"\p{L}+", "(a|a)*b", "(?:.|.)*(?!.|$)", r"(?<x>a\g<x>?)b"),
    *("a{1000}", "(", "[", r"\s+(?!\S)", "(?:(?:a{1000}){1000}){1000}", "[[:alpha:]&&[^a]]"),
])  # fmt: skip
_PATTERNS = st.one_of(
    _TEXTS.map(lambda text: {"String": text}),
    _EXPRESSIONS_OF_ONIGURUMA.map(lambda text: {"Regex": text}),
)
_REPLACE = st.builds(
    lambda pattern, text: {"type": "Replace", "pattern": pattern, "content": text},
    _PATTERNS,
    _TEXTS,
)
_KINDS = st.sampled_from([
    *("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel", "Fuse", "?"),
    *("BertPreTokenizer", "Whitespace", "UnicodeScripts", "ByteFallback", "WhitespaceSplit"),
]).map(lambda kind: {"type": kind})  # fmt: skip
_STEPS = st.one_of(
    _REPLACE,
    _KINDS,
    _TEXTS.map(lambda text: {"type": "Prepend", "prepend": text}),
    _TEXTS.map(lambda text: {"type": "Precompiled", "precompiled_charsmap": text}),
    st.integers(-1, 3).map(lambda length: {"type": "FixedLength", "length": length}),
    st.builds(
        lambda pattern, how, turned: {
            "type": "Split",
            "pattern": pattern,
            "behavior": how,
            "invert": turned,
        },
        _PATTERNS,
        st.sampled_from(["Isolated", "Removed", "MergedWithNext", "Contiguous", "?"]),
        st.booleans(),
    ),
)
_BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def _sequence(name: str, steps: list[Any]) -> dict[str, Any]:
    return {"type": "Sequence", name: steps}


_MORE_STEPS = st.lists(_STEPS | st.just(_BYTES), max_size=4).flatmap(
    lambda steps: st.sampled_from([1, 1, 1, 12, 500]).map(lambda times: steps * times)
)
tokenizers = st.dictionaries(
    st.sampled_from(["normalizer", "pre_tokenizer", "decoder", "post_processor"]),
    st.one_of(
        _STEPS,
        st.builds(
            _sequence, st.sampled_from(["normalizers", "pretokenizers", "decoders"]), _MORE_STEPS
        ),
        values,
    ),
    min_size=1,
    max_size=2,
)


@cache
def _model_folder() -> Path:
    folder = Path(_kept().name)
    tiny_tokenizer().save_pretrained(folder)
    load_tokenizer(folder)  # which imports for seconds
    return folder


@cache
def _kept() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def read_tokenizer(folder: Path, changes: dict[str, Any]) -> object:
    """What a plan does with a base's tokenizer."""
    for path in _model_folder().iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    tokenizer = load_tokenizer(folder)
    encoder = TextEncoder(tokenizer)
    texts = ("a b  é\n", "ab" * 2_000, "a" * 2_000, "x")
    return [tokenizer.decode(encoder.split(text, " yes").continuation) for text in texts]


# adapters

_ADAPTER = {
    **{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]},
    "base_model_name_or_path": "tiny",
}
_LAYERS = [f"model.layers.{n}.self_attn.{name}_proj" for n in range(40) for name in "qkvo"]
_PATTERN_TABLES = st.dictionaries(
    patterns | st.sampled_from(["q_proj", ".*q_proj", r"layers\.\d+\.self_attn\.(q|k)_proj"]),
    st.sampled_from([1, 2, 4, 1e38, 10**9, 0, -1, None]) | st.integers(1, 64),
    max_size=3,
)
adapters = st.dictionaries(
    st.sampled_from(["rank_pattern", "alpha_pattern"]), _PATTERN_TABLES, min_size=1
)


def read_adapter(folder: Path, entries: dict[str, Any]) -> object:
    """Ranks and scalings of each layer; for an honest pattern those of PEFT."""
    from peft.utils.other import get_pattern_key

    (folder / CONFIG_FILE).write_text(json.dumps(_ADAPTER | entries))
    with mock.patch.object(adapter_config, "MOST_SECONDS", 0.3):
        settings = layer_settings(read_adapter_config(folder), _LAYERS, folder)
    table = entries.get("rank_pattern", {})
    if all(re.fullmatch(r"[\w.*\\|()+]{1,45}", key) and "(?" not in key for key in table):
        for layer, setting in list(settings.items())[:4]:
            assert setting.rank == table.get(get_pattern_key(list(table), layer), 2)
    refuse_patterns(folder)
    return settings


PARSERS: dict[str, tuple[Callable[[Path, Any], object], st.SearchStrategy[Any], int]] = {
    "pattern": (in_a_copy(read_pattern), st.tuples(patterns, st.sampled_from(_ANSWERS)), 100),
    "chat template": (read_template, templates, 60),
    "base's config": (in_a_copy(read_config, _imported), model_configs(), 80),
    "tokenizer.json": (in_a_copy(read_tokenizer, _model_folder), tokenizers, 60),
    "adapter's patterns": (in_a_copy(read_adapter), adapters, 80),
}
