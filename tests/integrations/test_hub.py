"""``rankwise export --to hub``: the real client of the Hub, and a stand-in for the Hub itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import rankwise as rw
from rankwise.integrations.hub import PushedFile, push_study
from rankwise.integrations.study_files import study_files
from rankwise.records.files import read_record
from rankwise.records.folder import StudyFolder
from rankwise.records.names import WEIGHTS
from rankwise.records.study import PlannedRun, RunRecord, StageRecord, StudyRecord
from tests.support.command_line import rankwise, words
from tests.support.hub import TOKEN, Hub, Repository, hub
from tests.support.sentences import Sentences
from tests.support.small_studies import write_study
from tests.support.studies import run

SETTINGS = """
train: {task: colours, epochs: 1, learning_rate: {lora: 1e-2, full: 1e-3}, precision: float32}
methods: {lora: {ranks: [2, 4], target_modules: [q_proj, k_proj, v_proj, o_proj]}}
evaluation: {out_of_domain: [sums], num_train_items: 0}
analysis: {spectra: false, heads: false}
"""
LORA = "colours-lora-r002"


@pytest.fixture(scope="module")
def finished(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    root = tmp_path_factory.mktemp("pushed")
    run(write_study(root, tiny_model_folder, SETTINGS), root / "study")
    return StudyFolder(root / "study")


@contextmanager
def logged_in(patch: pytest.MonkeyPatch) -> Generator[Hub]:
    """Within the block, there is a Hub, and a token that may write to it."""
    with hub() as state:
        patch.setattr(constants, "ENDPOINT", state.endpoint)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield state


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Generator[Hub]:
    with logged_in(monkeypatch) as state:
        yield state


class Once(NamedTuple):
    """The same study pushed twice: first with the texts of its items, and then without them."""

    output: str
    with_items: Path
    without: Path


@pytest.fixture(scope="module")
def once(finished: StudyFolder, tmp_path_factory: pytest.TempPathFactory) -> Once:
    root = tmp_path_factory.mktemp("downloaded")
    with pytest.MonkeyPatch.context() as patch, logged_in(patch) as state:
        assert push(finished, "--run", LORA, "--with-items").exit_code == 0
        download(state, root / "with")
        files_of(state)["notes.md"] = b"of the owner"
        done = push(finished, "--run", LORA)
        assert done.exit_code == 0, done.stderr
        assert state.repositories["org/mine"].private
        assert f"are at {state.endpoint}/org/mine (private)" in done.stdout
        download(state, root / "without")
    return Once(done.output, root / "with", root / "without")


def download(state: Hub, target: Path) -> None:
    for path, content in files_of(state).items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_bytes(content)


def everything(folder: Path) -> str:
    """All bytes of all files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return b"\n".join(path.read_bytes() for path in files).decode("utf-8", "replace")


def below_the_files(said: str) -> str:
    """What is said after the list of what is sent."""
    return words(said).rpartition(" study/study.yaml ")[2]


def push(study: StudyFolder, *options: str, repo: str = "org/mine") -> Any:
    yes = () if "--dry-run" in options else ("--yes",)
    done = rankwise("export", study.root, "--to", "hub", "--repo", repo, *options, *yes)
    assert TOKEN not in done.output
    return done


def lora_run(study: StudyFolder) -> PlannedRun:
    (planned,) = (each for each in study.read_study().runs if each.name.startswith(LORA))
    return planned


def files_of(state: Hub, repo: str = "org/mine") -> dict[str, bytes]:
    return state.repositories[repo].files


def test_the_adapter_loads_from_the_repository_as_it_was_trained(
    finished: StudyFolder, once: Once, tiny_model_folder: Path, sentence: Sentences
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    model: Any = peft.PeftModel.from_pretrained(base, once.without)
    planned = lora_run(finished)
    trained = load_file(finished.weights(planned) / "adapter_model.safetensors")
    loaded = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    assert trained.keys() == loaded.keys()
    assert all(torch.equal(trained[name], loaded[name]) for name in trained)
    card = ModelCard((once.without / "README.md").read_text(encoding="utf-8"))
    assert card.data.library_name == "peft"
    sentence(card.text, names=(planned.name,), part=True)


def test_records_and_report_are_there_and_nothing_else(finished: StudyFolder, once: Once) -> None:
    files = {p.relative_to(once.without).as_posix() for p in once.without.rglob("*") if p.is_file()}
    names = [each.name for each in finished.read_study().runs]
    wanted = {
        *("README.md", "adapter_config.json", "adapter_model.safetensors", "study/study.json"),
        *("study/study.yaml", "study/recommendation.json"),
        *("study/report.html", "study/report/runs.csv", "study/base/eval/colours.json"),
        *(f"study/runs/{name}/{file}" for name in names for file in ("run.json", "metrics.jsonl")),
        *(f"study/runs/{name}/eval/sums.json" for name in names),
    }
    assert wanted <= files
    assert [each for each in files if each.endswith(".safetensors")] == [
        "adapter_model.safetensors"
    ]
    unwanted = ("training.pt", "samples.jsonl", "findings.json", ".checked", "tokenizer")
    assert [each for each in files if any(part in each for part in unwanted)] == []


def test_no_folder_of_this_machine_and_no_text_of_an_item_is_sent(
    finished: StudyFolder, once: Once, tiny_model_folder: Path
) -> None:
    items = finished.read_samples("base", "colours")
    texts = {json.dumps(item["arguments"][0][0])[1:-1] for item in items}
    folders = {str(finished.root.parent), str(tiny_model_folder.parent)}
    assert [text for text in (*texts, *folders) if text in everything(once.without)] == []
    with_items = everything(once.with_items)
    assert all(text in with_items for text in texts)  # so the search above would find them
    assert [folder for folder in folders if folder in with_items] == []
    assert str(finished.root.parent) in everything(finished.root)


def test_the_items_make_the_study_whole(finished: StudyFolder, once: Once) -> None:
    record = read_record(once.without / "study" / "study.json", StudyRecord)
    assert record.fingerprint == finished.read_study().fingerprint
    assert rw.open(once.with_items / "study").verdict == rw.open(finished.root).verdict


def test_a_second_push_takes_away_what_it_does_not_send(once: Once) -> None:
    assert list(once.with_items.rglob("*.samples.jsonl"))
    assert not list(once.without.rglob("*.samples.jsonl"))
    assert (once.without / "notes.md").read_bytes() == b"of the owner"


def test_a_base_in_a_folder_is_to_be_named_by_hand(once: Once) -> None:
    assert "the base model is a folder of this machine" in words(once.output)
    assert "base_model" not in (once.without / "README.md").read_text(encoding="utf-8")


def test_a_notebook_gets_the_address(finished: StudyFolder, stand_in: Hub) -> None:
    with pytest.warns(UserWarning, match="the base model is a folder of this machine"):
        url = rw.open(finished.root).push("org/mine", run=LORA)
    assert url == f"{stand_in.endpoint}/org/mine"


def test_public_is_said_and_never_by_accident(
    finished: StudyFolder, stand_in: Hub, sentence: Sentences
) -> None:
    assert "(public)" in push(finished, "--run", LORA, "--public", repo="org/open").stdout
    assert not stand_in.repositories["org/open"].private
    before = dict(files_of(stand_in, "org/open"))
    again = push(finished, "--run", LORA, repo="org/open")
    assert again.exit_code == 1
    sentence(below_the_files(again.stderr), "open", names=("org/open", "--public"))
    assert files_of(stand_in, "org/open") == before
    stand_in.repositories["org/closed"] = Repository(private=True)
    stays = push(finished, "--run", LORA, "--public", repo="org/closed")
    sentence(below_the_files(stays.stderr), "closed", names=("org/closed",))
    assert stand_in.repositories["org/closed"].private


def test_a_dry_run_lists_files_and_sizes_and_asks_nothing(
    finished: StudyFolder, stand_in: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    done = push(finished, "--run", LORA, "--dry-run")
    assert done.exit_code == 0
    assert stand_in.requests == []
    size = (finished.weights(lora_run(finished)) / "adapter_model.safetensors").stat().st_size
    assert f"{size:>13,}  adapter_model.safetensors\n" in done.stdout
    assert "would go to org/mine (private)" in done.stdout


def test_without_a_token_nothing_is_asked(
    finished: StudyFolder,
    stand_in: Hub,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    sentence: Sentences,
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    done = push(finished, "--run", LORA)
    assert done.exit_code == 1
    sentence(words(done.stderr))
    assert stand_in.requests == []


def test_what_the_hub_refuses_is_said_with_a_remedy(
    finished: StudyFolder, stand_in: Hub, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    done = push(finished, "--run", LORA, repo="other/theirs")
    assert done.exit_code == 1
    sentence(below_the_files(done.stderr), "no leave", names=("other/theirs",))
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    done = push(finished, "--run", LORA)
    assert done.exit_code == 1
    sentence(below_the_files(done.stderr), "no token", names=("Invalid credentials",))
    assert "hf_other" not in done.output
    assert stand_in.repositories == {}


def test_no_network_and_no_leave_to_use_it(
    finished: StudyFolder, stand_in: Hub, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    done = push(finished, "--run", LORA)
    assert done.exit_code == 1
    assert "http://127.0.0.1:9 cannot be reached: " in words(done.stderr)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = push(finished, "--run", LORA)
    assert done.exit_code == 1
    sentence(words(done.stderr))


@pytest.mark.parametrize("repo", ["", "mine", "a/b/c", "org/my name", "../org/mine"])
def test_a_name_that_is_none(
    finished: StudyFolder, stand_in: Hub, repo: str, sentence: Sentences
) -> None:
    done = push(finished, "--run", LORA, repo=repo)
    assert done.exit_code == 2
    sentence(words(done.stderr), names=("--repo", repr(repo)))
    assert stand_in.requests == []


def test_everything_that_the_study_wrote_is_known(finished: StudyFolder) -> None:
    listed = {each.path for each in study_files(finished, finished.read_study())}
    of_models = {
        path
        for name in ("base", "runs")
        for path in (finished.root / name).rglob("*.json*")
        if path.parent.name not in WEIGHTS
    }
    assert of_models == {path for path in listed if path.parent != finished.root}


def test_a_record_that_does_not_say_whether_it_has_texts_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="has_texts"):
        type("Silent", (StageRecord,), {})
    assert type("Said", (StageRecord,), {}, has_texts=True).has_texts


def test_what_says_that_it_has_texts_stays_at_home(
    finished: StudyFolder, stand_in: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a new kind of stage would, whose record nobody knows elsewhere."""
    for has_texts in (False, True):
        monkeypatch.setattr(RunRecord, "has_texts", has_texts)
        assert push(finished, "--run", LORA).exit_code == 0
        sent = {Path(path).name for path in files_of(stand_in)}
        assert {"study.json", "metrics.jsonl"} <= sent
        assert ("run.json" in sent) != has_texts


@pytest.mark.usefixtures("ends")
def test_a_study_with_a_pipe_in_it_stops_nothing(
    finished: StudyFolder, stand_in: Hub, tmp_path: Path, sentence: Sentences
) -> None:
    shutil.copytree(finished.root, tmp_path / "study")
    copy = StudyFolder(tmp_path / "study")
    metrics = copy.metrics_file(lora_run(copy).name)
    metrics.unlink()
    os.mkfifo(metrics)
    done = push(copy, "--run", LORA)
    assert done.exit_code == 1
    sentence(words(done.stderr), names=(metrics,))
    assert stand_in.repositories == {}


def test_what_the_study_did_not_write_is_not_sent(
    finished: StudyFolder, stand_in: Hub, once: Once, tmp_path: Path
) -> None:
    shutil.copytree(finished.root, tmp_path / "study")
    copy = StudyFolder(tmp_path / "study")
    place = copy.model_folder(lora_run(copy).name)
    for name in ("my.jsonl", "my.json", "metrics.jsonl.bak", "heads/notes.txt", "eval/a.jsonl"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("secret")
    samples = copy.samples_file(lora_run(copy).name, "sums")
    shutil.copy(samples, samples.with_name("sums.samples.jsonl.bak"))
    shutil.copy(samples, copy.root / "base" / "sums.jsonl")
    for name in ("my.json", "my.csv"):
        (copy.root / name).write_text("secret")
    done = push(copy, "--run", LORA)
    assert done.exit_code == 0, done.stderr
    assert files_of(stand_in).keys() == {
        path.relative_to(once.without).as_posix()
        for path in once.without.rglob("*")
        if path.is_file() and path.name != "notes.md"
    }


@pytest.mark.parametrize("to", ["hub", "folder"])
@pytest.mark.parametrize(
    "name", ["findings.json", "base/eval/sums.samples.jsonl", "{run}/adapter", "runs", "study.json"]
)
def test_a_study_with_a_link_in_it_goes_nowhere(
    finished: StudyFolder, stand_in: Hub, tmp_path: Path, to: str, name: str, sentence: Sentences
) -> None:
    """A record, items without which the study is whole, weights, and a folder on the way."""
    shutil.copytree(finished.root, tmp_path / "study")
    link = tmp_path / "study" / name.format(run=f"runs/{lora_run(finished).name}")
    link.rename(tmp_path / "secret")
    link.symlink_to(tmp_path / "secret")
    study = StudyFolder(tmp_path / "study")
    done = push(study, "--run", LORA) if to == "hub" else rankwise("export", study.root)
    if to == "folder" and name.endswith("adapter"):
        assert done.exit_code == 0  # no export reads weights
        return
    assert done.exit_code == 1
    sentence(words(done.stderr), names=(link,))
    assert stand_in.requests == []
    assert not (tmp_path / "study" / "export").exists()


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_nothing_goes_that_nobody_saw(
    finished: StudyFolder, stand_in: Hub, options: tuple[str, ...]
) -> None:
    """Without a terminal, as in a script, nobody can be asked."""
    done = rankwise("export", finished.root, "--to", "hub", "--repo", "org/mine", *options)
    assert done.exit_code == 2
    assert "--yes" in done.stderr
    assert stand_in.repositories == {}


def test_the_files_are_shown_before_they_go(finished: StudyFolder, stand_in: Hub) -> None:
    shown: list[str] = []

    def approve(files: Sequence[PushedFile]) -> bool:
        assert stand_in.requests == []
        shown.extend(f"{file.num_bytes:>13,}  {file.path}" for file in files)
        return False

    refused = push_study(finished, "org/mine", LORA, approve=approve)
    assert (refused.url, stand_in.requests) == (None, [])
    done = push(finished, "--run", LORA)
    lines = done.stderr.splitlines()
    assert [line for line in lines if line in shown] == shown
    assert {line.split()[1] for line in shown} == files_of(stand_in).keys() - {".gitattributes"}


def test_options_of_the_hub_and_of_folders_do_not_mix(finished: StudyFolder, stand_in: Hub) -> None:
    refused = {
        "--repo is for --to hub; add that, or leave it out": ("--repo", "org/mine"),
        "--repo ORG/NAME is missing; --to hub needs it": ("--to", "hub"),
        "--format does not go with --to hub; leave it out": (
            *("--to", "hub", "--repo", "org/mine", "--format", "peft"),
        ),
    }
    for problem, options in refused.items():
        done = rankwise("export", finished.root, *options)
        assert done.exit_code == 2
        assert problem in words(done.stderr)
    assert stand_in.requests == []


def test_only_a_run_with_an_adapter(
    finished: StudyFolder, stand_in: Hub, sentence: Sentences
) -> None:
    done = push(finished, "--run", "colours-full")
    assert done.exit_code == 2
    sentence(words(done.stderr), "full", names=("-full-",))
    nothing = push(finished, "--run", "nothing")
    assert nothing.exit_code == 2
    sentence(words(nothing.stderr), "nothing", names=("--run", "nothing"))


def test_a_study_that_is_unfinished_or_damaged(
    finished: StudyFolder, stand_in: Hub, tmp_path: Path, sentence: Sentences
) -> None:
    shutil.copytree(finished.root, tmp_path / "study")
    copy = StudyFolder(tmp_path / "study")
    lora, *_ = copy.read_study().runs
    copy.evaluation_file(lora.name, "sums").unlink()
    done = push(copy, "--run", LORA)
    assert done.exit_code == 1
    sentence(words(done.stderr), "unfinished", names=("sums",))
    weights = copy.weights_folder(lora) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    done = push(copy, "--run", LORA)
    assert done.exit_code == 1
    sentence(words(done.stderr), "damaged", names=(weights,))
    assert stand_in.requests == []


def test_the_environment_alone_is_enough(finished: StudyFolder, tmp_path: Path) -> None:
    """A process of its own: nothing of the client is set from Python."""
    with hub() as state:
        environment = {
            **{name: text for name, text in os.environ.items() if name != "HF_HUB_OFFLINE"},
            "HF_ENDPOINT": state.endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path),
            "NO_PROXY": "127.0.0.1",
        }
        command = ["-m", "rankwise", "export", finished.root, "--to", "hub", "--repo", "org/mine"]
        command += ["--run", LORA, "--yes"]
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        assert "adapter_model.safetensors" in files_of(state)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []
