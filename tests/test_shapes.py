"""What does not fit together is refused on shapes alone: before a directory is there."""

import json
import re
import shutil

import pytest
import torch
from models import backbone
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from lora_drop.cli.app import main
from lora_drop.files import read_json
from lora_drop.registry import METHODS

pytestmark = pytest.mark.slow

SMALL = ["task=toy-nli", "limit.train=64", "limit.eval=32", "train.epochs=1", "device=cpu"]


def command(name, folder, *arguments, quiet=("-q",)):
    options = [part for override in SMALL for part in ("-o", override)]
    with pytest.raises(SystemExit) as end:
        main([name, "-d", str(folder), *quiet, *options, *arguments])
    return end.value.code


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Folders of one trained LoRA: as it is, and as other kinds of adapter would be."""
    folder = tmp_path_factory.mktemp("adapters")
    assert command("run", folder / "run", "-b", "tiny:roberta", "-o", "method.name=lora") == 0
    whole = folder / "run" / "adapter"
    others = (
        ("pissa", "init_lora_weights", "pissa"),
        ("dora", "use_dora", True),
        ("bias", "bias", "lora_only"),
        ("lora_bias", "lora_bias", True),
        ("tokens", "trainable_token_indices", [3]),
        ("rslora", "use_rslora", True),
        ("kasa", "kasa_config", {}),
        ("qalora", "use_qalora", True),
    )
    for name, key, value in others:
        shutil.copytree(whole, folder / name)
        content = {**read_json(whole / "adapter_config.json"), key: value}
        (folder / name / "adapter_config.json").write_text(json.dumps(content))
    weights = load_file(whole / "adapter_model.safetensors")
    for name, tensor in (
        ("pooler", "roberta.pooler.dense.weight"),
        ("key", "roberta.encoder.layer.0.attention.self.key"),
    ):
        shutil.copytree(whole, folder / name)
        more = {f"{tensor}.lora_A.weight": torch.ones(8, 4)} if name == "key" else {tensor: torch.ones(4, 4)}
        more = {f"base_model.model.{key}": value for key, value in more.items()}
        save_file({**weights, **more}, folder / name / "adapter_model.safetensors", metadata={"format": "pt"})
    return {"lora": whole, **{path.name: path for path in folder.iterdir() if path.name != "run"}}


@pytest.mark.parametrize(
    ("stage", "backbone", "options", "message"),
    [
        ("run", "tiny:roberta", ["--budget", "0.1"], "one shared pair in each projection already need 0.5"),
        ("run", "tiny:roberta", ["-o", "method.target_projections=[quary]"], "Did you mean 'query'"),
        ("run", "tiny:roberta", ["-o", "train.max_length=5000"], "more than this backbone's 513 positions"),
        (
            "run",
            "tiny:roberta",
            ["--compare", "adalora", "-o", "train.batch_size=64"],
            "AdaLoRA cannot prune in 1 step",
        ),
        (
            "run",
            "tiny:roberta",
            ["--compare", "tied_lora", "-o", "method.target_projections=[all-linear]"],
            "Tied-LoRA needs layers of equal widths",
        ),
        ("score", "tiny:bert", ["--adapter", "{lora}"], "holds no adapter for this model"),
        ("score", "tiny:roberta", ["--adapter", "{dora}"], "does not fit this model"),
        ("score", "tiny:roberta", ["--adapter", "{pissa}"], "moves a part of W into B A"),
        (
            "run",
            "tiny:roberta",
            ["-o", "warmup.adapter={lora}", "-o", "method.target_projections=[query]"],
            "Set method.target_projections to the adapter's (query, value)",
        ),
        (
            "run",
            "tiny:roberta",
            ["-o", "warmup.adapter={lora}", "-o", "method.rank=4"],
            "Set method.rank=8, or only score",
        ),
        ("run", "tiny:bert", ["-o", "train.start_from={lora}"], "Check that it is an adapter of this backbone"),
        ("run", "tiny:roberta", ["-o", "train.start_from={lora}", "-o", "method.rank=4"], "Set method.rank"),
        ("run", "tiny:roberta", ["-o", "train.start_from={pissa}"], "moves a part of W into B A"),
        ("run", "tiny:roberta", ["-o", "train.start_from={kasa}"], "one scaling (kasa_config)"),
        ("run", "tiny:roberta", ["-o", "train.start_from={qalora}"], "one scaling (use_qalora)"),
        ("run", "tiny:roberta", ["-o", "train.start_from={bias}"], "trained with bias='lora_only'"),
        ("run", "tiny:roberta", ["-o", "train.start_from={lora_bias}"], "trained with lora_bias=True"),
        ("run", "tiny:roberta", ["-o", "train.start_from={tokens}"], "trained with trainable_token_indices=[3]"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    stage, backbone, options, message, adapters, tmp_path, capsys
):
    folder = tmp_path / "run"
    assert command(stage, folder, "-b", backbone, *(option.format(**adapters) for option in options)) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert message in error and error.count("Error:") == 1 and not folder.exists()


def test_an_adapter_of_a_wider_model_is_named_as_one(adapters, tmp_path, capsys):
    """The same modules in number and name, of other widths."""
    folder = tmp_path / "run"
    wide = tmp_path / "wide"
    shutil.copytree(adapters["lora"], wide)
    path = wide / "adapter_model.safetensors"
    grown = {name: tensor.repeat(1, 2) if "lora_A" in name else tensor for name, tensor in load_file(path).items()}
    save_file(grown, path, metadata={"format": "pt"})
    options = ["-b", "tiny:roberta", "-o", f"train.start_from={wide}", "-o", "method.name=lora"]
    assert command("run", folder, *options) == 2
    assert "is an adapter of another backbone" in capsys.readouterr().err and not folder.exists()


def test_the_alpha_that_is_asked_for_is_the_one_that_fits(adapters, tmp_path, capsys):
    """Of an rsLoRA, whose scaling is alpha by the root of the rank."""
    options = ["-b", "tiny:roberta", "-o", f"train.start_from={adapters['rslora']}", "-o", "method.name=lora"]
    assert command("run", tmp_path / "run", *options) == 2
    asked = re.search(r"method\.alpha=(\S+)", " ".join(capsys.readouterr().err.split()))[1]
    assert float(asked) == pytest.approx(16 * 8**0.5, rel=1e-5)
    assert command("run", tmp_path / "run", *options, "-o", f"method.alpha={asked}") == 0


def test_an_adapter_with_all_biases_is_scored(tmp_path):
    """PEFT saves those of the head under several names."""
    config = LoraConfig(r=4, bias="all", init_lora_weights=False, target_modules=["query"], task_type="SEQ_CLS")
    get_peft_model(backbone("tiny:roberta")[0], config).save_pretrained(tmp_path / "all", save_embedding_layers=False)
    assert command("score", tmp_path / "run", "-b", "tiny:roberta", "--adapter", str(tmp_path / "all")) == 0
    assert len(read_json(tmp_path / "run" / "scores.json")["modules"]) == 4


def test_an_adapter_with_another_module_than_a_head_is_no_start(adapters, tmp_path, capsys):
    """Known once the weights are read: a module without pretrained ones would be a head."""
    options = ["-b", "tiny:roberta", "-o", f"train.start_from={adapters['pooler']}", "-o", "method.name=lora"]
    assert command("run", tmp_path / "run", *options) == 2
    assert "and a head (roberta.pooler.dense.weight)" in capsys.readouterr().err


def test_loras_on_other_modules_than_are_trained_are_left_out_and_said_to_be(adapters, tmp_path, capsys):
    options = ["-b", "tiny:roberta", "-o", f"train.start_from={adapters['key']}", "-o", "method.name=lora"]
    assert command("run", tmp_path / "run", *options, quiet=()) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "and its head; left out, on other modules: 1" in told


def test_a_method_that_looks_at_values_is_not_judged_by_shapes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(METHODS, "added", {})
    plugin = tmp_path / "careful.py"
    plugin.write_text(
        "from dataclasses import replace\n"
        "from lora_drop.methods.lora import METHOD as LORA\n"
        "def build(backbone, *rest):\n"
        "    assert next(backbone.parameters()).abs().max().item() > 0\n"
        "    return LORA.build(backbone, *rest)\n"
        "CAREFUL = replace(LORA, name='careful', title='Careful', build=build)\n"
    )
    options = [part for override in [*SMALL, "method.name=careful"] for part in ("-o", override)]
    with pytest.raises(SystemExit) as end:
        main(["--plugin", str(plugin), "run", "-d", str(tmp_path / "run"), "-b", "tiny:bert", *options])
    assert end.value.code == 0 and (tmp_path / "run" / "metrics.json").is_file()
    assert "it cannot be checked in advance that all parts fit together" in " ".join(capsys.readouterr().err.split())


def test_an_adapter_decides_alone_where_it_is_scored(adapters, tmp_path):
    """Its modules are in the model, what a training would look for is not."""
    projections = ["-b", "tiny:roberta", "-o", "method.target_projections=[nothing]"]
    assert command("score", tmp_path / "run", "--adapter", str(adapters["lora"]), *projections) == 0


def test_what_was_scored_at_another_rank_is_not_trained(adapters, tmp_path, capsys):
    """Stage by stage: the selection has counted the adapter's parameters."""
    run, rank = tmp_path / "run", ["-b", "tiny:roberta", "-o", "method.rank=4"]
    assert command("sample", run, *rank) == 0
    assert command("score", run, "--adapter", str(adapters["lora"]), *rank) == 0 == command("select", run)
    capsys.readouterr()
    assert command("train", run) == 2
    assert "Set method.rank=8, or score again" in " ".join(capsys.readouterr().err.split())
    assert not (run / "adapter").exists() and command("train", run, "-o", "method.rank=8") == 0
    counted = read_json(run / "selection.json")["trainable_parameters"]
    assert read_json(run / "run.json")["stages"]["train"]["trainable_parameters"]["adapter"] == counted


def test_what_fits_is_done_and_stays_usable_without_the_adapter_that_it_began_from(adapters, tmp_path, capsys):
    """As where a run is copied to another machine."""
    mine, run = shutil.copytree(adapters["lora"], tmp_path / "mine"), tmp_path / "run"
    begun = ["-b", "tiny:roberta", "-o", f"warmup.adapter={mine}", "-o", f"train.start_from={mine}"]
    assert command("run", run, *begun, "-o", "method.threshold=0.5") == 0
    assert read_json(run / "metrics.json")["examples"] == 32
    shutil.rmtree(mine)
    assert command("select", run, "-o", f"warmup.adapter={tmp_path / 'typo'}") == 2
    assert command("eval", run, "-o", "limit.eval=16") == 0 and command("select", run, "--budget", "0.7") == 0
    assert read_json(run / "metrics.json")["examples"] == 16
    capsys.readouterr()
    assert (
        command("train", run, "--budget", "0.7") == 2 and "neither a PEFT adapter nor a run" in capsys.readouterr().err
    )


def test_an_adapter_for_other_labels_is_named_as_one(adapters, tmp_path, capsys):
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"a text of {n} words,{'abcde'[n % 5]}\n" for n in range(60)))
    given = ["--adapter", str(adapters["lora"]), "--data", str(rows), "-b", "tiny:roberta", "--device", "cpu", "-q"]
    with pytest.raises(SystemExit) as end:
        main(["score", "-d", str(tmp_path / "run"), *given])
    error = " ".join(capsys.readouterr().err.split())
    assert end.value.code == 2 and "has a head of 2 outputs (one for each label), and this model one of 5." in error
    assert not (tmp_path / "run").exists()
