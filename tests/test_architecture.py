"""What holds of the whole tree: no heavy imports where none belong, docstrings, sizes, names."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import rankwise
from tests.support.sources import ROOT, Source, package_sources

HEAVY = ("torch", "transformers", "peft", "lm_eval")
SLOW_TO_LOAD = ("pandas", "scipy.optimize", "scipy.stats")
LIGHT_MODULES = (
    "rankwise",
    "rankwise.api",
    "rankwise.cli.main",
    "rankwise.records.config.study",
    "rankwise.records.study",
    "rankwise.records.folder",
    "rankwise.records.provenance",
    "rankwise.study.conclusion",
    *(f"rankwise.study.stages.{path.stem}" for path in (ROOT / "study/stages").glob("[a-z]*.py")),
    "rankwise.study.reading",
    "rankwise.study.status",
    "rankwise.findings.stats.estimates",
    "rankwise.findings.recommendation",
    "rankwise.records.lm_eval_samples",
    "rankwise.integrations.sources",
    "rankwise.integrations.study_text",
    "rankwise.integrations.exports",
    "rankwise.integrations.lm_eval_files",
    "rankwise.cli.terminal",
    "rankwise.report.page",
    "rankwise.scores.reading",
    "rankwise.scores.study",
)


def loaded_by(code: str, packages: Sequence[str] = HEAVY) -> list[str]:
    """Which of the packages a fresh process has after this code."""
    code += f"\nimport json, sys\nprint(json.dumps([m for m in {packages} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_reading_recommending_and_reporting_reach_no_torch() -> None:
    assert loaded_by("import " + ", ".join(LIGHT_MODULES)) == []


def test_the_check_above_would_see_torch() -> None:
    assert "torch" in loaded_by("import rankwise.engine.models.loading")


def test_tables_for_the_terminal_load_no_charts_and_no_distributions() -> None:
    assert loaded_by("import rankwise.cli.terminal", SLOW_TO_LOAD) == []


def test_a_finished_study_is_read_and_reported_without_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT.parent)!r})
from tests.planted.results import planted_study
from rankwise import recommend, write_report
from rankwise.findings.study import study_findings
results = planted_study()
answer = recommend(results)
path = write_report(Path({str(tmp_path)!r}), results, answer, study_findings(results, answer))
assert path.stat().st_size > 10_000
"""
    assert loaded_by(code) == []


def test_every_public_name_of_the_package_resolves() -> None:
    for name in rankwise.__all__:
        assert getattr(rankwise, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rankwise.nothing  # noqa: B018


def _undocumented(tree: ast.Module) -> Iterator[str]:
    """Public modules, classes and functions without a docstring; methods may go without."""
    if not ast.get_docstring(tree):
        yield "module"
    for node in tree.body:
        is_named = isinstance(node, ast.ClassDef | ast.FunctionDef)
        if is_named and not node.name.startswith("_") and not ast.get_docstring(node):
            yield node.name


def test_source_files_are_documented_and_named_by_what_they_hold() -> None:
    sources = package_sources()
    lacking = {path: [*_undocumented(source.tree)] for path, source in sources.items()}
    assert {path: names for path, names in lacking.items() if names} == {}
    vague = {"utils", "common", "helpers"}
    assert not [p for p in sources if vague & set(p.relative_to(ROOT).with_suffix("").parts)]


def _class_names(trees: Iterable[ast.Module]) -> Counter[str]:
    """How often each class name stands, also nested; ``_Name`` is ``Name``."""
    classes = (each for tree in trees for each in ast.walk(tree) if isinstance(each, ast.ClassDef))
    return Counter(each.name.lstrip("_") for each in classes)


def test_no_class_name_means_two_things() -> None:
    names = _class_names(source.tree for source in package_sources().values())
    assert [name for name, count in names.items() if count > 1] == []


def test_a_class_name_that_stands_twice_is_seen() -> None:
    code = ("class Look:\n    class Shown: ...", "def f():\n    class _Look: ...")
    assert _class_names(map(ast.parse, code)) == {"Look": 2, "Shown": 1}


def test_a_package_file_holds_its_docstring_only() -> None:
    for path, source in package_sources().items():
        if path.name == "__init__.py" and path.parent != ROOT:
            (node,) = source.tree.body
            assert isinstance(node, ast.Expr), path


def _run_imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports that run, inside functions too; those under ``if TYPE_CHECKING`` do not."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from _run_imports(ast.Module(child.orelse, []))
        else:
            yield from _run_imports(child)


def _imported(tree: ast.Module, modules: Iterable[str]) -> set[str]:
    """Which of the modules a module imports."""
    names: set[str] = set()
    for node in _run_imports(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            assert node.module is not None
            assert node.level == 0, "a relative import"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = full & set(modules)
            names |= submodules if submodules == full else {node.module, *submodules}
    return names & set(modules)


def _import_circle(trees: Mapping[str, ast.Module]) -> list[str]:
    """Modules each of which is imported by the next, the first again at the end; or none."""
    try:
        TopologicalSorter({name: _imported(tree, trees) for name, tree in trees.items()}).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle
    return []


def test_no_files_import_each_other_in_a_circle() -> None:
    trees: dict[str, ast.Module] = {}
    for path, source in package_sources().items():
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        trees[".".join(parts).removesuffix(".__init__")] = source.tree
    assert _import_circle(trees) == []


IN_A_FUNCTION = "def f():\n    from p import a\n"
FOR_TYPES_ONLY = "if TYPE_CHECKING:\n    from p import a\n"


@pytest.mark.parametrize(
    ("last", "is_circle"),
    [
        ("import p.a", True),
        ("from p.a import f", True),
        (IN_A_FUNCTION, True),
        (FOR_TYPES_ONLY, False),
        (f"{FOR_TYPES_ONLY}else:\n    import p.a", True),
        ("from p import f", False),
    ],
)
def test_a_circle_of_imports_is_seen(last: str, *, is_circle: bool) -> None:
    planted = {"p": "", "p.a": "from p.b import f", "p.b": "from p import c", "p.c": last}
    circle = _import_circle({name: ast.parse(code) for name, code in planted.items()})
    assert set(circle) == ({"p.a", "p.b", "p.c"} if is_circle else set())


def test_one_module_names_fsspec() -> None:
    sources = package_sources().items()
    named = [path.relative_to(ROOT).as_posix() for path, each in sources if _names_fsspec(each)]
    assert named == ["tasks/code_guard.py"]  # it refuses code


def _names_fsspec(source: Source) -> bool:
    """Whether a module imports it, by a statement or by name."""
    for node in source.nodes:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module]
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names = (
                [ast.literal_eval(node.args[0])] if isinstance(node.args[0], ast.Constant) else []
            )
        if any(name.partition(".")[0] == "fsspec" for name in names):
            return True
    return False


def test_functions_are_short() -> None:
    long: list[str] = []
    for path, source in package_sources().items():
        for node in source.nodes:
            if isinstance(node, ast.FunctionDef):
                start = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0].lineno
                assert node.end_lineno is not None
                if node.end_lineno - start >= 60:
                    long.append(f"{path.name}:{node.name}")
    assert long == []


def test_views_compute_no_statistics() -> None:
    """A number has one home, in findings: the report imports no statistics."""
    forbidden = ("scipy", "rankwise.findings.stats")
    report = {p: source for p, source in package_sources().items() if ROOT / "report" in p.parents}
    assert report
    for path, source in report.items():
        for node in source.nodes:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            assert not [name for name in names if name.startswith(forbidden)], path.name


def test_only_the_command_line_exits_and_one_module_prints() -> None:
    """Names of others act on no terminal: all that is printed goes by `study.printer`."""
    exits, prints = set[str](), set[str]()
    for path, source in package_sources().items():
        place = path.relative_to(ROOT).as_posix()
        for node in source.nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                name = ast.unparse(node.func)
                if name in ("exit", "quit", "sys.exit", "os._exit"):
                    exits.add(path.parent.name)
                if name in ("print", "input") or re.search(
                    r"(^|\.)(Console|echo|secho|rprint)$|__?std(out|err)__|sys\.std\w+\.write", name
                ):
                    prints.add(place)
            if isinstance(node, ast.ImportFrom) and node.module in ("rich", "rich.console"):
                names = {alias.name for alias in node.names}
                prints |= (
                    {place} if names & {"print", "print_json", "Console", "get_console"} else set()
                )
    # a worker whose card has failed ends at once, whatever Python would still clean up on it
    assert exits <= {"cli", "executors"}
    assert prints == {"study/printer.py"}


TAKES_ANY_ERROR = (
    "engine/models/files.py",
    "engine/models/packed_kernels.py",
    "engine/training/loop.py",
    "records/files.py",
    "integrations/tracking.py",
    "study/executors/ray.py",
    "tasks/limited_checks.py",
    "tasks/task_files.py",
    "tasks/template_process.py",
    "tasks/training_rows.py",
)


def test_no_path_of_one_machine_and_no_bare_except() -> None:
    for path, source in package_sources().items():
        for node in source.nodes:
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, path
                # where any error of a library becomes ours: tokenizers and Ray raise plain ones,
                # a tracker's must not fail a study, users' code and schemas may raise all, and
                # a kernel that refuses a card raises whatever its compiler does
                if path.relative_to(ROOT).as_posix() not in TAKES_ANY_ERROR:
                    assert ast.unparse(node.type) not in ("Exception", "BaseException"), path
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not node.value.startswith(("/home/", "/root/", "/work/", "/tmp/")), path


def test_a_verdict_from_a_table_takes_no_torch_and_no_data_frames(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    rows = [
        f"{item},{model},{item % k == 0}"
        for item in range(40)
        for model, k in (("base", 3), ("r8", 2))
    ]
    path.write_text("\n".join(["id,model,acc", *rows]))
    code = f"""
import contextlib, io
from rankwise.cli.main import app
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    app(["verdict", {str(path)!r}, "--json"])
"""
    assert loaded_by(code, (*HEAVY, "pandas", "vl_convert", "datasets")) == []
