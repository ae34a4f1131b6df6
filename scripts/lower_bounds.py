"""Print the lowest version of each dependency that pyproject.toml allows, as pip wants it; arguments name extras to include."""

import re
import sys
from pathlib import Path

import tomllib  # Python 3.11

PROJECT = Path(__file__).parent.parent / "pyproject.toml"


def lower_bounds(extras: list[str]) -> list[str]:
    """Return `name==version` for each `name>=version`, and `name==version` as it is."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    return [re.sub(r"[>=]=", "==", requirement) for requirement in asked]


if __name__ == "__main__":
    print("\n".join(lower_bounds(sys.argv[1:])))
