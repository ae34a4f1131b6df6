"""Launches of several processes, forked from one that has imported everything: told their places as torchrun tells them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torture.server import Ended, preload
from torture.several import all_of, free_port, launch

ROOT = Path(__file__).parent.parent
FIRST = ["run", "-o", "backbone=tiny:roberta", "-o", "limit.train=32", "-o", "limit.eval=8", "-o", "train.epochs=1"]


class Launches:
    """The process that forks, for the time of a context: it knows one launch at a time."""

    def __init__(self, folder: Path):
        variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "scripts"), str(ROOT)])}
        self._server = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
        )

    def __enter__(self) -> Launches:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()

    def __call__(self, arguments: Sequence[str], count: int = 2, **environment: str) -> list[Ended]:
        """Run `lora-drop ARGUMENTS` in `count` processes, and return how each has ended."""
        assert self._server.stdin and self._server.stdout
        asked = {"arguments": list(arguments), "count": count, "environment": environment}
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        return [Ended(**one) for one in json.loads(self._server.stdout.readline())]


def serve(folder: Path) -> None:
    """Perform the launches that are asked for on standard input, until it ends."""
    preload([[*FIRST, "-d", folder / "first"]], folder / "log")
    from torch.distributed import TCPStore

    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        port = free_port()
        # as torchrun, this process keeps what the others know together, so that it outlives each of them
        variables = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_PORT": str(port), **asked["environment"]}
        hooks = dict.fromkeys(range(asked["count"]), partial(os.environ.update, variables))
        processes = launch(asked["arguments"], folder, hooks, asked["count"])
        store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        ended = all_of(processes, folder)
        del store
        sys.stdout.write(json.dumps([asdict(one) for one in ended]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
