"""The house: which folder imports which. No circle, no arrow up; `python tests/test_house.py` prints the floors."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent / "lora_drop"
FLOORS = 10
"""Rooms on top of each other: a folder, or a file of the root, is one."""


@cache
def modules() -> dict[str, Path]:
    names = {
        path: ".".join(("lora_drop", *path.relative_to(ROOT).with_suffix("").parts)) for path in ROOT.rglob("*.py")
    }
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def room(module: str) -> str:
    """The folder of a module, or the module itself in the root."""
    part = module.split(".")[1] if "." in module else "lora_drop"
    return f"{part}/" if (ROOT / part).is_dir() else part


@cache
def imports() -> dict[str, set[str]]:
    """Rooms that each room imports, also inside functions and for types alone."""
    found: dict[str, set[str]] = {room(module): set() for module in modules()}
    for module, path in modules().items():
        for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(statement, ast.ImportFrom) and statement.module and statement.module.startswith("lora_drop"):
                for name in statement.names:
                    full = f"{statement.module}.{name.name}"
                    found[room(module)].add(room(full if full in modules() else statement.module))
        found[room(module)] -= {room(module)}
    return found


def floor(name: str, above: tuple[str, ...] = ()) -> int:
    """One more than the highest floor that a room imports."""
    assert name not in above, f"a circle: {' -> '.join((*above[above.index(name) :], name))}"
    return 1 + max((floor(below, (*above, name)) for below in imports()[name]), default=0)


def test_no_room_imports_what_imports_it():
    assert max(floor(name) for name in imports()) <= FLOORS


def test_the_method_stands_on_its_own():
    assert imports()["pruning/"] == {"errors"}


if __name__ == "__main__":
    for height, name in sorted(((floor(name), name) for name in imports()), reverse=True):
        print(f"{height:>2}  {name:<12} {' '.join(sorted(imports()[name]))}")  # noqa: T201
