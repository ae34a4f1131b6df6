"""Tokenised rows, kept on disk by the hash of all that decides them: the same rows are tokenised once on a machine.

An entry is one Arrow file, `KEY-DIGEST.arrow`: KEY is the hash of what its rows were made from, DIGEST that of its content, so that a damaged
file is recognised. What the user is to know about the rows (how many were cut) is in the file's metadata. A cache that cannot be read or
written is no error: the rows are then tokenised as if there were none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
from datasets import Dataset

from lora_drop.config import Config
from lora_drop.progress import Reporter
from lora_drop.runs import digest, file_digest, versions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_drop.kinds import Encoded

LIMIT = 2 * 2**30
"""Bytes that are kept; what was not used for longest goes first."""
CODE = ("encoding.py", "completions.py", "kinds.py", "token_cache.py")
"""The files that decide what is kept, and how: an entry of other code is not found, rather than a version number forgotten."""
PACKAGES = ("transformers", "tokenizers", "datasets")
NOTICES = b"lora_drop.notices"


def cache_folder() -> Path | None:
    """Return `$LORA_DROP_CACHE`, else `lora-drop` in `$XDG_CACHE_HOME`, else in `~/.cache`; None for a user without a home."""
    own, users = os.environ.get("LORA_DROP_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(own).expanduser() if own else Path(users or "~/.cache").expanduser() / "lora-drop"
    except RuntimeError:
        return None


def entry_key(
    rows: str, what: str, causal: bool, tokenizer: PreTrainedTokenizerBase, backbone: str, config: Config
) -> str:
    """Return the hash of everything that decides tokenised rows.

    Args:
        rows: the digest of their content.
        what: "training" or "evaluation".
        causal: whether the backbone continues texts, or classifies them.
        tokenizer: by its content.
        backbone: its identity.
        config: of which `train.max_length` and `generation.max_new_tokens` count.
    """
    lengths = [config.train.max_length, config.generation.max_new_tokens]
    code = [file_digest(Path(__file__).with_name(name)) for name in CODE]
    return digest(
        rows,
        what,
        causal,
        _content(tokenizer),
        backbone,
        lengths,
        code,
        [versions(PACKAGES)[name] for name in PACKAGES],
    )


def _content(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """Return what a tokenizer does to a text, as JSON-like values; the settings for padding and cutting that its last call left are no part of it."""
    settings = [
        type(tokenizer).__name__,
        tokenizer.model_input_names,
        tokenizer.padding_side,
        tokenizer.truncation_side,
        tokenizer.special_tokens_map,
    ]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [*settings, tokenizer.get_vocab()]
    return [*settings, {**json.loads(backend.to_str()), "padding": None, "truncation": None}]


class TokenCache:
    """The entries of one folder."""

    def __init__(self, folder: Path | None, report: Reporter):
        """Keep entries in `folder`, or none if it is None; that it cannot be written is told to `report`, once."""
        self.folder, self.report = folder, report

    def encoded(self, key: str, make: Callable[[], Encoded]) -> Encoded:
        """Return the rows kept under `key` and what is to be said of them; if there are none, those that `make` returns, which are then kept."""
        found = self._read(key)
        if found is None:
            found = make()
            self._keep(key, found)
        return found

    def _read(self, key: str) -> Encoded | None:
        for path in self.folder.glob(f"{key}-*.arrow") if self.folder else ():
            with suppress(OSError):
                content = path.read_bytes()
                if path.name != _name(key, content):
                    path.unlink()
                    continue
                os.utime(path)  # used now: the last to be removed
                notices = pyarrow.ipc.open_stream(content).schema.metadata[NOTICES]
                return Dataset.from_buffer(pyarrow.py_buffer(content)), json.loads(notices)
        return None

    def _keep(self, key: str, encoded: Encoded) -> None:
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            content = _to_arrow(*encoded)
            path = self.folder / _name(key, content)
            temporary = self.folder / f".{path.name}.{os.getpid()}.tmp"
            try:
                temporary.write_bytes(content)
                temporary.replace(path)  # whole or not at all, and two processes put the same file there
            finally:
                temporary.unlink(missing_ok=True)
            _prune(self.folder, path)
        except OSError as error:
            self.report.notice(
                f"tokenised rows cannot be kept in {self.folder} ({error.strerror}); each command makes them anew. "
                "LORA_DROP_CACHE names another folder"
            )
            self.folder = None


def _name(key: str, content: bytes) -> str:
    return f"{key}-{hashlib.sha256(content).hexdigest()[:16]}.arrow"


def _to_arrow(rows: Dataset, notices: list[str]) -> bytes:
    schema = rows.features.arrow_schema
    schema = schema.with_metadata({**schema.metadata, NOTICES: json.dumps(notices)})
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, schema) as stream:
        stream.write_table(rows.with_format("arrow")[:].replace_schema_metadata(schema.metadata))
    return sink.getvalue().to_pybytes()


def _prune(folder: Path, kept: Path) -> None:
    """Remove what was not used for longest until LIMIT bytes are left; another process may be doing the same."""
    files = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            files.append((path.stat().st_mtime, path.stat().st_size, path))
    total = 0
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > LIMIT and path != kept:
            path.unlink(missing_ok=True)
