"""The documentation is run."""

import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from models import backbone
from typer.main import get_command

from lora_drop.cli.app import app
from lora_drop.config.schema import Config
from lora_drop.config.strict import flatten
from lora_drop.pruning.sharing import ties

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(tmp_path):
    model, tokenizer = backbone("tiny:bert")
    model.save_pretrained(tmp_path)
    batch = dict(tokenizer(["a first sentence", "a second one", "third"], padding=True, return_tensors="pt"))
    names = {"folder": tmp_path, "batches": [{**batch, "labels": torch.tensor([0, 1, 0])}] * 4}
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(example, names)
    selection = names["selection"]
    assert len(ties(names["model"])) == sum(len(layers.shared) > 1 for layers in selection.projections.values())


def test_every_link_leads_somewhere():
    for text in (README, *(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert (ROOT / target).exists() or (ROOT / "docs" / target).exists(), target


def test_every_command_option_and_key_that_a_page_names_exists():
    commands = get_command(app).commands
    options = {
        name: {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"--help"}
        for name, command in commands.items()
    }
    keys, seen = flatten(Config), set()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"(?:^\$ |`)lora-drop (?:--plugin \S+ )?([a-z]+\b[^`\n#|]*)", text, re.MULTILINE):
            name, *words = line.split()
            assert name in commands, (path.name, line)
            named = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
            assert named <= options[name], (path.name, line, named - options[name])
            given = re.findall(r"(?:-o|--set) ([a-z_.]+)=", line)
            assert set(given) <= set(keys), (path.name, line)
            seen |= {name, *named, *given}
    assert {"--run-dir", "-o", "method.threshold"} <= seen and set(commands) - seen <= {"train"}


def test_the_configuration_reference_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts" / "make_docs.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == script.render(), (
        "run scripts/make_docs.py"
    )


def test_no_tracked_file_holds_a_merge_conflict():
    if not (ROOT / ".git").exists():
        pytest.skip("needs a checkout: git lists the files")
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, check=True).stdout
    marker = re.compile(rb"^(?:<{7}|>{7}|\|{7}) |^={7}$", re.MULTILINE)
    assert marker.search(b"\n" + b"=" * 7 + b"\n") and not marker.search(b"\n" + b"=" * 8 + b"\n")
    names = [ROOT / os.fsdecode(name) for name in listed.split(b"\0") if name]
    assert [path for path in names if path.is_file() and marker.search(path.read_bytes())] == []


def test_the_measured_table_is_that_of_its_records():
    lines = (ROOT / "results" / "README.md").read_text(encoding="utf-8").splitlines()
    records = [
        json.loads(path.read_text(encoding="utf-8"))
        for folder in ("readme", "demo")
        for path in sorted((ROOT / "results" / folder).glob("*/*.json"))
    ]
    assert records
    for record in records:
        title = {"lora": "LoRA", "lora_drop": "LoRA-drop"}[record["row"]]
        score = f"{record['metrics'][record['primary']]:.3f}"
        cells = [record["task_title"], f"{record['examples']:,}", title, f"{record['parameters']['adapter']:,}", score]
        rows = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("|")]
        assert any(all(cell in row for cell in cells) for row in rows), cells
