"""The paper's published values: `published.yaml`, beside this file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml


@cache
def load_published() -> dict[str, Any]:
    """Return the published rows by experiment. Each call returns the same object, which must not be changed."""
    return yaml.safe_load((Path(__file__).parent / "published.yaml").read_text(encoding="utf-8"))
