"""Every file of a finished study in turn is deleted, changed or swapped, and then verified."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from rankwise.engine.models import own_texts
from rankwise.records.folder import StudyFolder
from rankwise.study.damage import find_damage
from rankwise.study.stages.graph import KINDS, stages
from rankwise.study.stages.stage import OneRecord, Stage
from tests.support.command_line import rankwise, words
from tests.support.records import content_of
from tests.support.sentences import Sentences
from tests.support.small_studies import SMALL, Study, write_study
from tests.support.studies import run
from tests.support.study_contents import comparable

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

SETTINGS = """
train: {task: colours, epochs: 1, learning_rate: {lora: 1e-2, full: 1e-3}, precision: float32}
methods:
  lora: {ranks: [2, 4, 8], target_modules: [q_proj, k_proj, v_proj, o_proj]}
  full: {weights: float32}
  variants: {names: [rslora]}
mitigations: [{kl: {share: 0.4}}]
evaluation: {retention: [hues], num_train_items: 0, trained_format: false, limit: 12}
analysis: {divergence: true, null_draws: 0}
deploy: [merged-bf16, merged-fp16]
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> StudyFolder:
    """A study with every kind of stage, and with what `heads` and `repair` write into it."""
    root = tmp_path_factory.mktemp("verified")
    file = write_study(root, tiny_model_folder, SETTINGS)
    folder = StudyFolder(root / "study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_texts, "NUM_TEXTS", 5)
        run(file, folder.root)
    assert rankwise("verdict", folder.root).exit_code == 0
    name = folder.read_study().runs[1].name
    for verb in (
        ("heads", folder.root, "--run", name, "--tasks", "hues,colours"),
        ("repair", folder.root, "--run", name, "--max-loss", 100),
    ):
        assert rankwise(*verb).exit_code == 0
    return folder


def test_the_study_has_every_kind_of_stage(finished: StudyFolder, sentence: Sentences) -> None:
    graph = stages(finished.read_study())
    assert {type(stage) for stage in graph} == set(KINDS) == set(_kinds(Stage)) - {OneRecord}
    done = rankwise("verify", finished.root)
    assert done.exit_code == 0
    sentence(done.stdout)


def _kinds(kind: type[Stage]) -> Iterator[type[Stage]]:
    for each in kind.__subclasses__():
        yield each
        yield from _kinds(each)


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_digit(path: Path) -> None:
    """Of a record: the middle one of its digits, before the checksum."""
    text = path.read_text()
    end = text.index('"checksum"')
    places = [place for place, letter in enumerate(text[:end]) if letter.isdigit()]
    place = places[len(places) // 2]
    other = int(text[place]) % 9 + 1  # never a zero, which may not lead a number
    path.write_text(f"{text[:place]}{other}{text[place + 1 :]}")


def strip_checksum(path: Path) -> None:
    path.write_text(json.dumps(content_of(path), indent=2))


def change_digit_and_strip(path: Path) -> None:
    change_digit(path)
    strip_checksum(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "a byte": flip_byte,
    "a digit": change_digit,
    "a digit, and no checksum": change_digit_and_strip,
    "no checksum": strip_checksum,
}
OF_RECORDS = {"a digit", "a digit, and no checksum", "no checksum"}


# What no plan expects: without these, a study is one that never asked for them.
BEYOND_THE_PLAN = re.compile(r"own_texts\.json|/heads/(effects|repair)|/repair/")


def files_of(folder: StudyFolder) -> list[Path]:
    """All that a study stands on; what `.lock` and such are for is not a part of it."""
    paths = (path for path in folder.root.rglob("*") if path.is_file())
    return sorted(path for path in paths if not path.name.startswith("."))


def is_believed(folder: StudyFolder) -> bool:
    done = rankwise("verify", folder.root)
    assert done.exit_code == ("damaged: " in done.stdout or "left: " in done.stdout), done.output
    return done.exit_code == 0


def changed(folder: StudyFolder, change: str) -> Iterator[tuple[str, bool]]:
    """Make a change to each file in turn. Yields the file, and whether it was believed."""
    for path in files_of(folder):
        content = path.read_bytes()
        if not content or (change in OF_RECORDS and b'"checksum"' not in content):
            continue
        if path == folder.study_file and change == "deleted":
            continue  # there is no study without it, which every verb says
        CHANGES[change](path)
        yield str(path.relative_to(folder.root)), is_believed(folder)
        path.write_bytes(content)


def twins(folder: StudyFolder) -> Iterator[tuple[Path, Path]]:
    """Each file with others of its kind: that of the next model which has it, and its neighbour."""
    files = files_of(folder)
    for index, one in enumerate(files):
        later = [other for other in files[index + 1 :] if other.suffixes == one.suffixes]
        inner = one.relative_to(folder.root).parts[2 if "runs" in one.parts else 1 :]
        of_next = [other for other in later if other.parts[-len(inner) :] == inner]
        beside = [other for other in later if other.parent == one.parent != folder.root]
        for other in (*of_next[:1], *beside[:1]):
            if one.read_bytes() != other.read_bytes():
                yield one, other


def exchange(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_change_of_each_file_is_noticed_by(finished: StudyFolder, change: str) -> None:
    results = list(changed(finished, change))
    believed = [path for path, is_believed in results if is_believed]
    print(f"{change}: {len(believed)} of {len(results)} believed: {believed}")
    assert len(results) > 60
    if change == "deleted":
        believed = [path for path in believed if not BEYOND_THE_PLAN.search(path)]
    assert believed == []


def test_no_two_files_can_be_swapped_unnoticed(finished: StudyFolder) -> None:
    """Each is whole, has its checksum, and is another model's or another task's."""
    pairs, believed = list(twins(finished)), list[str]()
    for pair in pairs:
        exchange(*pair)
        if is_believed(finished):
            believed.append(" and ".join(str(path.relative_to(finished.root)) for path in pair))
        exchange(*pair)
    print(f"swapped: {len(believed)} of {len(pairs)} believed: {believed}")
    assert len(pairs) > 100
    assert [pair for pair in believed if not BEYOND_THE_PLAN.search(pair)] == []


# --- what is said of it, and what becomes of it


def run_file(study: Study, number: int, name: str) -> Path:
    return study.folder.model_folder(study.runs[number].name) / name


class Case(NamedTuple):
    """Damage of a small study: what is done, what is said of it, and the stages that follow."""

    spoil: Callable[[Study], object]
    says: str
    stages: set[str]


SCORED = {"colours", "colours@train", "colours@end", "sums"}
CASES = {
    "a scoring": Case(
        lambda study: run_file(study, 0, "eval/colours.json").unlink(),
        "left: colours of colours-lora-r002",
        {"colours"},
    ),
    "a scoring of the base": Case(
        lambda study: (study.folder.root / "base/eval/sums.json").unlink(),
        "left: sums of base",
        {"sums"},
    ),
    "weights' analysis": Case(
        lambda study: run_file(study, 1, "spectra.json").unlink(), "left: spectra of", {"spectra"}
    ),
    "divergence from the base": Case(
        lambda study: run_file(study, 1, "gauges.json").unlink(), "left: gauges of", {"gauges"}
    ),
    "a run": Case(
        lambda study: shutil.rmtree(study.folder.model_folder(study.runs[0].name)),
        "left: training of colours-lora-r002",
        {"training", *SCORED, "gauges", "heads", "spectra"},
    ),
    "two runs' heads": Case(
        lambda study: exchange(run_file(study, 0, "heads.json"), run_file(study, 1, "heads.json")),
        "heads.json is of colours-lora-r00",
        {"heads"},
    ),
    "two runs": Case(
        lambda study: exchange(run_file(study, 0, "run.json"), run_file(study, 1, "run.json")),
        "run.json is of colours-lora-r00",
        {"training", *SCORED, "gauges", "heads", "spectra"},
    ),
    "a digit without its checksum": Case(
        lambda study: change_digit_and_strip(run_file(study, 0, "eval/sums.json")),
        "does not end in its checksum",
        {"sums"},
    ),
    "the looks": Case(
        lambda study: study.folder.looks_file.unlink(), "left: looks.json of the study", set()
    ),
    "the verdict": Case(
        lambda study: study.folder.recommendation_file.unlink(), "left: recommendation.json", set()
    ),
    "the findings": Case(
        lambda study: study.folder.findings_file.unlink(), "left: findings.json", set()
    ),
}


@pytest.mark.parametrize("name", ["recommendation.json", "findings.json"])
def test_an_older_copy_of_the_verdict_is_noticed(
    study: Study, name: str, sentence: Sentences
) -> None:
    """It is whole, and its checksum is right; other programs read it."""
    older = (study.folder.root / name).read_bytes()
    done = rankwise("run", study.file, *SMALL, "seeds=[0,1]", "--study-dir", study.folder.root)
    assert done.exit_code == 0, done.stderr
    newer = (study.folder.root / name).read_bytes()
    assert rankwise("verify", study.folder.root).exit_code == 0
    (study.folder.root / name).write_bytes(older)
    done = rankwise("verify", study.folder.root)
    assert done.exit_code == 1
    sentence(done.stdout, names=(f"left: {name}",))
    assert f"rankwise run {study.folder.root}" in words(done.stderr)
    assert rankwise("run", study.folder.root, "--quiet").exit_code == 0
    assert (study.folder.root / name).read_bytes() == newer
    assert rankwise("verify", study.folder.root).exit_code == 0


@pytest.mark.parametrize("case", CASES)
def test_damage_is_said_and_made_up_for(study: Study, case: str) -> None:
    spoil, says, due = CASES[case]
    root, before = study.folder.root, comparable(study.folder.root)
    spoil(study)
    done = rankwise("verify", root)
    assert done.exit_code == 1
    assert says in words(done.stdout)
    answer = json.loads(rankwise("verify", root, "--json").stdout)
    assert len(answer["damages"]) == done.stdout.count("damaged: ")
    assert [f"left: {each}" for each in answer["left"]] == re.findall("left: .*", done.stdout)
    _, recorder = study.again()
    assert {stage for _, stage in recorder.stages} == due
    assert comparable(root) == before
    assert rankwise("verify", root).exit_code == 0


def test_losses_that_were_edited_are_set_aside_and_the_weights_stay(
    study: Study, sentence: Sentences
) -> None:
    path, name = run_file(study, 0, "metrics.jsonl"), study.runs[0].name
    assert len(study.folder.read_losses(name)) > 1
    path.write_text(path.read_text().replace('"loss_nats": ', '"loss_nats": 1', 1))
    (found,) = find_damage(study.folder)
    sizes = (f"{path.stat().st_size:,} bytes", f"{path.stat().st_size - 1:,}")
    sentence(str(found), names=(str(path), *sizes, name), NUMBER=r"\b\d,\d{3}\b")
    assert study.folder.read_losses(name) == []
    _, recorder = study.again()
    assert recorder.stages == []
    assert not path.exists()
    assert len(list((study.folder.root / "quarantine").rglob("metrics.jsonl"))) == 1
    assert find_damage(study.folder) == []


def test_a_run_whose_weights_and_losses_are_damaged_is_made_again(study: Study) -> None:
    before = comparable(study.folder.root)
    flip_byte(study.adapter())
    flip_byte(run_file(study, 0, "metrics.jsonl"))
    study.again()
    assert comparable(study.folder.root) == before


def test_edited_losses_of_any_model_are_said_by_verbs_that_read(finished: StudyFolder) -> None:
    for model in finished.read_study().models:
        path = finished.metrics_file(model.name)
        whole = path.read_bytes()
        path.write_bytes(whole + b"{}")
        done = rankwise("verdict", finished.root)
        path.write_bytes(whole)
        assert done.exit_code == 0
        assert all(str(named) in done.stderr for named in (path, f"{len(whole) + 2:,} bytes"))
