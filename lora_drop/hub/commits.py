"""Resolution of a name on the Hub to a commit. Cached commits stay in use; newer ones are announced.

- Cached files are used without querying the Hub, offline or not: a push to a branch must not change a run.
- Everything fetched for a branch belongs to one commit, until another one is named.
- If the Hub can be queried, a notice says that a branch or tag has moved on and files in use have changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import RevisionNotFoundError

from lora_drop.errors import UserError
from lora_drop.hub.repo import Repo, asking, describe
from lora_drop.progress import SILENT, Reporter


def cached_commits(repo: Repo, used: str | None, forbidden: str, folders: Iterable[Path]) -> list[str]:
    """Return the local commits for a revision, best first.

    Args:
        repo: The repository, at the revision in question.
        used: The commit that a run used before. As long as it can be fetched, no other is accepted.
        forbidden: The option or variable that forbids querying the Hub; then other commits are accepted, too.
        folders: Cache folders named by their commits. One that no branch or tag refers to could be of any branch.
    """
    if repo.pinned or (used and not forbidden):
        return [used or repo.revision]
    path = repo.cache / "refs" / repo.revision
    noted = path.read_text(encoding="utf-8").strip() if path.is_file() else None
    commits = [commit for commit in (used, noted) if commit]
    if forbidden and not noted and repo.revision == repo.usual:
        refs = (file for file in (repo.cache / "refs").rglob("*") if file.is_file())
        named = {file.read_text(encoding="utf-8").strip() for file in refs}
        latest = sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)
        commits += [folder.name for folder in latest if folder.name not in named]
    return commits


def choose(api: HfApi, repo: Repo, commits: Iterable[str], report: Reporter) -> tuple[str, Any]:
    """Return the revision to fetch (one of the local `commits`, else the one asked for) and the Hub's description."""
    for commit in commits:
        try:
            return commit, describe(api, repo, commit)
        except RevisionNotFoundError:
            if commit == repo.revision:
                raise
            report.notice(
                f"{repo.name}: the Hub no longer has commit {commit[:12]}; {repo.revision} is fetched instead"
            )
    return repo.revision, describe(api, repo, repo.revision)


def tell_newer(repo: Repo, commit: str, used: Iterable[str], setting: str, report: Reporter) -> None:
    """Report if a branch or tag has moved on from `commit` and files in use have changed.

    Args:
        repo: The repository, at the branch or tag to look up.
        commit: The cached commit in use.
        used: Names of files in use, or patterns (`*.parquet`).
        setting: The configuration setting for a newer commit, up to the commit (`data_revision=`).
        report: Receives the notice, also if the Hub cannot be queried; nothing else depends on the answer.
    """
    if repo.pinned or report is SILENT:
        return
    notice = _newer(repo, commit, tuple(used), setting)
    if notice:
        report.notice(notice)


@lru_cache  # one query for all runs of a grid
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
        return f"{repo.name}: the cached commit {commit[:12]} is used, without looking for a newer one. {error}"
    if before == after and None not in before.values():
        return ""
    return (
        f"{repo.name}: the cached commit {commit[:12]} is used; the Hub's {repo.revision} is newer and differs. To "
        f"use it: -o {setting}{latest.sha}"
    )


def _contents(info: Any, used: tuple[str, ...]) -> dict[str, str | None]:
    """Return the blob id of each file in use, which identifies its content."""
    names = {file.rfilename: file.blob_id for file in info.siblings or []}
    return {name: blob for name, blob in names.items() if any(fnmatch(name, pattern) for pattern in used)}
