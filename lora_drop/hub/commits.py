"""The commit that a name on the Hub means: what is cached is kept, and a newer one is announced.

- What is cached is used without asking, offline or not: a push to a branch must not change a run.
- All that is fetched for a branch is of one commit, until another is named.
- Where the Hub can be asked, a notice says that a branch or tag has moved on, if what is used of it has changed.
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
    """Return the commits that stand for a revision on this machine, best first.

    Args:
        repo: whose revision is meant.
        used: the commit that a run has used before: as long as it can be fetched, no other will do.
        forbidden: what forbids asking the Hub; then also others will do, which are better than nothing.
        folders: of the cache, named by their commits; one that no branch or tag refers to may be any branch.
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
    """Return the revision to fetch (one of this machine's `commits`, else the one asked for) and the Hub's answer."""
    for commit in commits:
        try:
            return commit, describe(api, repo, commit)
        except RevisionNotFoundError:
            if commit == repo.revision:
                raise
            report.notice(f"{repo.name}: the Hub has no commit {commit[:12]} any more; {repo.revision} is fetched")
    return repo.revision, describe(api, repo, repo.revision)


def tell_newer(repo: Repo, commit: str, used: Iterable[str], setting: str, report: Reporter) -> None:
    """Tell if a branch or tag has moved on from `commit` and files that are used have changed.

    Args:
        repo: whose revision is looked up.
        commit: what is cached and used.
        used: names of files, or patterns (`*.parquet`).
        setting: the configuration key that a newer commit is named with, and what stands before the commit.
        report: told also if the Hub cannot be asked: nothing else depends on its answer.
    """
    if repo.pinned or report is SILENT:
        return
    notice = _newer(repo, commit, tuple(used), setting)
    if notice:
        report.notice(notice)


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
        f"Take it with -o {setting}{latest.sha}"
    )


def _contents(info: Any, used: tuple[str, ...]) -> dict[str, str | None]:
    """Return what identifies the content of each file that is used."""
    names = {file.rfilename: file.blob_id for file in info.siblings or []}
    return {name: blob for name, blob in names.items() if any(fnmatch(name, pattern) for pattern in used)}
