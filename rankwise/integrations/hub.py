"""What of a study is shared, and the repository of it on the Hugging Face Hub.

No weights but the adapter's are in it, no state of a training, no cache, no folder's name of this
machine; and, unless that is wanted, no text of an item and none that a model wrote.

Credentials are huggingface_hub's own: it finds the token, and it alone sees it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rankwise.errors import ConfigError, HubError, RecordError
from rankwise.findings.item_table import item_table
from rankwise.integrations.exports import CARD_FILE, chosen_runs, refuse_imported, run_card
from rankwise.integrations.sharing import local_folders, shared
from rankwise.integrations.study_files import refuse_links, study_files
from rankwise.records.files import read_record, write_atomically, write_record, writing
from rankwise.records.folder import StudyFolder
from rankwise.records.places import LocalFolders, paths_in
from rankwise.records.quantities import listed
from rankwise.records.results import TaskItems
from rankwise.records.study import PlannedRun, StudyRecord
from rankwise.records.study_file import study_file_text
from rankwise.report.page import write_report
from rankwise.study.conclusion import conclude
from rankwise.study.damage import find_damage
from rankwise.study.status import what_is_left

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError


STUDY = "study"
"""The folder of the records and the report, beside the adapter."""

_ADAPTER_CONFIG, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write_shared(
    folder: StudyFolder, target: Path, run: str | None = None, *, with_items: bool = False
) -> tuple[str, tuple[str, ...]]:
    """Write an adapter with its card, and the study's records and report below ``study/``.

    Args:
        folder: of a finished study.
        target: an empty folder.
        run: a run, as ``find_run`` takes it; None: the recommended one, else the best bet.
        with_items: with the texts of the items, and what each model answered.

    Returns:
        The run whose adapter it is, and what may not be so elsewhere, one sentence each.

    Raises:
        ConfigError: there is no such run, no single one is recommended, or it has no adapter.
        RecordError: the study is not finished, is not as it was written, or has a link in it.
        StorageError: the folder cannot be written.
    """
    study = folder.read_study()
    study_files(folder, study)  # refuses links before anything is read
    again = f"rankwise run {folder.root} makes up for it"
    damages = find_damage(folder, [model.name for model in study.models])
    if damages:
        listed = "; ".join(map(str, damages))
        raise RecordError(f"{folder.root} is not as it was written: {listed}. {again}.")
    left = what_is_left(folder, study)
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise RecordError(f"{folder.root} is not finished: {left[0]}{more} is left. {again}.")
    folders = local_folders(folder, study)
    outcome = shared(folder, conclude(folder), with_texts=with_items)
    runs, _ = chosen_runs(outcome, run)
    if len(runs) > 1:
        names = ", ".join(each.planned.name for each in runs)
        problem = f"each trained task has a run of its own; choose one with --run: {names}"
        raise ConfigError("export", [problem])
    chosen = runs[0]
    adapter = _adapter_of(folder, chosen.planned)
    refuse_links(folder, [adapter / _ADAPTER_CONFIG, adapter / _ADAPTER_WEIGHTS])
    write_atomically(target / CARD_FILE, run_card(outcome, chosen))
    config = json.loads((adapter / _ADAPTER_CONFIG).read_text(encoding="utf-8"))
    config = LocalFolders(paths_in(config)).out_of_settings(config)
    write_atomically(target / _ADAPTER_CONFIG, json.dumps(config, indent=2) + "\n")
    with writing(target):
        shutil.copyfile(adapter / _ADAPTER_WEIGHTS, target / _ADAPTER_WEIGHTS)
    _write_records(folder, target / STUDY, folders, with_items=with_items)
    items = item_table(outcome.results, folder.read_samples, with_texts=with_items)
    losses = {each.name: folder.read_losses(each.name) for each in outcome.results.runs}
    write_report(target / STUDY, *outcome, items, losses, study=Path(STUDY))
    unread = {} if with_items else outcome.results.base.items
    return chosen.planned.name, (*_remarks(study), *_remarks_on_fields(unread))


def _adapter_of(folder: StudyFolder, planned: PlannedRun) -> Path:
    """The folder of a run's adapter, after it was compared with the run's record."""
    refuse_imported(planned)
    record = folder.finished_run(planned)
    why = None
    if planned.method == "full":
        why = "all weights are trained, and those of the base are not shared"
    elif record is None or record.status == "diverged":
        why = f"its training {'diverged' if record is None else record.ending}"
    elif record.is_given_up:
        why = "a search removed its weights"
    if why is not None:
        raise ConfigError(
            "export", [f"{planned.name} has no adapter: {why}; name another with --run"]
        )
    return folder.weights(planned)


def _write_records(
    folder: StudyFolder, target: Path, folders: LocalFolders, *, with_items: bool
) -> None:
    study = folder.read_study()
    write_record(target / folder.study_file.name, folders.out_of(study))
    write_atomically(target / folder.settings_file.name, study_file_text(study.config))
    for path, kind, has_texts in study_files(folder, study):
        place = target / path.relative_to(folder.root)
        if has_texts and not with_items:
            continue
        if kind is None:
            write_atomically(place, path.read_bytes())
        else:
            write_record(place, folders.out_of(read_record(path, kind)))


def _remarks(study: StudyRecord) -> Iterator[str]:
    base = study.config.base_model
    if study.config.start_in_words:
        yield (
            f"the base is {base.name}{study.config.start_in_words}; say in the card where others "
            "find that adapter"
        )
    if Path(base.name).is_absolute():
        yield (
            f"the base model is a folder of this machine, {base.name}; say in the card where "
            "others find it"
        )
    elif base.is_embedded:
        yield (
            f"the study's base was rounded to 4 bits; {base.name_elsewhere}, which the card names, "
            "is as it was before"
        )


def _remarks_on_fields(items: Mapping[str, TaskItems]) -> Iterator[str]:
    for task, of_task in items.items():
        if of_task.fields:
            named = listed([*of_task.fields])
            yield f"the scores of {task} name the fields of its answers: {named}"


class PushedFile(NamedTuple):
    """A file of the repository.

    Attributes:
        path: in the repository.
        num_bytes: its size.
    """

    path: str
    num_bytes: int


class Pushed(NamedTuple):
    """What was pushed, or would be.

    Attributes:
        run: whose adapter it is.
        files: in the order of their paths.
        url: of the repository; None where nothing was sent.
        is_private: whether only those who may read the repository see it.
        remarks: what may not be so elsewhere, one sentence each.
    """

    run: str
    files: tuple[PushedFile, ...]
    url: str | None
    is_private: bool
    remarks: tuple[str, ...]


def push_study(
    folder: StudyFolder,
    repo: str,
    run: str | None = None,
    *,
    public: bool = False,
    with_items: bool = False,
    dry_run: bool = False,
    approve: Callable[[Sequence[PushedFile]], bool] = lambda _: True,
) -> Pushed:
    """Upload a run's adapter with its card, and the study's records and report.

    A repository that is not there is made. In one that is, files of the same names are replaced,
    and those of an earlier push below ``study/`` that this one does not have are removed.

    Args:
        folder: of a finished study.
        repo: ``org/name`` on the Hub.
        run: a run, as ``find_run`` takes it; None: the recommended one, else the best bet.
        public: everybody may read the repository.
        with_items: with the texts of the items, and what each model answered.
        dry_run: send nothing, and ask the Hub nothing.
        approve: is shown the files before they go, and says whether they do.

    Raises:
        ConfigError: ``repo`` is no such name; or see ``write_shared``.
        HubError: there is no token, it may not write there, the Hub cannot be reached, or the
            repository is public already and ``public`` does not say so.
        RecordError: the study is not finished, or not as it was written.
        StorageError: there is no room for the files here.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    problem = f"--repo: {repo!r} names no repository; write org/name"
    if "/" not in repo:
        raise ConfigError("export", [problem])
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError("export", [problem]) from error
    if not dry_run:
        if constants.is_offline_mode():
            raise HubError(_OFFLINE)
        if get_token() is None:
            raise HubError(
                "there is no token of the Hugging Face Hub. Log in with `hf auth login`, or set "
                "HF_TOKEN to a token that may write."
            )
    with tempfile.TemporaryDirectory(prefix="rankwise-push-") as temporary:
        target = Path(temporary)
        name, remarks = write_shared(folder, target, run, with_items=with_items)
        files = tuple(
            PushedFile(path.relative_to(target).as_posix(), path.stat().st_size)
            for path in sorted(target.rglob("*"))
            if path.is_file()
        )
        url, is_private = None, not public
        if not dry_run and approve(files):
            url, is_private = _upload(target, repo, f"{name}, by rankwise", public=public)
    return Pushed(name, files, url, is_private, remarks)


_OFFLINE = (
    "the Hub is not contacted, because HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set. Unset it "
    "and push again, or list with --dry-run what would be sent."
)


def _upload(source: Path, repo: str, message: str, *, public: bool) -> tuple[str, bool]:
    """The repository's URL, and whether it is private.

    Raises:
        HubError: the Hub, or the way to it, refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    api = HfApi(library_name="rankwise")
    try:
        url = api.create_repo(repo, private=not public, exist_ok=True)
        is_private = bool(api.repo_info(repo).private)
        if not is_private and not public:
            raise HubError(
                f"{repo} is there and public, and --public is not given. Add --public, make the "
                "repository private, or choose another name."
            )
        api.upload_folder(
            repo_id=repo, folder_path=source, commit_message=message, delete_patterns=[f"{STUDY}/*"]
        )
    except OfflineModeIsEnabled as error:
        raise HubError(_OFFLINE) from error
    except HfHubHTTPError as error:
        raise HubError(_refusal(error, repo)) from error
    except HTTPError as error:  # of the library that carries the requests
        raise HubError(
            f"{api.endpoint} cannot be reached: {str(error) or type(error).__name__}. Check the "
            "network and HF_ENDPOINT, and push again."
        ) from error
    except ValueError as error:  # the Hub does not take the card
        raise HubError(
            f"the Hub does not take the files: {' '.join(str(error).split())}"
        ) from error
    return str(url), is_private


def _refusal(error: HfHubHTTPError, repo: str) -> str:
    status = error.response.status_code
    said = error.server_message or "no reason is given"
    match status:
        case 401:
            return (
                f"the Hub does not know the token ({said}). Log in again with `hf auth login`, or "
                "set HF_TOKEN to one that is valid."
            )
        case 403:
            return (
                f"the token may not write to {repo} ({said}). Use a token with write access, or a "
                "name of your own."
            )
        case _:
            return f"the Hub refused {repo}: {status}, {said}. Push again later."
