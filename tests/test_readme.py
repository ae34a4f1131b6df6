"""Every command of README.md and docs/commands.md runs, in that order, through the real command line in one folder.

Most need a model that is not on every machine, or hours: to those, options are added that make them small. Which ran as it stands and which with
what is in the name of each test (`pytest -v tests/test_readme.py`). A new line of these pages is run as it stands.
"""

import contextlib
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import own_data
import pytest
from small_files import write_e2e_submission, write_small_files

from lora_drop.cli import app as cli

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = README + (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
WRITTEN = [line.removeprefix("$ ") for line in PAGES.splitlines() if line.startswith("$ lora-drop ")]
LINES = list(dict.fromkeys(shlex.join(shlex.split(line, comments=True)) for line in WRITTEN))

ADDED = {
    "run --config glue/rte": (
        "-o backbone=tiny:roberta -o train.epochs=1",
        "RoBERTa-base is on the Hub, and takes a GPU",
    ),
    "run -c nlg/e2e -c smollm2-cpu": ("-o backbone=tiny:llama", "SmolLM2 takes minutes"),
    "sample -d runs/x -c glue/mrpc": ("-o backbone=tiny:roberta", "RoBERTa-base is on the Hub"),
    "reproduce table1 --dry-run": ("--backbone tiny:roberta --seeds 0", "RoBERTa-base is on the Hub"),
    "reproduce table6 -b packaged:minilm-l6": ("--backbone tiny:bert --seeds 0", "fifteen trainings"),
    "run --data reviews.csv": (
        "-b tiny:bert -o train.epochs=1 -o warmup.epochs=1",
        "a pretrained encoder takes minutes",
    ),
    "params --backbone FacebookAI/roberta-base": ("--backbone tiny:roberta", "RoBERTa-base is on the Hub"),
}
"""By the beginning of a command: options added at its end, where they count, and why."""


@dataclass(frozen=True)
class Performed:
    """How a command ended."""

    code: object
    told: str


def added(line: str) -> tuple[str, str]:
    """Return the options that a line is given, and why; both empty if it runs as it stands."""
    return next((what for start, what in ADDED.items() if line.startswith(f"lora-drop {start}")), ("", ""))


def name_of(line: str) -> str:
    options, reason = added(line)
    return f"{line} | with {options}: {reason}" if options else f"{line} | as it stands"


@pytest.fixture(scope="module")
def performed(tmp_path_factory) -> dict[str, Performed]:
    """All commands, performed one after the other: later ones work on what earlier ones have left."""
    folder = tmp_path_factory.mktemp("readme")
    write_small_files(folder / "data")
    write_small_files(folder / "my" / "data")
    write_e2e_submission(folder / "tgen.tsv", folder / "data")
    own_data.write(folder / "reviews.csv", own_data.reviews(40))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LORA_DROP_DATA", str(folder / "data"))
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody answers there: a test asks no server
        return {line: perform(line) for line in LINES}


def perform(line: str) -> Performed:
    words = [*shlex.split(line)[1:], *shlex.split(added(line)[0])]
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told), pytest.raises(SystemExit) as end:
        cli.main(words)
    return Performed(end.value.code, told.getvalue())


@pytest.mark.parametrize("line", LINES, ids=name_of)
def test_a_command_runs(line, performed):
    assert performed[line].code == 0, performed[line].told
    assert performed[line].told.strip() and "Traceback" not in performed[line].told


def test_what_the_pages_say_of_their_commands_is_seen(performed):
    """One look at what came out, so that commands which do nothing are noticed."""
    told = {" ".join(shlex.split(line)[1:3]): outcome.told for line, outcome in performed.items()}
    assert "LoRA-drop" in told["run -c"] and "retained in" in told["score -d"] and "100.0000" in told["eval --task"]
    assert told["run -d"].count("skipped") == 2  # sample and score stand under another threshold


def test_every_addition_belongs_to_a_command():
    unused = [start for start in ADDED if not any(line.startswith(f"lora-drop {start}") for line in LINES)]
    assert not unused, "these are on the pages no more: remove them above"


def test_every_target_of_make_in_the_readme_exists():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"(?:\$ |`)make ([a-z-]+)", README)
    assert named and set(named) <= set(targets)
