"""Repositories of the Hugging Face Hub: the commit that a name means, what of it this machine holds, and every failure as a sentence.

Models (`hub_models.py`) and data sets (`tasks/hub_rows.py`) are asked for in the same way:

- what is cached is used without a question, offline or not: a run must not change because somebody pushed to a branch;
- where the Hub can be asked, a notice says that a branch or tag has moved on, if what was used from it has changed;
- a token goes to the Hub alone, no code of a repository is executed, and no pickle is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from datasets.utils import disable_progress_bars as disable_datasets_bars
from datasets.utils import enable_progress_bars as enable_datasets_bars
from datasets.utils import is_progress_bar_enabled
from datasets.utils import logging as datasets_logging
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError, RevisionNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)
from huggingface_hub.utils import logging as hub_logging

from lora_drop.errors import UserError
from lora_drop.hub_errors import FAILURES, explain
from lora_drop.progress import Reporter

COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Repo:
    """A repository at a revision: a branch, a tag or a commit."""

    name: str
    """`organisation/name`, or the bare name of one of the Hub's first models (`bert-base-uncased`)."""
    kind: Literal["model", "dataset"] = "model"
    revision: str = "main"
    usual: str = "main"
    """The branch that is meant where none is named."""

    @classmethod
    def parse(cls, text: str) -> Repo:
        """Read `organisation/name` or `organisation/name@revision` of a model. Raises UserError if it is neither."""
        name, _, revision = text.partition("@")
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise UserError(
                f"{text!r} is neither a folder nor a name on the Hub (organisation/model). Check the name."
            ) from error
        return cls(name, "model", check_revision(revision) if "@" in text else "main")

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which never moves."""
        return COMMIT.fullmatch(self.revision) is not None

    @property
    def page(self) -> str:
        """The address that people look at."""
        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    @property
    def cache(self) -> Path:
        """The folder of the Hub's cache that holds its files."""
        return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.name, repo_type=self.kind)

    def snapshot(self, commit: str) -> Path:
        """Return the folder of the Hub's cache that holds the files of a commit."""
        return self.cache / "snapshots" / commit

    def __str__(self) -> str:
        return f"the {'data set' if self.kind == 'dataset' else 'model'} {self.name}"


def check_revision(revision: str) -> str:
    """Return the name of a branch, a tag or a commit. Raises UserError if git allows no such name."""
    if not re.fullmatch(r"[\w.+/-]+", revision) or ".." in revision or revision.startswith("/"):
        raise UserError(f"{revision!r} is no revision: the name of a branch or a tag, or a commit of 40 digits.")
    return revision


def forbidden_by(offline: bool) -> str:
    """Return what forbids asking the Hub (the option, or the environment), or an empty string."""
    if offline:
        return "--offline"
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next((name for name in names if os.environ.get(name)), names[0]) if constants.HF_HUB_OFFLINE else ""


def cached_commits(repo: Repo, used: str | None, forbidden: str, folders: Iterable[Path]) -> list[str]:
    """Return the commits that stand for a revision on this machine, best first.

    Args:
        repo: whose revision is meant.
        used: the commit that a run has used before: as long as it can be fetched, no other will do.
        forbidden: what forbids asking the Hub; then also others will do, which are better than nothing.
        folders: of the cache, named by their commits; one that no branch or tag refers to may be any branch.
    """
    path = repo.cache / "refs" / repo.revision
    noted = path.read_text(encoding="utf-8").strip() if path.is_file() else None
    if repo.pinned or (used and not forbidden):
        return [used or repo.revision]
    commits = [commit for commit in (used, noted) if commit]
    if forbidden and not noted and repo.revision == repo.usual:
        named = {
            file.read_text(encoding="utf-8").strip() for file in (repo.cache / "refs").rglob("*") if file.is_file()
        }
        latest = sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)
        commits += [folder.name for folder in latest if folder.name not in named]
    return commits


@contextmanager
def asking(repo: Repo, otherwise: str) -> Iterator[HfApi]:
    """Yield the Hub's interface; a failure in the block becomes a UserError, and the libraries are silent.

    `otherwise` is what to do where the Hub cannot be had at all.
    """
    with _silence():
        try:
            yield HfApi()
        except FAILURES as error:
            raise UserError(explain(error, repo.name, str(repo), repo.revision, repo.page, otherwise)) from error


@contextmanager
def _silence() -> Iterator[None]:
    """Let huggingface_hub and datasets print neither bars nor what they try again: the reporter says what is to be said."""
    bars = (
        constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled()
    )  # else the user has decided
    levels = [(library, library.get_verbosity()) for library in (hub_logging, datasets_logging)]
    shown = is_progress_bar_enabled()
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
        if shown:
            enable_datasets_bars()


def describe(api: HfApi, repo: Repo, revision: str) -> Any:
    """Return what the Hub says of a revision: its commit (`sha`) and its files (`siblings`). Not repeated where it fails."""
    wanted: dict[str, Any] = {"revision": revision, "files_metadata": True, "timeout": constants.HF_HUB_ETAG_TIMEOUT}
    return api.repo_info(repo.name, repo_type=repo.kind, **wanted)


def choose(api: HfApi, repo: Repo, commits: Iterable[str], report: Reporter) -> tuple[str, Any]:
    """Return the revision to fetch and what the Hub says of it: the first of the `commits` of this machine, else the one that was asked for.

    So all that is fetched for a branch is of one commit, until another is named.
    """
    for commit in commits:
        try:
            return commit, describe(api, repo, commit)
        except RevisionNotFoundError:
            if commit == repo.revision:
                raise
            report.notice(f"{repo.name}: the Hub has no commit {commit[:12]} any more; {repo.revision} is fetched")
    return repo.revision, describe(api, repo, repo.revision)


def newer(repo: Repo, commit: str, used: Iterable[str], setting: str) -> str:
    """Return a notice if a branch or tag has moved on from `commit` and files that are used have changed, else an empty string.

    Args:
        repo: whose revision is looked up.
        commit: what is cached and used.
        used: names of files, or patterns (`*.parquet`).
        setting: how a commit is asked for, with `{}` in its place.

    A Hub that cannot be asked is told, too: nothing else depends on its answer.
    """
    return "" if repo.pinned else _newer(repo, commit, tuple(used), setting)


@lru_cache  # a grid asks once for all its runs
def _newer(repo: Repo, commit: str, used: tuple[str, ...], setting: str) -> str:
    try:
        with asking(repo, "") as api:
            latest = describe(api, repo, repo.revision)
            if latest.sha == commit:
                return ""
            after = _contents(latest, used)
            try:
                before = _contents(describe(api, repo, commit), used)
            except RevisionNotFoundError:  # history was rewritten
                before = {}
    except UserError as error:
        return f"{repo.name}: the cached commit {commit[:12]} is used; a newer one was not looked for. {error}"
    if before == after and None not in before.values():
        return ""
    return (
        f"{repo.name}: the cached commit {commit[:12]} is used; the Hub's {repo.revision} is newer and differs. "
        f"Take it with {setting.format(latest.sha)}"
    )


def _contents(info: Any, used: tuple[str, ...]) -> dict[str, str | None]:
    """Return what identifies the content of each file that is used."""
    names = {file.rfilename: file.blob_id for file in info.siblings or []}
    return {name: blob for name, blob in names.items() if any(fnmatch(name, pattern) for pattern in used)}
