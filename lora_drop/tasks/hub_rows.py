"""Rows of a Hub data set, read and cached by `datasets.load_dataset`, each split at one recorded commit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import datasets
from datasets.naming import camelcase_to_snakecase
from datasets.packaged_modules.cache.cache import Cache
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError

from lora_drop.errors import UserError, first_line
from lora_drop.hub.commits import cached_commits, choose, tell_newer
from lora_drop.hub.repo import Repo, asking, check_revision, forbidden_by
from lora_drop.progress import Reporter
from lora_drop.tasks.base import Source

PARQUET = "refs/convert/parquet"
"""Branch with the rows of data sets whose main branch has a loading script. Loading scripts are never executed."""


@dataclass(frozen=True)
class HubRows:
    """The location of a task's rows on the Hub."""

    name: str
    configuration: str | None = None
    revision: str = "main"
    """Branch that has the rows."""

    def __str__(self) -> str:
        return f"{self.name} ({self.configuration})" if self.configuration else self.name

    def load(self, source: Source, split: str, file: str, columns: Sequence[str], advice: str = "") -> datasets.Dataset:
        """Return the rows of a split from the cache, else from the Hub, and cache them.

        Args:
            source: Defines the revision and if the Hub may be queried. The origin of the rows is added to
                `source.origins`.
            split: Name of the split on the Hub.
            file: The official file that would do instead, relative to a data folder; empty if there is none.
            columns: Required columns.
            advice: A further sentence for the message if there are no rows.

        Raises:
            UserError: If there are no rows or a column is missing, with the reason and the remedy.
        """
        repo = Repo(self.name, "dataset", check_revision(source.revision or self.revision), self.revision)
        forbidden = forbidden_by(source.offline)
        otherwise = _without_the_hub(source, file, advice)
        known = source.known.get(split, {})
        before = self._origin(repo, known.get("commit", ""), self.configuration or known.get("configuration"))
        used = known["commit"] if known and known == before else None
        commits = cached_commits(repo, used, forbidden, self._folders("*"))
        folder = next(filter(None, (self._folder(repo, commit) for commit in commits)), None)
        if folder:
            commit, rows = folder.name, self._cached(folder, split)
            told = any(origin.get("commit") == commit for origin in source.origins.values())  # by another split
            if not forbidden and not told:
                files = [f"*{self.configuration}*"] if self.configuration else ["*.parquet", "*.csv"]
                tell_newer(repo, commit, files, "data_revision=", source.report)
        elif forbidden:
            raise UserError(
                f"The {split} rows of {self} are not on this machine, and {forbidden} forbids contacting the "
                f"Hub.{self._choice(commits)} {otherwise}"
            )
        else:
            commit, rows = self._fetch(repo, commits, split, otherwise, source.report)
        missing = [name for name in columns if name not in rows.column_names]
        if missing:
            raise UserError(
                f"{self} ({split}, commit {commit[:12]}) has no column {missing[0]!r}, only {', '.join(rows.column_names)}. "
                "Name another commit with -o data_revision=COMMIT."
            )
        source.origins[split] = self._origin(repo, commit, rows.config_name)
        return rows

    def _origin(self, repo: Repo, commit: str, configuration: str | None) -> dict[str, str]:
        which = {"configuration": configuration} if configuration else {}
        return {"hub": self.name, **which, "revision": repo.revision, "commit": commit}

    def _folders(self, commit: str) -> list[Path]:
        """Return the folders of `datasets`' cache with rows of a commit: NAME/CONFIGURATION/VERSION/COMMIT."""
        *owner, name = self.name.split("/")
        place = Path(datasets.config.HF_DATASETS_CACHE, "___".join([*owner, camelcase_to_snakecase(name)]))
        return [path.parent for path in place.glob(f"{self.configuration or '*'}/*/{commit}/dataset_info.json")]

    def _folder(self, repo: Repo, commit: str) -> Path | None:
        """Return the cache folder of the configuration, which is the default one if none is named."""
        wanted = self.configuration or default_of(configurations(repo, commit))
        return next((folder for folder in self._folders(commit) if folder.parts[-3] == wanted), None)

    def _choice(self, commits: Sequence[str]) -> str:
        """Return a sentence about the configurations whose rows are on this machine; empty if there are none."""
        there = sorted({folder.parts[-3] for commit in commits for folder in self._folders(commit)})
        if not there:
            return ""
        return f" This machine has the rows of {', '.join(there)}: name one, as in {self.name}:{there[0]}."

    def _cached(self, folder: Path, split: str) -> datasets.Dataset:
        *_, configuration, version, commit = folder.parts
        name = self.name.rpartition("/")[2]
        cache = Cache(repo_id=self.name, dataset_name=name, config_name=configuration, version=version, hash=commit)
        try:
            return cast(datasets.Dataset, cache.as_dataset(split=split))
        except (OSError, ValueError) as error:
            raise UserError(
                f"The {split} rows in {folder} cannot be read ({first_line(error)}). Remove that folder and repeat."
            ) from error

    def _fetch(
        self, repo: Repo, commits: Sequence[str], split: str, otherwise: str, report: Reporter
    ) -> tuple[str, datasets.Dataset]:
        with asking(repo, otherwise) as api:
            revision, info = choose(api, repo, commits, report)
            commit = str(info.sha)
            # by the revision's name, so that the cache records its commit (even if there is no such file)
            with suppress(RemoteEntryNotFoundError):
                card = hf_hub_download(repo.name, "README.md", repo_type="dataset", revision=revision)
                commit = Path(card).parent.name
            names = configurations(repo, commit)
            if self.configuration is None and default_of(names) is None:
                raise UserError(
                    f"{self} has the configurations {', '.join(names)}, none of which is the default. Name one, as in "
                    f"{self.name}:{next(iter(names))}."
                )
            rows = datasets.load_dataset(repo.name, name=self.configuration, split=split, revision=commit)
        return commit, rows


def _without_the_hub(source: Source, file: str, advice: str) -> str:
    """Return what to do on a machine that cannot reach the Hub, in words."""
    if not file:
        return f"Without the Hub: name your own files with --data.{advice}"
    expected = (source.data_dir or Path("<data folder>")) / file
    return (
        f"Without the Hub: put the official file at {expected} and name its folder with --data-dir or LORA_DROP_DATA."
        f"{advice} Tasks that need neither: toy-nli, toy-nlg"
    )


def configurations(repo: Repo, commit: str) -> MetadataConfigs:
    """Return the configurations in the card of a commit, by name; none if it has none or is not cached."""
    card = repo.snapshot(commit) / "README.md"
    with suppress(Exception):  # the card cannot be read; `datasets` itself will report why
        if card.is_file():
            return MetadataConfigs.from_dataset_card_data(DatasetCard.load(card).data)
    return MetadataConfigs()


def default_of(names: MetadataConfigs) -> str | None:
    """Return the configuration that `load_dataset` uses if none is named; None if one must be named."""
    if not names:
        return "default"
    try:
        return names.get_default_config_name()
    except ValueError:  # several without a default
        return None
