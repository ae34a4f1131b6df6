"""Print the lowest version of each dependency that pyproject.toml allows, in pip's format.

Arguments name extras to include.
"""

import re
import sys
from pathlib import Path

import tomllib  # Python 3.11

PROJECT = Path(__file__).parent.parent / "pyproject.toml"


def lower_bounds(extras: list[str]) -> list[str]:
    """Return `name==version` for each `name>=version`, and each `name==version` unchanged."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    return [re.sub(r"[>=]=", "==", requirement) for requirement in asked]


if __name__ == "__main__":
    print("\n".join(lower_bounds(sys.argv[1:])))
