"""Contents of hostile files: code in every form that a loader might run, and false headers, values and texts."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

Content = Callable[[Path], bytes]
"""`content(mark)` returns bytes that create the folder `mark` if a loader runs them."""
DEEP = "[" * 100_000
DIGITS = "9" * 5000
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**9,
    10**30,
    1e308,
    "",
    "x",
    "../../x",
    "os.system",
    [],
    ["x"],
    {},
    {"x": {"y": 1}},
)
"""Values for keys that expect different ones."""
ODD = ("NaN", "Infinity", "-Infinity", DIGITS, DEEP, "[" * 90 + "]" * 90)
"""Values that JSON does not have, or that are extreme."""


class Bomb:
    """An object that creates a folder on the machine that unpickles it."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def _torch(mark: Path) -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save({"x": Bomb(mark)}, stream)
    return stream.getvalue()


def _numpy(mark: Path) -> bytes:
    import numpy as np

    stream = io.BytesIO()
    np.save(stream, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    return stream.getvalue()


CODE: dict[str, Content] = {
    "pickle": lambda mark: pickle.dumps(Bomb(mark), 4),
    "old pickle": lambda mark: pickle.dumps(Bomb(mark), 0),
    "torch": _torch,
    "numpy": _numpy,
    "python": lambda mark: f"import os\nos.mkdir({str(mark)!r})\n".encode(),
}
"""Code in the formats that loaders of weights read."""
TAGS = ("apply:os.mkdir", "apply:os.system", "new:os.mkdir", "apply:subprocess.check_output", "apply:builtins.eval")


def _tagged(tag: str, mark: Path) -> bytes:
    return f"task: !!python/object/{tag} ['{mark}']".encode()


YAML: dict[str, Content] = {
    **{tag: partial(_tagged, tag) for tag in TAGS},
    "name": lambda mark: b"task: !!python/name:os.system",
    "module": lambda mark: b"task: !!python/module:antigravity",
    "tuple": lambda mark: b"task: !!python/tuple [1, 2]",
    "own tag": lambda mark: b"task: !evil x",
    "binary": lambda mark: b"task: !!binary c3lzdGVt",
    "set": lambda mark: b"task: !!set {a, b}",
    "laughs": lambda mark: "\n".join(
        ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))]
    ).encode(),
    "itself": lambda mark: b"train: &a {epochs: *a}",
    "merge of itself": lambda mark: b"train: &a\n  <<: *a\n",
    "merges": lambda mark: "\n".join(
        ["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 9))]
    ).encode(),
    "deep": lambda mark: DEEP.encode(),
    "flow": lambda mark: ("{a: " * 5000).encode(),
    "digits": lambda mark: f"seed: {DIGITS}".encode(),
    "sexagesimal": lambda mark: ("seed: " + "59:" * 3000 + "59").encode(),
    "twice": lambda mark: b"seed: 1\nseed: 2",
    "two documents": lambda mark: b"seed: 1\n---\nseed: 2",
    "directive": lambda mark: b"%YAML 9.9\n---\nseed: 1",
    "key": lambda mark: b"? {a: b}\n: 1",
    "null": lambda mark: b"seed: 1\x00",
    "utf-16": lambda mark: "seed: 1".encode("utf-16"),
    "tabs": lambda mark: b"train:\n\tepochs: 1",
    "huge": lambda mark: b"a: " + b"x" * 10**6,
    "jinja": lambda mark: b"task: '{{ cycler.__init__.__globals__.os.system(1) }}'",
    "path": lambda mark: b"data_dir: ../../../../etc\ntask: rte",
    "date": lambda mark: b"seed: 2001-99-99",
}
"""Texts that are not valid configurations."""


def lying(good: bytes) -> dict[str, bytes]:
    """Return safetensors files made from a valid one, each wrong in a different way."""
    (size,) = struct.unpack("<Q", good[:8])
    header, body = json.loads(good[8 : 8 + size]), good[8 + size :]
    names = [name for name in header if name != "__metadata__"]
    first, second = names[:2]

    def file(header: Any, body: bytes = body, claimed: int | None = None) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if claimed is None else claimed) + text + body

    def changed(**values: Any) -> bytes:
        return file({**header, first: {**header[first], **values}})

    start, end = header[first]["data_offsets"]
    return {
        "empty": b"",
        "seven bytes": good[:7],
        "no header": file(b""),
        "header of 2^63": file(header, claimed=2**63),
        "header of 2^40": file(header, claimed=2**40),
        "header longer than the file": file(header, claimed=len(good)),
        "short header": file(header, claimed=size // 2),
        "header of spaces": file(b" " * 10**7),
        "deep header": file(DEEP.encode()),
        "digits": file(b'{"x": ' + DIGITS.encode() + b"}"),
        "header is a list": file([]),
        "no tensors": file({}),
        "unknown type": changed(dtype="F1"),
        "other type": changed(dtype="I32"),
        "negative shape": changed(shape=[-1, 4]),
        "endless shape": changed(shape=[2**62, 8]),
        "other shape": changed(shape=list(reversed(header[first]["shape"]))),
        "reversed offsets": changed(data_offsets=[end, start]),
        "offsets beyond the end": changed(data_offsets=[start, end + 2**33]),
        "overlap": file({**header, first: header[second]}),
        "no offsets": file({**header, first: {"dtype": "F32", "shape": [1]}}),
        "name twice": file(json.dumps(header).encode()[:-1] + f', "{first}": {json.dumps(header[first])}}}'.encode()),
        "one tensor less": file({name: each for name, each in header.items() if name != second}),
        "metadata of numbers": file({**header, "__metadata__": {"a": 1}}),
        "NaN": file(header, b"\x00\x00\xc0\x7f" * (len(body) // 4)),
        "infinity": file(header, b"\x00\x00\x80\x7f" * (len(body) // 4)),
        "half of the body": file(header, body[: len(body) // 2]),
        "more than the body": file(header, body + b"x" * 100),
        "name with a path": file({**header, "../../x": header[first]}),
    }


def json_with(content: dict[str, Any], key: str, value: Any) -> bytes:
    """Return an object as JSON with a key set to another value; a value of ODD is inserted literally."""
    text = json.dumps({**content, key: "@"})
    return text.replace('"@"', value if value in ODD and isinstance(value, str) else json.dumps(value)).encode()


GGUF = {
    "empty": b"",
    "magic": b"GGUF",
    "version": b"GGUF" + struct.pack("<IQQ", 99, 1, 1),
    "tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0),
    "keys": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
    "text": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60) + b"x",
}
