"""A study on the Hugging Face Hub: its adapter, card, records and report as one repository.

Credentials are huggingface_hub's own: it finds the token, and it alone sees it.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rankwise.errors import ConfigError, HubError
from rankwise.integrations.shared_folder import STUDY, write_shared
from rankwise.records.folder import StudyFolder

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_VERB = "export"


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
    _check_name(repo)
    if not dry_run:
        _check_login()
    with tempfile.TemporaryDirectory(prefix="rankwise-push-") as temporary:
        target = Path(temporary)
        shared = write_shared(folder, target, run, with_items=with_items)
        files = tuple(
            PushedFile(path.relative_to(target).as_posix(), path.stat().st_size)
            for path in sorted(target.rglob("*"))
            if path.is_file()
        )
        url, is_private = None, not public
        if not dry_run and approve(files):
            url, is_private = _upload(target, repo, f"{shared.run}, by rankwise", public=public)
    return Pushed(shared.run, files, url, is_private, shared.remarks)


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        is_whole = "/" in repo
    except HFValidationError:
        is_whole = False
    if not is_whole:
        raise ConfigError(_VERB, [f"--repo: {repo!r} names no repository; write org/name"])


def _check_login() -> None:
    from huggingface_hub import constants, get_token

    if constants.is_offline_mode():
        raise HubError(_OFFLINE)
    if get_token() is None:
        raise HubError(
            "there is no token of the Hugging Face Hub. Log in with `hf auth login`, or set "
            "HF_TOKEN to a token that may write."
        )


def _upload(source: Path, repo: str, message: str, *, public: bool) -> tuple[str, bool]:
    """The repository's URL, and whether it is private."""
    from huggingface_hub import HfApi

    api = HfApi(library_name="rankwise")
    with _hub_errors(repo, api.endpoint):
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
    return str(url), is_private


_OFFLINE = (
    "the Hub is not asked, since HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set. Unset it and "
    "push again, or see with --dry-run what would be sent."
)


@contextlib.contextmanager
def _hub_errors(repo: str, endpoint: str) -> Generator[None]:
    """Within the block, what the Hub and the way to it refuse becomes a sentence with a remedy."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise HubError(_OFFLINE) from error
    except HfHubHTTPError as error:
        raise HubError(_refusal(error, repo)) from error
    except HTTPError as error:  # of the library that carries the requests
        raise HubError(
            f"{endpoint} cannot be reached: {str(error) or type(error).__name__}. Check the "
            "network and HF_ENDPOINT, and push again."
        ) from error
    except ValueError as error:  # the Hub does not take the card
        raise HubError(
            f"the Hub does not take the files: {' '.join(str(error).split())}"
        ) from error


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
                f"the token may not write to {repo} ({said}). Take a token with write access, or a "
                "name of your own."
            )
        case _:
            return f"the Hub refused {repo}: {status}, {said}. Push again later."
