"""Repositories of the Hugging Face Hub: requests, and failures as messages with a remedy.

Models (`models/hub.py`) and data sets (`tasks/hub_rows.py`) share these requests; `commits.py` chooses the commit.
Tokens are sent only to the Hub, no code of a repository is executed, and no pickle is read.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Any, Literal

from datasets.exceptions import DatasetsError
from datasets.utils import are_progress_bars_disabled as are_datasets_bars_disabled
from datasets.utils import disable_progress_bars as disable_datasets_bars
from datasets.utils import enable_progress_bars as enable_datasets_bars
from datasets.utils import logging as datasets_logging
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)
from huggingface_hub.utils import logging as hub_logging

from lora_drop.errors import UserError

COMMIT = re.compile(r"[0-9a-f]{40}")
FAILURES = (HTTPError, OSError, ValueError, RuntimeError, DatasetsError)
"""Errors that the libraries raise when a request, a transfer or an answer fails. HTTPError is from the HTTP library of
huggingface_hub, OSError includes a full disk, ValueError an answer that is not JSON, and RuntimeError comes from the
fast transfer (hf_xet)."""
AGAIN = "The same command continues: files that are complete are kept."
LOGIN = "Log in with `hf auth login` (or set HF_TOKEN)"
UNREACHABLE = (
    "UnsupportedProtocol",
    "ConnectError",
    "ProxyError",
    "ConnectionError",
    "ConnectionRefusedError",
    "gaierror",
)
LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


class NotTheHub(ValueError):
    """Raised for an answer that does not describe a repository."""


@dataclass(frozen=True)
class Repo:
    """A repository at a revision: a branch, a tag or a commit."""

    name: str
    """`organisation/name`, or the bare name of one of the Hub's first models (`bert-base-uncased`)."""
    kind: Literal["model", "dataset"] = "model"
    revision: str = "main"
    usual: str = "main"
    """The default branch, if none is named."""

    @classmethod
    def parse(cls, text: str) -> Repo:
        """Parse `organisation/name` or `organisation/name@revision` of a model. Raises UserError if it is neither."""
        name, _, revision = text.partition("@")
        if not is_name(name):
            raise UserError(f"{text!r} is neither a folder nor a name on the Hub (organisation/model). Check the name.")
        return cls(name, "model", check_revision(revision) if "@" in text else "main")

    @property
    def pinned(self) -> bool:
        """True if the revision is a commit, which never moves."""
        return COMMIT.fullmatch(self.revision) is not None

    @property
    def page(self) -> str:
        """URL of the repository's web page."""
        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    @property
    def cache(self) -> Path:
        """Folder of the Hub's cache with the files of the repository."""
        return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.name, repo_type=self.kind)

    def snapshot(self, commit: str) -> Path:
        """Return the folder of the Hub's cache with the files of a commit."""
        return self.cache / "snapshots" / commit

    def __str__(self) -> str:
        return f"the {'data set' if self.kind == 'dataset' else 'model'} {self.name}"


def is_name(text: str) -> bool:
    """Return True if the Hub allows a repository with this name."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def check_revision(revision: str) -> str:
    """Return `revision` if it is a valid name of a branch, tag or commit. Raises UserError if git does not allow it."""
    if not re.fullmatch(r"[\w.+/-]+", revision) or ".." in revision or revision.startswith("/"):
        raise UserError(
            f"{revision!r} is not a revision. Give the name of a branch or a tag, or a commit of 40 digits."
        )
    return revision


def forbidden_by(offline: bool) -> str:
    """Return the option or environment variable that forbids querying the Hub, or an empty string."""
    if offline:
        return "--offline"
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next((name for name in names if os.environ.get(name)), names[0]) if constants.HF_HUB_OFFLINE else ""


def describe(api: HfApi, repo: Repo, revision: str) -> Any:
    """Return the Hub's description of a revision, with its commit (`sha`) and files (`siblings`), in one request."""
    wanted: dict[str, Any] = {"revision": revision, "files_metadata": True, "timeout": constants.HF_HUB_ETAG_TIMEOUT}
    try:
        return api.repo_info(repo.name, repo_type=repo.kind, **wanted)
    except (TypeError, KeyError) as error:
        raise NotTheHub(str(error)) from error


@contextmanager
def asking(repo: Repo, otherwise: str) -> Iterator[HfApi]:
    """Yield the Hub's API. A failure in the block becomes a UserError, and the libraries print nothing.

    `otherwise` tells the user what to do if the Hub is not available at all.
    """
    with _silence():
        try:
            yield HfApi()
        except FAILURES as error:
            raise UserError(explain(error, repo, otherwise)) from error


@contextmanager
def _silence() -> Iterator[None]:
    """Keep huggingface_hub and datasets from printing: messages are left to the reporter."""
    decided = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None  # by the user
    bars, other_bars = not decided and not are_progress_bars_disabled(), not are_datasets_bars_disabled()
    levels = [(library, library.get_verbosity()) for library in (hub_logging, datasets_logging)]
    if bars:
        disable_progress_bars()
    disable_datasets_bars()
    for library, _ in levels:
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, level in levels:
            library.set_verbosity(level)
        if bars:
            enable_progress_bars()
        if other_bars:
            enable_datasets_bars()


def explain(error: BaseException, repo: Repo, otherwise: str) -> str:
    """Return a message that describes the failure and its remedy.

    Args:
        error: One of FAILURES; its causes are examined, too.
        repo: The repository that was requested.
        otherwise: Remedy without the Hub, added unless the Hub's answer implies a better one.
    """
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, HfHubHTTPError):
            return _refused(cause, repo, otherwise).strip()
    for cause in reversed(causes):  # the original failure is the last in the chain
        sentence = _broken(cause, repo)
        if sentence:
            return f"{sentence} {otherwise}".strip()
    lines = str(error).strip().splitlines() or [""]
    return f"Fetching {repo} from the Hub failed ({type(error).__name__}: {lines[0]}). {otherwise}".strip()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _refused(error: HfHubHTTPError, repo: Repo, otherwise: str) -> str:
    """Return the message for an error that the Hub answered with."""
    token, code = get_token() is not None, error.response.status_code
    said = f", {error.server_message}" if error.server_message else ""
    if isinstance(error, GatedRepoError):
        first = "Accept them" if token else f"{LOGIN}, and accept them"
        return (
            f"{repo.name} is gated: the Hub gives it only to users who have accepted its terms. {first} at {repo.page}"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repo.name} has no revision {repo.revision!r} on the Hub. Its branches, tags and commits: {repo.page}/commits/main"
    if isinstance(error, RepositoryNotFoundError):
        kind = str(repo).removeprefix("the ")
        if token:
            return f"The Hub has no {kind}, or your token may not read it. Check the name, and the token with `hf auth whoami`."
        return f"The Hub has no {kind}, or it is private and you are not logged in. Check the name. {LOGIN} if it is private."
    if isinstance(error, DisabledRepoError):
        return f"The Hub has disabled {repo}: {repo.page}"
    if code == 401:
        return f"The Hub does not accept your token (401) for {repo}. Log in again with `hf auth login`, or correct HF_TOKEN."
    if code == 403:
        return (
            f"The Hub denies you access to {repo} (403{said}). Accept its terms at {repo.page} if it has any, or use "
            "a token that may read it."
        )
    if code == 404:
        return f"The Hub does not find a file of {repo} (404{said}): {repo.page}"
    if code == 429:
        more = "" if token else f" {LOGIN}: more requests are then allowed."
        return f"The Hub asks you to wait (429, too many requests){_seconds(error)}. Wait a few minutes.{more} {AGAIN}"
    if code >= 500:
        return f"The Hub has an internal error ({code}) and cannot provide {repo}. Try again later. {AGAIN} {otherwise}"
    return f"The Hub does not provide {repo} ({code}{said}). {otherwise}"


def _seconds(error: HfHubHTTPError) -> str:
    wait = error.response.headers.get("Retry-After", "")
    return f": {wait} seconds" if wait.isdigit() else ""


def _broken(error: BaseException, repo: Repo) -> str:
    """Return the message for a missing or incomplete answer of the Hub; empty for other errors."""
    kind = type(error).__name__
    if isinstance(error, OfflineModeIsEnabled):
        return (
            f"{str(repo).replace('the ', 'The ', 1)} is not on this machine, and HF_HUB_OFFLINE forbids contacting "
            "the Hub."
        )
    if "Timeout" in kind:
        return (
            f"The Hub has not answered in time ({kind}) for {repo}. {AGAIN} On a slow network set HF_HUB_ETAG_TIMEOUT and "
            "HF_HUB_DOWNLOAD_TIMEOUT to more than 10 seconds."
        )
    if kind in UNREACHABLE:
        return f"The Hub cannot be reached for {repo} ({kind}): there is no network, or HTTPS_PROXY or HF_ENDPOINT is wrong."
    if isinstance(error, (JSONDecodeError, NotTheHub)):
        return f"The answer for {repo} is not from the Hub: it is a login page of the network, or HF_ENDPOINT is wrong."
    if isinstance(error, HTTPError) or "Consistency check failed" in str(error):
        return f"The transfer of {repo} was interrupted ({kind}). {AGAIN}"
    if isinstance(error, OSError) and error.errno in LOCAL:
        return f"{str(repo).replace('the ', 'The ', 1)} cannot be stored ({error.strerror}). Make room, or name another cache folder with HF_HOME."
    return ""
