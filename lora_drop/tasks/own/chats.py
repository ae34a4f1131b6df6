"""Conversations as rows: OpenAI's `messages`, ShareGPT's `conversations`, and LLaMA-Factory's dataset_info.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_drop.errors import UserError, closest
from lora_drop.files import read_json
from lora_drop.tasks.own.tables import Row
from lora_drop.tasks.own.values import as_text, missing

Messages = list[dict[str, str]]
"""Turns, each with `role` (system, user or assistant) and `content`."""
OPENAI = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
SHAREGPT = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
"""Default columns of the alpaca format."""
REFUSED = {
    "ranking": "pairs for preference training",
    "images": "pictures",
    "videos": "videos",
    "audios": "sounds",
    "tools": "tools",
    "kto_tag": "pairs for preference training",
}
"""Settings of LLaMA-Factory that are not supported here, with their meaning."""


@dataclass(frozen=True)
class Chat:
    """The format of a conversation in a row: a list of turns in one column, or question and answer in several."""

    columns: Mapping[str, str]
    """`messages` and optionally `completion` (the turns after them) and `system`; or `prompt`, `response` and
    optionally `query`, `system`, `history`.
    """
    tags: Mapping[str, str] = field(default_factory=lambda: OPENAI)
    """Names of the keys of a turn, and of the roles."""

    @property
    def needed(self) -> list[str]:
        """The required column (`messages` or `prompt`), as a list."""
        return [self.columns[name] for name in ("messages", "prompt") if name in self.columns]

    @property
    def asked(self) -> list[str]:
        """The columns of which at least one must not be empty."""
        return [*self.needed, *([self.columns["query"]] if "query" in self.columns else [])]

    def messages(self, place: str, row: Row) -> Messages:
        """Return the turns of a row; none if it is empty. Raises UserError naming the place of a malformed turn."""
        column = self.columns.get("messages")
        turns = self._listed(place, column, row.get(column)) if column else self._questions(place, row)
        if turns and "completion" in self.columns:
            turns += self._listed(place, self.columns["completion"], row.get(self.columns["completion"]))
        system = as_text(row.get(self.columns.get("system", ""))) if "system" in self.columns else ""
        if turns and turns[0]["role"] == "assistant" and not system:  # templates need something to answer
            raise UserError(f"{place}: the first turn is the assistant's. Remove it, or put the user's turn before it.")
        return [*([{"role": "system", "content": system}] if system and turns else []), *turns]

    def _listed(self, place: str, column: str, value: Any) -> Messages:
        if isinstance(value, str) and value.strip():
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{place}, column {column!r}: not JSON ({error})") from error
        if missing(value):
            return []
        if not isinstance(value, list):
            raise UserError(f"{place}, column {column!r}: a list of turns is expected, not {type(value).__name__}")
        return [self._turn(f"{place}, column {column!r}, turn {number}", turn) for number, turn in enumerate(value, 1)]

    def _turn(self, place: str, turn: Any) -> dict[str, str]:
        role_key, content_key = self.tags["role_tag"], self.tags["content_tag"]
        if not isinstance(turn, dict) or not isinstance(turn.get(content_key), str) or role_key not in turn:
            raise UserError(f"{place}: an object with {role_key!r} and a text under {content_key!r} is expected")
        roles = {
            self.tags["user_tag"]: "user",
            self.tags["assistant_tag"]: "assistant",
            self.tags.get("system_tag", "system"): "system",
        }
        role = roles.get(str(turn[role_key]))
        if role is None:
            raise UserError(f"{place}: the role {turn[role_key]!r} must be one of {', '.join(roles)}")
        return {"role": role, "content": turn[content_key]}

    def _questions(self, place: str, row: Row) -> Messages:
        """Return the turns of the history, followed by the question and its answer."""
        columns = self.columns
        asked = [as_text(row.get(columns[name])) for name in ("prompt", "query") if name in columns]
        question = "\n".join(text for text in asked if text)
        if not question:
            return []
        turns: Messages = []
        history = row.get(columns.get("history", "")) or []
        if not isinstance(history, list):
            raise UserError(f"{place}, column {columns['history']!r}: a list of pairs is expected")
        for number, pair in enumerate(history, 1):
            if not isinstance(pair, list) or [type(part) for part in pair] != [str, str]:
                raise UserError(f"{place}, column {columns['history']!r}, pair {number}: two texts are expected")
            turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
        answer = as_text(row.get(columns["response"]))
        said = [{"role": "assistant", "content": answer}] if answer else []
        return [*turns, {"role": "user", "content": question}, *said]


def asked_and_answered(messages: Messages) -> tuple[Messages, str | None]:
    """Return the turns before the last answer, and that answer; None if the last turn is not an answer."""
    if not messages or messages[-1]["role"] != "assistant":
        return messages, None
    return messages[:-1], messages[-1]["content"]


@dataclass(frozen=True)
class Described:
    """A data set as described in dataset_info.json."""

    path: str
    split: str | None
    chat: Chat


def described(file: str, name: str) -> Described:
    """Return a data set described in LLaMA-Factory's dataset_info.json.

    Raises:
        UserError: For a name that is not in the file, or a description that is malformed or not supported.
    """
    path = Path(file).expanduser()
    known = read_json(path)
    if not isinstance(known, dict) or name not in known:
        names = list(known) if isinstance(known, dict) else []
        raise UserError(f"{path} describes no data set {name!r}.{closest(name, names)} It has: {', '.join(names)}")
    entry = known[name]
    if not isinstance(entry, dict):
        raise UserError(f"{path}, {name}: an object is expected, not {type(entry).__name__}.")
    columns, tags = _names(path, name, entry, "columns"), _names(path, name, entry, "tags")
    places = {key: entry[key] for key in ("file_name", "hf_hub_url", "subset", "split") if entry.get(key) is not None}
    for key, value in places.items():
        if not isinstance(value, str):
            raise UserError(f"{path}, {name}: {key} = {value!r} must be a text.")
    for key, what in REFUSED.items():
        if entry.get(key) or columns.get(key):
            raise UserError(f"{path}, {name}: {key} means {what}; only training on texts is supported.")
    listed = entry.get("formatting", "alpaca") == "sharegpt"
    chat = (
        Chat({"messages": "conversations", **columns}, {**SHAREGPT, **tags})
        if listed
        else Chat({**({} if columns else ALPACA), **columns})
    )
    if not listed and not {"prompt", "response"} <= set(chat.columns):
        raise UserError(f"{path}, {name}: columns must name prompt and response.")
    if "file_name" in places:
        return Described(str(path.parent / places["file_name"]), None, chat)
    if "hf_hub_url" in places:
        subset = f":{places['subset']}" if places.get("subset") else ""
        return Described(places["hf_hub_url"] + subset, places.get("split"), chat)
    raise UserError(f"{path}, {name}: file_name or hf_hub_url is needed; no other source is supported.")


def _names(path: Path, name: str, entry: Mapping[str, Any], key: str) -> dict[str, str]:
    """Return the names of columns or tags. Raises UserError if they are malformed."""
    found = entry.get(key, {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise UserError(f"{path}, {name}: {key} must be an object of names.")
    return found
