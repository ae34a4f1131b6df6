"""Fetch a model from the Hub into a local folder: configuration, tokenizer and safetensors at one commit.

transformers then reads that folder and never contacts the Hub itself. So exactly the located model is loaded, and
failures occur before work starts.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from lora_drop.errors import UserError
from lora_drop.hub.commits import cached_commits, choose, tell_newer
from lora_drop.hub.repo import Repo, asking, forbidden_by
from lora_drop.models.base import Request
from lora_drop.models.content import sha256_of_all
from lora_drop.progress import Reporter

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER = re.compile(
    r"tokenizer.*\.json|special_tokens_map\.json|added_tokens\.json|.*vocab.*\.(json|txt)|merges\.txt|dict\.txt|tekken\.json|byte_maps\.json"
    r"|emoji\.json|word_.*\.json|normalizer\.json|chat_template\.jinja|.*\.(model|codes|tiktoken|tokenizer)"
)
"""File names of transformers' tokenizers."""
SAME_WITH_ANY_READER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    "chat_template.jinja",
)
"""If there is a tokenizer.json, these decide the tokens, and every program that loads the tokenizer fetches them."""
OTHERWISE = "Without the Hub: a packaged backbone (packaged:minilm-l6) or a folder."


@dataclass(frozen=True)
class HubModel:
    """The location and identity of a model's files."""

    repo: Repo
    commit: str

    @property
    def folder(self) -> Path:
        """The folder of the Hub's cache that holds the files."""
        return self.repo.snapshot(self.commit)

    @property
    def origin(self) -> dict[str, str]:
        """The model's entry in `run.json`."""
        return {"hub": self.repo.name, "revision": self.repo.revision, "commit": self.commit}

    @property
    def identity(self) -> str:
        """A digest of the loaded files' content, which does not depend on the README, the branch or the machine."""
        return sha256_of_all(self.folder / name for name in loaded_files(self.folder))


def locate_model(name: str, request: Request) -> HubModel:
    """Find a model on this machine, or else fetch it.

    Args:
        name: `organisation/name` or `organisation/name@revision`. Without a revision, and for a branch or a tag, the
            cached commit is used.
        request: options for locating it; weights include the tokenizer.

    Raises:
        UserError: with the reason and the remedy, if the model is not on this machine and cannot be fetched, or is not
            a transformers model in safetensors.
    """
    repo, known, weights = Repo.parse(name), request.known, request.weights
    forbidden = forbidden_by(request.offline)
    before = (known or {}).get("commit", "")
    used = before if before and HubModel(repo, before).origin == known else None
    commits = cached_commits(repo, used, forbidden, (repo.cache / "snapshots").glob("*"))
    commit = next((commit for commit in commits if not missing(repo.snapshot(commit), weights)), None)
    if commit is None:
        if forbidden:
            raise UserError(_absent(repo, commits, weights, forbidden))
        return HubModel(repo, _fetch(repo, commits, weights, request.report))
    found = HubModel(repo, commit)
    if weights and not forbidden:
        tell_newer(repo, commit, loaded_files(found.folder), f"backbone={repo.name}@", request.report)
    return found


def missing(folder: Path, weights: bool) -> str:
    """Return the first file that a model in `folder` lacks, or an empty string."""
    if not (folder / CONFIG).is_file():
        return CONFIG
    if not weights:
        return ""
    names = _names(folder)
    lacking = [name for name in _weight_files(names, folder) or [WEIGHTS] if not (folder / name).is_file()]
    return lacking[0] if lacking else "" if tokenizer_files(names) else "the tokenizer"


def _absent(repo: Repo, commits: Iterable[str], weights: bool, forbidden: str) -> str:
    started = next((commit for commit in commits if (repo.snapshot(commit) / CONFIG).is_file()), None)
    state = f"only in part ({missing(repo.snapshot(started), weights)} is missing)" if started else "not"
    return (
        f"The backbone {repo.name}{'' if repo.revision == 'main' else '@' + repo.revision} is {state} on this "
        f"machine, and {forbidden} forbids contacting the Hub. Connect once so that it is cached. {OTHERWISE}"
    )


def _fetch(repo: Repo, commits: Sequence[str], weights: bool, report: Reporter) -> str:
    """Fetch the required files that are not cached yet, and return the commit."""
    began = time.perf_counter()
    with asking(repo, OTHERWISE) as api:
        revision, info = choose(api, repo, commits, report)
        names = [file.rfilename for file in info.siblings or []]
        _check(repo, names, weights)
        commit = Path(hf_hub_download(repo.name, CONFIG, revision=revision)).parent.name
        if not weights:
            return commit
        report.start("fetch")
        if WEIGHTS not in names:
            hf_hub_download(repo.name, INDEX, revision=commit)
        weight_files = _weight_files(names, repo.snapshot(commit))
        files = [CONFIG, *tokenizer_files(names), *weight_files]  # weights last: if they are there, so is everything
        for number, name in enumerate(files):
            report.advance(number, len(files), name)
            hf_hub_download(repo.name, name, revision=commit)
    megabytes = sum((repo.snapshot(commit) / name).stat().st_size for name in files) / 1e6
    note = f"{repo.name}, commit {commit[:12]}: {len(files)} files, {megabytes:,.1f} MB"
    report.finish("fetch", time.perf_counter() - began, note)
    return commit


def _check(repo: Repo, names: Sequence[str], weights: bool) -> None:
    """Raise UserError if a repository, judged by its file names, holds no model that can be loaded."""
    if CONFIG not in names:
        adapter = (
            " It contains an adapter: name the model that the adapter was trained on."
            if "adapter_config.json" in names
            else ""
        )
        raise UserError(f"{repo.name} holds no transformers model: it has no {CONFIG}.{adapter} {repo.page}")
    if weights and WEIGHTS not in names and INDEX not in names:
        others = [name for name in names if re.search(r"\.(bin|pt|pth|ckpt|h5|msgpack|gguf|safetensors)$", name)]
        found = f"only {', '.join(others[:3])}" if others else "no weights at all"
        raise UserError(
            f"{repo.name} has no {WEIGHTS}: {found}. Other formats may execute code when loaded; convert it first, or look for a "
            f"revision that is converted (org/name@refs/pr/NUMBER): {repo.page}/discussions"
        )


def loaded_files(folder: Path) -> list[str]:
    """Return the names of the files in `folder` that decide what is loaded."""
    names = _names(folder)
    tokens = sorted(tokenizer_files(names))
    if "tokenizer.json" in names:
        tokens = [name for name in tokens if name in SAME_WITH_ANY_READER]
    return [CONFIG, *tokens, *_weight_files(names, folder)]


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def tokenizer_files(names: Iterable[str]) -> list[str]:
    """Return those of a folder's files that are a tokenizer's."""
    return [name for name in names if "/" not in name and TOKENIZER.fullmatch(name)]


def _weight_files(names: Sequence[str], folder: Path) -> list[str]:
    """Return the single weights file, or else the index and the files that it names."""
    if WEIGHTS in names or not (folder / INDEX).is_file():
        return [WEIGHTS] if WEIGHTS in names else []
    try:
        index: Any = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        named = sorted(set(index["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(
            f"{folder / INDEX} is not the index of a model ({type(error).__name__}). Remove it and repeat."
        ) from error
    for name in named:
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise UserError(f"{folder / INDEX} names {name!r}, which is not a file in its folder.")
    return [INDEX, *named]
