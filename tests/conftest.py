"""A tiny random model with a real tokenizer, and a tiny task, for tests without a download."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import jaxtyping
import pytest
from jaxtyping import install_import_hook
from syrupy.assertion import SnapshotAssertion
from typer.main import get_command

from tests.support.checked import check_first_calls, checked, forget_calls
from tests.support.sentences import LEFT_OUT, Sentences
from tests.support.tiny_tasks import tiny_tokenizer, write_tiny_tasks
from tests.thorough import is_thorough

# ignored where the tests are started by nohup, or in the background of a script
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# xdist sets it: sentences would be folded at 80 columns there, and at 160 in one process
os.environ.pop("COLUMNS", None)
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # tiny matrices: threads would only wait on each other
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Shapes and types of the packages that hold tensors are checked in the tests.
check_first_calls()
install_import_hook(
    [
        "rankwise.engine",
        "rankwise.weights",
        "rankwise.heads",
    ],
    f"{checked.__module__}.{checked.__name__}",
)

SHARED_TASKS = Path(__file__).resolve().parents[2] / "shared" / "tasks"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make test` leaves to `make test-all`."""
    for item in items:
        needs_browser = "visit" in getattr(item, "fixturenames", ())
        if is_thorough(item.nodeid) or needs_browser:
            item.add_marker(pytest.mark.thorough)


def pytest_deselected(items: list[pytest.Item]) -> None:
    """What an option leaves out of a run keeps its sentences."""
    for item in items:
        item.config.stash.setdefault(LEFT_OUT, []).append(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Shapes and types are checked anew for each test, in what its fixtures make first."""
    forget_calls()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """And in the test itself."""
    forget_calls()


@pytest.fixture(scope="session", autouse=True)
def nothing_remembered() -> Generator[None]:
    """No test knows how long the studies of another took."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rankwise.study.speeds._path", lambda: Path(os.devnull, "speeds.json"))
        yield


@pytest.fixture(scope="session", autouse=True)
def nothing_waited_for() -> Generator[None]:
    """No test of this process waits for the disk, or for typer to read all verbs once more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr("typer.testing._get_command", functools.cache(get_command))
        yield


@pytest.fixture
def unchecked_shapes() -> Generator[None]:
    """Lets a test hand over arrays of wrong shapes, to see the package's own refusal of them."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def sentence(snapshot: SnapshotAssertion, tmp_path_factory: pytest.TempPathFactory) -> Sentences:
    """Asserts what a user is told by the test's page in ``tests/sentences``."""
    return Sentences(snapshot, tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama of 2 layers with a byte-level tokenizer, pad = eos, and a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model") / "tiny-llama"
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tasks_folder(tmp_path: Path) -> Path:
    """lm-eval YAML files: colours and hues (choice), small_prose, sums (generation)."""
    folder = tmp_path / "tasks"
    write_tiny_tasks(folder)
    return folder


@pytest.fixture
def study_file(tmp_path: Path, tiny_model_folder: Path, tasks_folder: Path) -> Path:
    """A study that runs in seconds: ranks 2 and 4 and full, on the tiny model and tasks."""
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"""
base_model: {tiny_model_folder}
tasks_path: {tasks_folder.name}
allow_task_code: true
train:
  task: colours
  epochs: 2
  learning_rate: {{lora: 1e-2, full: 1e-3}}
  precision: float32
methods:
  lora: {{ranks: [2, 4], target_modules: [q_proj, k_proj, v_proj, o_proj]}}
evaluation:
  out_of_domain: [sums]
  held_out_text: [small_prose]
"""
    )
    return path


@pytest.fixture
def ends() -> Iterator[None]:
    """A test that stands still fails."""

    def fail(*_: object) -> None:
        raise AssertionError("it stands still")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def shared_tasks() -> Path:
    """Real benchmark items beside the checkout, where there are any."""
    if not SHARED_TASKS.is_dir():
        pytest.skip("no shared benchmark items beside this checkout")
    return SHARED_TASKS
