"""A disk cache of tokenised rows, by the hash of everything that decides them: a machine tokenises the same rows once.

`datasets` writes and maps the Arrow file of an entry, `KEY.arrow`. `KEY.json` beside it holds the file's digest, which
reveals damage, and the notices for the user about the rows (how many were cut). A cache that cannot be read or written
is not an error; the rows are then tokenised without it. Entries are never removed. `lora-drop doctor` shows the size of
the folder, which may be deleted at any time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from lora_drop.config.schema import Config
from lora_drop.files import ABANDONED_S, cache_root, digest, file_digest, replacing, sweep, write_json
from lora_drop.progress import Reporter
from lora_drop.provenance import versions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_drop.data.sentences import Encoded

CODE = ("data/sentences.py", "data/completions.py", "data/chats.py", "data/token_cache.py", "evaluation/kinds.py")
"""The files that decide the content and format of entries. Entries written by other code are not used."""
PACKAGES = ("transformers", "tokenizers", "datasets")


def cache_folder() -> Path | None:
    """Return the folder `tokens` in the user's cache (`files.cache_root`), or None for a user without a home."""
    root = cache_root()
    return root / "tokens" if root else None


def entry_key(
    rows: str, what: str, causal: bool, tokenizer: PreTrainedTokenizerBase, backbone: str, config: Config
) -> str:
    """Return the hash of everything that decides tokenised rows.

    Args:
        rows: digest of the rows' content.
        what: name of the rows in messages (`runs.rows.Part`): "training", "held-out" or "evaluation".
        causal: True if the backbone generates texts, False if it classifies them.
        tokenizer: the tokenizer, which counts by its content.
        backbone: identity of the backbone.
        config: the configuration, of which `train.max_length` and `generation.max_new_tokens` count.
    """
    lengths = [config.train.max_length, config.generation.max_new_tokens]
    code = [file_digest(Path(__file__).parents[1] / name) for name in CODE]
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
    """Return everything that decides a tokenizer's output, as JSON-like values, without its last call's padding and
    truncation."""
    settings = [
        type(tokenizer).__name__,
        tokenizer.model_input_names,
        tokenizer.padding_side,
        tokenizer.truncation_side,
        tokenizer.special_tokens_map,
        tokenizer.chat_template,
    ]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [*settings, tokenizer.get_vocab()]
    return [*settings, {**json.loads(backend.to_str()), "padding": None, "truncation": None}]


def kept_or_made(
    folder: Path | None, key: str, rows: Dataset, make: Callable[[], Encoded], report: Reporter
) -> Encoded:
    """Return the tokenised rows cached under `key`, or else call `make` and cache its result.

    Args:
        folder: folder of the entries; None disables the cache.
        key: see `entry_key`.
        rows: the rows to tokenise.
        make: tokenises the rows.
        report: gets a notice if the folder cannot be written.
    """
    found = _read(folder, key) if folder else None
    if found or folder is None:
        return found or make()
    encoded, notices = make()
    path = folder / f"{key}.arrow"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, ABANDONED_S)
        with replacing(path) as written:  # another process may be writing the same entry
            rows.map(
                lambda _: encoded.with_format("arrow")[:],
                batched=True,
                batch_size=len(rows),
                remove_columns=rows.column_names,
                new_fingerprint=key,
                cache_file_name=str(written),
            )
        write_json(path.with_suffix(".json"), {"digest": file_digest(path), "notices": notices})
        return _read(folder, key) or (encoded, notices)
    except OSError as error:
        report.notice(
            f"tokenised rows cannot be cached in {folder} ({error.strerror}), so each command tokenises them again. "
            "Name another folder with LORA_DROP_CACHE"
        )
        return encoded, notices


def _read(folder: Path, key: str) -> Encoded | None:
    path = folder / f"{key}.arrow"
    try:
        entry = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if entry["digest"] != file_digest(path):
            return None
        return Dataset.from_file(str(path)), entry["notices"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # missing or damaged
        return None
