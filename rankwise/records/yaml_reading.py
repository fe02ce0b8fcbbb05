"""YAML from other people's hands: bounded before it is built, and every fault is one sentence.

Aliases make a file of a kilobyte stand for gigabytes ("billion laughs"), and the loader calls
itself once for each level. So size, depth and the number of values that the file stands for are
counted on the parser's events, which cost nothing of that.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import yaml

from rankwise.records.files import require_regular

MAX_BYTES = 10 * 2**20
"""Study and task files have kilobytes; data belong into data files."""

MAX_DEPTH = 50
"""Study files nest 6 levels, lm-eval's own task files 7; the loader calls itself once a level."""

MAX_VALUES = 100_000
"""The largest of lm-eval's own task files has 700; building this many takes a second."""

MAX_DIGITS = 1_000
"""The most digits of a number. Python writes none of more than 4,300 decimal digits, and
hexadecimal ones are longer then; 64 bits have 20."""
_MOST_SHOWN = 80
_NUMBER = re.compile(r"[-+]?[0-9][0-9a-fxo_:]*", re.IGNORECASE)

# libyaml's parser is ten times as fast and as strict; PyYAML has it in all its wheels.
SafeLoader: type[yaml.SafeLoader] = cast(Any, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
# As in YAML 1.2, but that YAML 1.1's 0b101 and 1_000 stay numbers. 1.1 reads 12:30:45 as 45045, and
# 010 as 8; it does not read 2e-4 as a number.
_WHOLE = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)$")
_REAL = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?$"
    r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"
    r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_FIRSTS = list("-+.0123456789")


class PlainLoader(SafeLoader):
    """YAML with the numbers of YAML 1.2, and in which a key given twice is an error."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (pyyaml's own attribute)  # pyright: ignore
        first: [(tag, form) for tag, form in forms if tag not in _NUMBERS]
        for first, forms in SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key_node, _ in node.value:
            key = repr(cast(Any, self.construct_object(key_node, deep=True)))
            if key in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key} is given twice", key_node.start_mark
                )
            keys.add(key)
        return super().construct_mapping(node, deep=deep)


class PlainDumper(yaml.SafeDumper):
    """Puts quotes around text that ``PlainLoader`` or another tool would read as a number."""


def _whole_number(loader: PlainLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    base = {"0b": 2, "0x": 16}.get(text.lstrip("-+")[:2], 10)
    return int(text, base)


PlainLoader.add_constructor(_NUMBERS[0], _whole_number)
for _kind in (PlainLoader, PlainDumper):
    for _tag, _form in zip(_NUMBERS, (_WHOLE, _REAL), strict=True):
        _kind.add_implicit_resolver(_tag, _form, _FIRSTS)
PlainLoader.add_constructor("tag:yaml.org,2002:merge", SafeLoader.construct_yaml_str)


class YamlError(ValueError):
    """Text that is not usable YAML: one sentence with the line, where it is known."""


def read_yaml_text(path: Path) -> str:
    """The text of a YAML file.

    Raises:
        YamlError: it cannot be read, is not UTF-8, or is larger than ``MAX_BYTES``.
    """
    try:
        require_regular(path)
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise YamlError(f"the file has more than {MAX_BYTES >> 20} MiB; keep data out of it")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise YamlError(f"the file cannot be read: {error}; save it as UTF-8") from error
    except (OSError, ValueError) as error:
        if isinstance(error, YamlError):
            raise
        raise YamlError(f"the file cannot be read: {error}; check the path") from error


def parse_yaml(text: str, loader: type[yaml.SafeLoader]) -> Any:
    """The value that YAML text stands for.

    Args:
        text: one YAML document.
        loader: a subclass of ``SafeLoader``, which builds no objects but those of YAML.

    Raises:
        YamlError: it is not YAML, nests too deep, stands for too many values, or has a value that
            cannot be built, such as a number of 5,000 digits.
    """
    try:
        _refuse_bombs(text)
        return yaml.load(text, Loader=loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        what = " ".join(str(error).split())
        if isinstance(error, yaml.MarkedYAMLError):  # on one line, without the excerpt
            what = " ".join(str(part) for part in (error.context, error.problem) if part)
            mark = error.problem_mark or error.context_mark
            if mark is not None:
                what = f"line {mark.line + 1}, column {mark.column + 1}: {what}"
        raise YamlError(f"not valid YAML: {what}; correct it") from error
    except YamlError:
        raise
    except (ValueError, OverflowError, RecursionError) as error:  # 2020-99-99, 5,000 digits
        reason = str(error).partition(";")[0]  # without Python's advice to its programmers
        raise YamlError(f"a value cannot be read: {reason}; correct it or quote it") from error


def dumped_yaml(content: Any, default_flow_style: bool | None = False) -> str:
    """YAML that ``parse_yaml`` reads back as it was; None writes the innermost lists on a line."""
    return yaml.dump(
        content,
        Dumper=PlainDumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=default_flow_style,
    )


def shown(value: Any, more: str = "...") -> str:
    """A value as it was read, cut to a part of a line; ``more`` stands for what was cut."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + more


def _refuse_bombs(text: str) -> None:
    """Refuse text that nests too deep, or that its aliases make too large."""
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in {anchor for anchor, _ in open_nodes}:
                raise YamlError(f"line {line}: *{event.anchor} contains itself; write it out")
            size = sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > MAX_DEPTH:
                raise YamlError(f"line {line}: nested more than {MAX_DEPTH} deep; write it flatter")
            continue
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = size
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
            is_plain = event.implicit[0] and len(event.value) > MAX_DIGITS
            if is_plain and _NUMBER.fullmatch(event.value):
                raise YamlError(
                    f"line {line}: a number of {len(event.value):,} digits; correct it or quote it"
                )
            if event.anchor is not None:
                sizes[event.anchor] = size
        else:
            continue
        anchor, before = open_nodes[-1]
        open_nodes[-1] = (anchor, before + size)
        if before + size > MAX_VALUES:
            raise YamlError(f"line {line}: more than {MAX_VALUES:,} values; shorten its lists")
