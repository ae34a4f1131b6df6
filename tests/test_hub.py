"""Backbones by their Hub id, from a Hub on this machine: fetched, found again, pinned, and every failure in a sentence."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from edits import edit_config, edit_stages
from hub_server import HubServer, Machine
from transformers import BertForMaskedLM

from lora_drop.export.card import card
from lora_drop.export.source import ExportedRun
from lora_drop.files import read_json
from lora_drop.models.backbones import locate
from lora_drop.models.content import sha256_of_all
from lora_drop.models.hub import loaded_files, tokenizer_files
from lora_drop.models.untrained import tiny_config, tiny_tokenizer
from lora_drop.runs.job import known_sources
from lora_drop.runs.store import Run

pytestmark = pytest.mark.slow

SMALL = (
    "--limit-train",
    "24",
    "--limit-eval",
    "12",
    "-o",
    "train.epochs=1",
    "-o",
    "method.name=lora",
    "--device",
    "cpu",
)
STAGES = {"train", "eval"}
FAST = {"HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}


def save_model(folder: Path, seed: int = 0, **how) -> None:
    """Save a small BERT as the Hub has them: with the head of its pretraining, without a classifier."""
    torch.manual_seed(seed)
    BertForMaskedLM(tiny_config(locate("tiny:bert"))).save_pretrained(folder, **how)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text("# A model\n")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    save_model(folder)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The Hub, the caches of this machine and the one process that most commands run in."""
    root = tmp_path_factory.mktemp("hub")
    with HubServer(root) as hub, Machine(hub.env(root / "home", **FAST)) as machine:
        yield hub, machine


@pytest.fixture
def hub(served):
    hub = served[0]
    for memory in (hub.faults, hub.requests, hub.readers, hub.gated, hub.renamed):
        memory.clear()
    return hub


@pytest.fixture
def machine(served):
    return served[1]


@pytest.fixture
def model(hub, template):
    """The folder of a model of the Hub that no other test has; its Hub id is `name`."""
    number = len(list((hub.root / "models" / "acme").glob("model-*")))
    return shutil.copytree(template, hub.root / "models" / "acme" / f"model-{number}")


@pytest.fixture
def name(model):
    return f"acme/{model.name}"


@pytest.fixture
def sample(name, tmp_path):
    """The cheapest command that needs the whole model."""
    return ("sample", "-d", tmp_path / "run", "--limit-train", "24", "-o", "offline=false", "-o", f"backbone={name}")


@pytest.fixture
def run(name, tmp_path):
    return ("run", "-d", tmp_path / "run", *SMALL, "-o", "offline=false", "-o", f"backbone={name}")


def skipped(outcome) -> set[str]:
    """The stages that a run has not repeated."""
    assert outcome.code == 0, outcome.err
    return {line.split()[0] for line in outcome.err.splitlines() if " skipped " in line}


def manifest(tmp_path) -> dict:
    return read_json(tmp_path / "run" / "run.json")


def sources(tmp_path) -> dict:
    return known_sources(Run(tmp_path / "run"))


def weights(tmp_path) -> set[str]:
    return {stage["weights"] for stage in manifest(tmp_path)["stages"].values()}


def test_it_is_fetched_once(hub, machine, name, run, tmp_path):
    first = hub.commit("models", name)
    done = machine(*run)
    assert f"{name}, commit {first[:12]}: 4 files" in done.err and not skipped(done)
    assert sources(tmp_path) == {"backbone": {"hub": name, "revision": "main", "commit": first}}
    assert read_json(tmp_path / "run" / "adapter" / "adapter_config.json")["base_model_name_or_path"] == name
    assert card(ExportedRun.open(tmp_path / "run"), "peft", "").count(f'revision="{first}"') == 1
    assert len(hub.asked("GET .*(resolve|_large)")) == 4  # no README, and nothing twice
    hub.requests.clear()
    assert skipped(machine(*run, "--offline")) == STAGES and hub.asked() == []


def test_a_new_readme_changes_nothing(hub, machine, model, run):
    machine(*run)
    (model / "README.md").write_text("# A model, explained\n")
    hub.requests.clear()
    read = machine(*run)
    assert skipped(read) == STAGES and "newer" not in read.err
    assert len(hub.asked("GET /api/")) == len(hub.asked()) == 2  # what is there now, and what was there before


def test_new_weights_are_told_and_taken_when_asked_for(hub, machine, model, name, run, tmp_path):
    machine(*run)
    before = sources(tmp_path), weights(tmp_path)
    save_model(model, seed=1)
    commit = hub.commit("models", name)
    kept = machine(*run)
    assert skipped(kept) == STAGES and f"To use it: -o backbone={name}@{commit}" in kept.err
    assert (sources(tmp_path), weights(tmp_path)) == before
    assert not skipped(machine(*run, "-o", f"backbone={name}@{commit}"))
    assert sources(tmp_path)["backbone"]["commit"] == commit
    assert weights(tmp_path).isdisjoint(before[1])


@pytest.mark.parametrize(
    ("environment", "note", "why"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "", "HF_HUB_OFFLINE forbids contacting the Hub"),
        (
            {"HF_ENDPOINT": "http://127.0.0.1:9"},
            "without looking for a newer one. The Hub cannot be reached",
            "cannot be reached",
        ),
        (
            {"HF_ENDPOINT": "hub.local"},
            "without looking for a newer one. The Hub cannot be reached",
            "HF_ENDPOINT is wrong",
        ),
    ],
    ids=["forbidden", "no-network", "no-address"],
)
def test_without_the_hub(hub, machine, name, run, sample, tmp_path, environment, note, why):
    machine(*run)
    with Machine(hub.env(hub.root / "home", **environment)) as alone:
        kept = alone(*run)
        assert skipped(kept) == STAGES and note in kept.err and (f"note: {name}" in kept.err) == bool(note)
        assert alone("params", "--backbone", name).code == 0
        lacking = alone(*sample, "-o", "backbone=acme/other")
        assert lacking.code == 2 and why in lacking.err and "packaged:minilm-l6" in lacking.err


def test_the_same_content_is_the_same_backbone_wherever_it_is(hub, machine, model, name, run, tmp_path):
    first = hub.commit("models", name)
    machine(*run)
    (model / "README.md").write_text("# Another commit\n")
    copy = shutil.copytree(model, model.with_name(f"copy-of-{model.name}"))
    assert skipped(machine(*run, "-o", f"backbone=acme/{copy.name}")) == STAGES
    hub.requests.clear()
    with Machine(hub.env(tmp_path / "home")) as elsewhere:  # the run has moved to a machine without the model
        edit_config(tmp_path / "run", lambda text: text.replace(f"acme/{copy.name}", name))

        def moved(_name, entry):
            entry |= json.loads(json.dumps(entry).replace(f"acme/{copy.name}", name))
            entry["sources"]["backbone"]["commit"] = first

        edit_stages(tmp_path / "run", moved)
        assert skipped(elsewhere(*run)) == STAGES
    assert len(hub.asked(f"GET /{name}/resolve/{first}/")) == 3  # the commit that the run had before, not the newest


def test_a_cache_that_others_filled_is_used(hub, machine, name, sample):
    """A download by commit leaves no note of what "main" was."""
    load = f"import transformers; transformers.{{}}.from_pretrained('{name}', revision='{hub.commit('models', name)}')"
    for kind in ("AutoModel", "AutoTokenizer"):
        fetched = machine.python(load.format(kind))
        assert fetched.code == 0, fetched.err
    hub.requests.clear()
    assert machine(*sample, "--offline").code == 0 and hub.asked() == []


def test_revisions_and_sharded_weights(hub, machine, model, name, sample):
    tagged = model.with_name(f"{model.name}@v1.0")
    save_model(tagged, seed=2, max_shard_size="40KB")
    counted = machine("params", "--backbone", name, "--json")
    assert counted.code == 0 and json.loads(counted.out)["methods"]["lora"]["adapter"] == 4096
    assert not hub.asked("safetensors|tokenizer")  # the configuration is enough

    assert machine(*sample, "-o", f"backbone={name}@v1.0").code == 0
    assert len(hub.asked("GET /_large/")) == len(list(tagged.glob("*.safetensors"))) > 1
    assert machine(*sample, "-o", f"backbone={name}@v1.0", "--offline").code == 0
    partly = machine(*sample, "--offline")  # of the branch, not of the tag
    assert partly.code == 2 and "only in part (model.safetensors is missing)" in partly.err


def test_the_bare_names_of_the_first_models(hub, machine, name, sample):
    hub.renamed["tiny-bert"] = name
    old = machine(*sample, "-o", "backbone=tiny-bert")
    assert old.code == 0, old.err
    assert machine(*sample, "-o", "backbone=tiny-bert", "--offline").code == 0


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("{name}@v2", "has no revision 'v2' on the Hub"),
        ("{name}@", "'' is not a revision"),
        ("{name}@a..b", "'a..b' is not a revision"),
        ("tiny-bird", "has no model tiny-bird, or it is private"),
        ("a--b/c", "neither a folder nor a name on the Hub"),
        ("a/b/c", "The backbone folder a/b/c does not exist"),
    ],
)
def test_wrong_names(machine, name, sample, given, text):
    wrong = machine(*sample, "-o", f"backbone={given.format(name=name)}")
    assert wrong.code == 2 and text in wrong.err, wrong.err


def test_who_may_read_what(hub, machine, name, sample, tmp_path):
    hub.readers[name] = {"hf_good"}
    stranger = machine(*sample)
    assert (
        stranger.code == 2 and "private and you are not logged in" in stranger.err and "hf auth login" in stranger.err
    )
    assert "your token may not read it" in machine(*sample, HF_TOKEN="hf_bad").err
    hub.readers.clear()
    hub.gated[name] = {"hf_good"}
    assert "Log in with `hf auth login` (or set HF_TOKEN), and accept them at" in machine(*sample).err
    refused = machine(*sample, HF_TOKEN="hf_bad")
    assert refused.code == 2 and f"Accept them at {hub.url}/{name}" in refused.err
    allowed = machine(*sample, HF_TOKEN="hf_good")
    assert allowed.code == 0, allowed.err
    assert hub.asked("GET /_large/") and hub.leaks() == []
    written = [path.read_text() for path in (tmp_path / "run").iterdir() if path.is_file()]
    assert "hf_good" not in "".join([*written, allowed.err])


INVALID = {"X-Error-Message": "Invalid credentials in Authorization header"}


@pytest.mark.parametrize(
    ("match", "what", "text"),
    [
        ("GET /api/", {"status": 401, "headers": INVALID}, "does not accept your token (401) for the model {name}"),
        ("GET /api/", {"status": 403}, "denies you access to the model {name} (403"),
        (
            "GET /api/",
            {"status": 429, "headers": {"Retry-After": "120"}},
            "(429, too many requests): 120 seconds. Wait",
        ),
        ("GET /api/", {"status": 500}, "has an internal error (500) and cannot provide the model {name}"),
        ("GET /api/", {"status": 418}, "does not provide the model {name} (418"),
        ("GET /api/", {"status": 200, "text": "<html>"}, "is not from the Hub: it is a login page of the network"),
        ("GET /api/", {"status": 200, "text": "[]"}, "is not from the Hub"),
        ("GET /api/", {"delay": 3}, "has not answered in time (ReadTimeout) for the model {name}"),
        ("GET /api/", {"cut": 5}, "The transfer of the model {name} was interrupted (RemoteProtocolError)"),
        ("HEAD .*config.json", {"status": 403}, "denies you access to the model {name} (403"),
        ("HEAD .*tokenizer.json", {"status": 403}, "denies you access to the model {name} (403"),
        ("HEAD .*safetensors", {"status": 403}, "denies you access to the model {name} (403"),
        ("GET /_large/", {"status": 503}, "has an internal error (503) and cannot provide the model {name}"),
        ("GET /_large/", {"cut": 0}, "The transfer of the model {name} was interrupted (RemoteProtocolError)"),
    ],
)
def test_what_goes_wrong_is_said_and_the_same_command_goes_on(hub, machine, model, sample, tmp_path, match, what, text):
    hub.fault(match, **what)
    wrong = machine(*sample)
    assert wrong.code == 2 and text.format(name=f"acme/{model.name}") in wrong.err, wrong.err
    (said,) = [line for line in wrong.err.splitlines() if "  …  " not in line]  # that is what takes long
    assert said.startswith("Error: ")
    hub.faults.clear()
    assert machine(*sample).code == 0


def test_a_transfer_that_is_cut_off_is_resumed(hub, machine, model, sample):
    """A recent huggingface_hub does it by itself, an older one with the next command."""
    hub.fault("GET /_large/", cut=1000, times=2)
    assert [machine(*sample).code for _ in range(3)][-1] == 0
    assert len(hub.asked("GET /_large/")) == 3


def test_repositories_without_a_model_that_can_be_loaded(hub, machine, model, name, sample, tmp_path):
    def broken(title: str) -> Path:
        return shutil.copytree(model, model.with_name(title))

    (broken("pickled") / "model.safetensors").rename(model.with_name("pickled") / "pytorch_model.bin")
    (broken("empty") / "model.safetensors").unlink()
    (broken("adapter") / "config.json").rename(model.with_name("adapter") / "adapter_config.json")
    (broken("damaged") / "model.safetensors").write_bytes(b"no tensors")
    marker, coded = tmp_path / "executed", broken("coded")
    classes = {"AutoConfig": "custom.Custom", "AutoModelForSequenceClassification": "custom.Model"}
    config = {**read_json(model / "config.json"), "model_type": "custom", "auto_map": classes}
    (coded / "config.json").write_text(json.dumps(config))
    (coded / "custom.py").write_text(f"open({str(marker)!r}, 'w')\n")
    for title, text in (
        ("pickled", "has no model.safetensors: only pytorch_model.bin. Other formats may execute code"),
        ("empty", "has no model.safetensors: no weights at all"),
        ("adapter", "It contains an adapter: name the model that the adapter was trained on."),
    ):
        wrong = machine(*sample, "-o", f"backbone=acme/{title}")
        assert wrong.code == 2 and text in wrong.err, wrong.err
    wrong = machine(*sample, "-o", "backbone=acme/coded")
    assert wrong.code == 2 and "comes with its own code, which is never executed" in wrong.err, wrong.err
    assert machine(*sample, "-o", "backbone=acme/damaged").code == 0
    wrong = machine("score", "-d", tmp_path / "run")
    assert wrong.code == 2 and "cannot be loaded" in wrong.err and "Traceback" not in wrong.err, wrong.err
    assert not marker.exists() and hub.asked("pytorch_model|custom.py") == []


def test_the_cache_may_hold_links_or_files(template, tmp_path):
    """Files of the Hub's cache are links to blobs, but not on every system."""
    weights = (template / "model.safetensors").read_bytes()
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(loaded_files(template)) == names
    assert tokenizer_files(["chat_template.jinja", "README.md", *names]) == ["chat_template.jinja", *names[2:]]

    def content(folder: Path) -> str:
        return sha256_of_all(folder / name for name in names)

    linked = shutil.copytree(template, tmp_path / "snapshots" / "commit")
    blob = tmp_path / "blobs" / hashlib.sha256(weights).hexdigest()
    blob.parent.mkdir()
    (linked / "model.safetensors").rename(blob)
    (linked / "model.safetensors").symlink_to(Path("..", "..", "blobs", blob.name))
    assert content(linked) == content(template)
    other = shutil.copytree(template, tmp_path / "other")
    (other / "model.safetensors").write_bytes(weights[:-1] + b"x")
    assert content(other) != content(template)


def test_parameters_of_a_folder_need_no_weights(template, tmp_path, capsys):
    from lora_drop.cli import app as cli

    shutil.copy(template / "config.json", tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(["params", "--backbone", str(tmp_path), "--json"])
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["methods"]["lora"]["adapter"] == 4096
    with pytest.raises(SystemExit) as end:
        cli.main(["sample", "-d", str(tmp_path / "run"), "-o", f"backbone={tmp_path}"])
    assert end.value.code == 2 and "holds no .safetensors weights" in capsys.readouterr().err
