"""Exports: what others read gives the numbers of the run, and what cannot be said is refused in a sentence."""

import ast
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import own_data
import pytest
import torch
import yaml
from edits import accept_outputs, edit_config
from hub_server import HubServer, Machine
from models import inputs
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import lora_drop
from lora_drop.cli import app as cli
from lora_drop.errors import UserError
from lora_drop.export import merged
from lora_drop.export.adapters import compact
from lora_drop.files import read_json, write_json
from lora_drop.methods.compact import write_compact
from lora_drop.methods.folder import adapter_folder
from lora_drop.models.backbones import load_model, load_tokenizer, locate
from lora_drop.pruning.sharing import ties
from lora_drop.registry import TASKS

pytestmark = pytest.mark.slow


def command(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    return end.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny backbone as a folder, which transformers reads as a user's model."""
    path = tmp_path_factory.mktemp("backbone") / "tiny"
    located = locate("tiny:bert")
    tokenizer = load_tokenizer(located)
    load_model(located, TASKS.get("toy-nli"), 0, tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, folder) -> Path:
    """A trained LoRA-drop on it whose layers share."""
    path = tmp_path_factory.mktemp("runs") / "run"
    small = ["--limit-train", 80, "--limit-eval", 20, "-o", "train.epochs=1", "-o", "train.learning_rate=0.01"]
    assert command("run", "-d", path, "-q", "-o", f"backbone={folder}", "--budget", 0.6, *small) == 0
    return path


@pytest.fixture(scope="module")
def language_run(tmp_path_factory) -> Path:
    """A selection of a decoder's layers."""
    path = tmp_path_factory.mktemp("runs") / "llama"
    given = ["-d", path, "-q", "-o", "backbone=tiny:llama", "-o", "task=toy-nlg", "--limit-train", 40, "--budget", 0.6]
    for stage in ("sample", "score", "select"):
        assert command(stage, *given) == 0
    return path


def test_every_run_has_a_page_and_it_shows_what_was_compared(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Which layers does toy-nli need?" in page and "lora-drop export" in page
    assert command("run", "-d", run, "-q", "--compare", "lora") == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "LoRA-drop reaches accuracy" in page and (run / "compare" / "lora" / "report.html").is_file()


def plain(folder) -> torch.nn.Module:
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)


def logits(model, folder) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs(AutoTokenizer.from_pretrained(folder))).logits


def test_an_adapter_names_its_backbone_as_other_machines_do(run, folder, tmp_path, capsys):
    assert command("export", run, "--to", "peft") == 2
    assert f"is the folder {folder}, which other machines do not have" in capsys.readouterr().err
    assert not (run / "export").exists()
    assert command("export", run, "--to", "peft", "--base", "acme/tiny", "--out", tmp_path / "peft") == 0
    assert read_json(tmp_path / "peft" / "adapter_config.json")["base_model_name_or_path"] == "acme/tiny"
    model = PeftModel.from_pretrained(plain(folder), tmp_path / "peft")
    assert torch.equal(logits(model, folder), logits(lora_drop.load_run(run, "cpu")[0], folder))


def test_a_merged_model_needs_no_other(run, folder, tmp_path):
    assert command("export", run, "--to", "merged", "--out", tmp_path / "m") == 0
    card = (tmp_path / "m" / "README.md").read_text(encoding="utf-8")
    assert "base_model" not in card and f"on the folder `{folder}`" in card
    whole = lora_drop.load_run(run, "cpu")[0]
    torch.testing.assert_close(logits(plain(tmp_path / "m"), folder), logits(whole, folder))


def test_the_adapter_of_a_run_names_a_model_that_is_no_folder(language_run):
    assert read_json(language_run / "warmup" / "adapter_config.json")["base_model_name_or_path"] == "tiny:llama"


def test_the_compact_form_holds_what_is_shared_once(run, folder, tmp_path, capsys):
    assert command("export", run, "--to", "compact", "--base", "acme/tiny", "--out", tmp_path / "c", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    small, large = (
        (tmp_path / "c" / "lora_drop.safetensors").stat().st_size,
        run / "adapter" / "adapter_model.safetensors",
    )
    assert told["said"] == f"lora_drop.safetensors has {small:,} bytes; as a PEFT adapter, {large.stat().st_size:,}"
    count = read_json(run / "run.json")["stages"]["train"]["trainable_parameters"]
    stored = load_file(tmp_path / "c" / "lora_drop.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == count["adapter"] + count["head"]
    model, whole = lora_drop.load_adapter(plain(folder), tmp_path / "c"), lora_drop.load_run(run, "cpu")[0]
    assert torch.equal(logits(model, folder), logits(whole, folder))
    assert ties(model) == ties(whole) != []
    for given in (plain(folder).eval(), plain(folder).train()):  # dropout as in the model that was given
        training = given.training
        assert {part.training for part in lora_drop.load_adapter(given, tmp_path / "c").modules()} == {training}
    torch.manual_seed(7)
    wanted = torch.rand(1)
    another = plain(folder)
    for load, *given in ((lora_drop.load_adapter, another, tmp_path / "c"), (lora_drop.load_run, run, "cpu")):
        torch.manual_seed(7)
        load(*given)
        assert torch.rand(1) == wanted  # what a script trains next has the script's seed
    learnt = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learnt == {name for name, parameter in whole.named_parameters() if parameter.requires_grad}


def test_the_compact_form_is_refused_by_what_does_not_tie(run, folder, tmp_path):
    assert command("export", run, "--to", "compact", "--base", "acme/tiny", "--out", tmp_path / "c") == 0
    untied = get_peft_model(plain(folder), LoraConfig(target_modules=["query", "value"], task_type="SEQ_CLS"))
    with pytest.raises(UserError, match="whose layers share nothing"):
        lora_drop.load_adapter(untied, tmp_path / "c")
    with pytest.raises(UserError, match="is a compact LoRA-drop adapter"):
        adapter_folder(str(tmp_path / "c"))
    with pytest.raises(ValueError, match=r"adapter_config\.json"):  # PEFT finds no file of its own
        PeftModel.from_pretrained(plain(folder), tmp_path / "c")
    shutil.copy(run / "adapter" / "adapter_config.json", tmp_path / "c")
    with pytest.raises(UserError, match=r"lora_drop\.load_adapter"):
        lora_drop.methods.lora.load(plain(folder), tmp_path / "c")


@pytest.mark.parametrize("damage", ["cut", "no weights", "no ties"])
def test_a_damaged_compact_form_is_refused(damage, run, folder, tmp_path):
    target = tmp_path / "c"
    assert command("export", run, "--to", "compact", "--base", "acme/tiny", "--out", target) == 0
    file = target / "lora_drop.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "no weights":
        file.unlink()
    else:
        write_json(target / "lora_drop.json", {**read_json(target / "lora_drop.json"), "tied": []})
    with pytest.raises(UserError):
        lora_drop.load_adapter(plain(folder), target)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_alpha": float("nan")}, "its lora_alpha is nan"),
        ({"r": "x"}, "its rank r is 'x'"),
        ({"peft_type": "VERA"}, "holds no complete compact adapter"),
        ({"peft_type": "NONE"}, "holds no complete compact adapter"),
        ({"megatron_core": "evil", "megatron_config": {"x": 1}}, "for Megatron"),
        ({"target_modules": ["nowhere"]}, "holds no adapter for this model"),
        ({"target_modules": 3}, "holds no adapter for this model"),
        ([], "holds no complete compact adapter"),
        (None, "VERA, not LoRA"),
    ],
)
def test_the_compact_form_is_checked_as_peft_s_is(settings, message, run, folder, tmp_path):
    write_compact(run / "adapter", tmp_path)
    content = read_json(tmp_path / "lora_drop.json")
    changed = content["adapter_config"] | settings if settings else settings
    if settings is None:
        changed = {"peft_type": "VERA", "r": 8, "target_modules": ["query"]}
    (tmp_path / "lora_drop.json").write_text(json.dumps({**content, "adapter_config": changed}))
    with pytest.raises(UserError, match=message):
        lora_drop.load_adapter(plain(folder), tmp_path)


@pytest.mark.parametrize("form", ["peft", "compact"])
@pytest.mark.parametrize("tied", [None, 3, "query", [[]], [3], [[["query"]]], {"a": []}])
def test_ties_that_are_none_are_refused_in_both_forms(tied, form, run, folder, tmp_path):
    if form == "compact":
        write_compact(run / "adapter", tmp_path)
    else:
        shutil.copytree(run / "adapter", tmp_path, dirs_exist_ok=True)
    write_json(tmp_path / "lora_drop.json", {**read_json(tmp_path / "lora_drop.json"), "tied": tied})
    with pytest.raises(UserError, match=r"is damaged|holds no complete compact adapter"):
        lora_drop.load_adapter(plain(folder), tmp_path)


def test_the_merged_model_is_the_run_without_an_adapter(run, folder, tmp_path):
    assert command("export", run, "--to", "merged", "--base", "acme/tiny", "--out", tmp_path / "m") == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m")
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    assert model.config.id2label == dict(enumerate(TASKS.get("toy-nli").labels))
    torch.testing.assert_close(logits(model, tmp_path / "m"), logits(lora_drop.load_run(run, "cpu")[0], folder))


@pytest.mark.parametrize("head", ["none", "same", "another", "unknown"])
def test_the_recipe_of_a_card_replaces_a_head_of_another_size(head, run, folder, tmp_path):
    backbone, copied = tmp_path / "backbone", shutil.copytree(run, tmp_path / "run")
    edit_config(copied, lambda text: yaml.safe_dump({**yaml.safe_load(text), "backbone": str(backbone)}))
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2 if head == "same" else 5, ignore_mismatched_sizes=True
    )
    (model.bert if head == "none" else model).save_pretrained(backbone)
    config = read_json(backbone / "config.json")
    if head == "none":  # a task's labels may stay in the configuration
        write_json(backbone / "config.json", {**config, "architectures": ["BertForMaskedLM"]})
    elif head == "unknown":
        (backbone / "config.json").unlink()
    assert command("export", copied, "--to", "peft", "--base", backbone, "--out", tmp_path / "peft") == 0
    write_json(backbone / "config.json", config)
    recipe = (tmp_path / "peft" / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert ("ignore_mismatched_sizes=True" in recipe) == (head in ("another", "unknown"))
    made: dict = {}
    exec(recipe.replace("FOLDER", str(tmp_path / "peft")), made)
    whole = lora_drop.load_run(run, "cpu")[0]
    torch.testing.assert_close(logits(made["model"], folder), logits(whole, folder))


def test_what_cannot_be_merged_is_said_before_the_weights_are_read(run, tmp_path, capsys, monkeypatch):
    assert command("run", "-d", run, "-q", "--compare", "tied_lora") == 0
    capsys.readouterr()
    monkeypatch.setattr(merged, "locate", None)  # whoever asks for the backbone fails
    tied = run / "compare" / "tied_lora"
    assert command("export", tied, "--to", "merged", "--base", "acme/tiny", "--out", tmp_path / "m") == 2
    assert "Tied-LoRA cannot be merged" in capsys.readouterr().err and not (tmp_path / "m").exists()


def test_an_adapter_of_4_bit_weights_is_merged_in_bf16(run, tmp_path, capsys):
    quantized = shutil.copytree(run, tmp_path / "q")
    edit_config(quantized, lambda text: yaml.safe_dump({**yaml.safe_load(text), "quantization": "nf4"}))
    assert command("export", quantized, "--to", "merged", "--base", "acme/tiny", "--out", tmp_path / "m") == 0
    assert "bfloat16 weights; trained on 4-bit weights, merged into the unquantized ones" in capsys.readouterr().out
    assert {tensor.dtype for tensor in load_file(tmp_path / "m" / "model.safetensors").values()} == {torch.bfloat16}
    assert "trained on nf4 weights" in (tmp_path / "m" / "README.md").read_text()


def test_a_backbone_in_bf16_is_merged_into_one_in_bf16(folder, tmp_path, capsys):
    """The sum is rounded once: it is that of the fp32 weights to within bf16's last bit."""
    half, out = tmp_path / "half", tmp_path / "m"
    plain(folder).to(torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(folder).save_pretrained(half)
    small = ["--limit-train", 40, "--limit-eval", 10, "-o", "train.epochs=1", "-o", "train.learning_rate=0.01"]
    assert command("run", "-d", tmp_path / "run", "-q", "-o", f"backbone={half}", "--budget", 0.6, *small) == 0
    capsys.readouterr()
    assert command("export", tmp_path / "run", "--to", "merged", "--base", "acme/tiny", "--out", out) == 0
    assert "of bfloat16 weights; rounded as the backbone's are: outputs differ a little" in capsys.readouterr().out
    written = load_file(out / "model.safetensors")
    exact = lora_drop.load_run(tmp_path / "run", "cpu")[0].merge_and_unload().state_dict()
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    for name, tensor in written.items():
        assert torch.equal(tensor, exact[name].to(torch.bfloat16)), name
    assert read_json(out / "config.json")["dtype"] == "bfloat16"


def test_the_card_says_what_was_measured(run, tmp_path):
    assert command("export", run, "--to", "peft", "--base", "acme/tiny", "--out", tmp_path / "p") == 0
    _, front, body = (tmp_path / "p" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == "acme/tiny"
    metrics = read_json(run / "metrics.json")
    assert f"accuracy {metrics['metrics']['accuracy']:.4f}, on 20 rows of validation, seed 0" in body
    assert "only 80 train rows were used" in body and "weights sha256" in body and "needs a LoRA of its own" in body


@pytest.mark.parametrize("rule", ["method.threshold=1", "method.policy=inverse"])  # the latter has as many parameters
def test_the_card_does_not_describe_a_selection_made_since(rule, run, tmp_path):
    again = shutil.copytree(run, tmp_path / "again")
    assert command("select", "-d", again, "-q", "-o", rule) == 0
    assert command("export", again, "--to", "peft", "--base", "acme/tiny", "--out", tmp_path / "p") == 0
    body = (tmp_path / "p" / "README.md").read_text()
    assert "needs a LoRA of its own" not in body and "trained under another selection" in body


def test_a_configuration_hits_exactly_the_retained_modules(language_run, capsys):
    assert command("export", language_run, "--to", "config") == 0
    config = LoraConfig.from_peft_type(**json.loads(capsys.readouterr().out))
    located = locate("tiny:llama")
    model = load_model(located, TASKS.get("toy-nlg"), 0, load_tokenizer(located, causal=True))
    model = get_peft_model(model, config)
    selection = read_json(language_run / "selection.json")["projections"]
    expected = {f"model.layers.{n}.self_attn.{p[0]}_proj" for p in selection for n in selection[p]["retained"]}
    assert {
        name.removeprefix("base_model.model.") for name, part in model.named_modules() if hasattr(part, "lora_A")
    } == expected
    for form, key in (("axolotl", "lora_target_modules"), ("llamafactory", "lora_target")):
        assert command("export", language_run, "--to", form) == 0
        found = yaml.safe_load(capsys.readouterr().out)
        names = found[key].split(",") if form == "llamafactory" else found[key]
        assert set(names) == expected and "tiny:llama" in found.values()


def test_own_data_need_no_trained_adapter_for_a_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own_data.write(tmp_path / "qa.jsonl", [{"prompt": f"{n} + 1 =", "completion": f" {n + 1}"} for n in range(40)])
    given = ["-d", "run", "-q", "-b", "tiny:llama", "--data", "qa.jsonl", "-o", "warmup.epochs=1"]
    assert [command(stage, *given) for stage in ("sample", "score", "select")] == [0, 0, 0]
    edited = Path("run/warmup/adapter_config.json")
    for change, lines in (
        ({"use_rslora": True}, ["peft_use_rslora: true", "\nuse_rslora: true", ", use_rslora=True"]),
        ({"use_rslora": False, "rank_pattern": {"q_proj": 2}}, None),
    ):
        write_json(edited, {**read_json(edited), **change})
        accept_outputs(Path("run"), "score", "warmup")
        for number, form in enumerate(("axolotl", "llamafactory", "trl")):
            capsys.readouterr()
            assert command("export", "run", "--to", form) == (0 if lines else 2)
            out, err = capsys.readouterr()
            assert lines[number] in out if lines else "has a rank_pattern" in err


def test_a_text_replaces_no_file(run, tmp_path, capsys):
    mine = tmp_path / "mine.csv"
    mine.write_text("text,label\n")
    for form in ("config", "axolotl"):
        assert command("export", run, "--to", form, "--base", "acme/tiny", "--out", mine) == 2
        assert f"{mine} exists. Remove it, or name another with --out." in " ".join(capsys.readouterr().err.split())
    assert mine.read_text() == "text,label\n"


def test_an_export_of_a_read_only_run_can_be_written(run, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    modes = {path: path.stat().st_mode for path in (other / "adapter", *(other / "adapter").iterdir())}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    assert command("export", other, "--to", "peft", "--base", "acme/tiny", "--out", tmp_path / "p") == 0
    assert all(path.stat().st_mode & 0o200 for path in (tmp_path / "p", *(tmp_path / "p").iterdir()))


def test_the_compact_form_has_the_names_of_the_labels(run, tmp_path):
    source = SimpleNamespace(adapter=tmp_path / "adapter", base="acme/tiny", revision=None)
    shutil.copytree(run / "adapter", source.adapter)
    for name in ("config.json", "task.json"):  # as in a run on own data
        (source.adapter / name).write_text(name)
    (tmp_path / "c").mkdir()
    compact(source, tmp_path / "c")
    assert all((tmp_path / "c" / name).read_text() == name for name in ("config.json", "task.json"))


@pytest.mark.parametrize("base", [r"C:\new\model", 'a"b', "x/{y}", "naïve/😀"])
def test_the_name_of_a_backbone_is_valid_python_whatever_it_is(base, run, language_run, tmp_path):
    assert command("export", language_run, "--to", "trl", "--base", base, "--out", tmp_path / "train.py") == 0
    texts = [(tmp_path / "train.py").read_text(encoding="utf-8")]
    for form in ("peft", "compact"):
        assert command("export", run, "--to", form, "--base", base, "--out", tmp_path / form) == 0
        card = (tmp_path / form / "README.md").read_text(encoding="utf-8")
        texts.append(card.partition("```python\n")[2].partition("```")[0])
    for text in texts:
        assert base in [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]


def test_the_script_for_trl_builds_the_shared_model(language_run, tmp_path, monkeypatch):
    assert (
        command("export", language_run, "--to", "trl", "--base", tmp_path / "llama", "--out", tmp_path / "train.py")
        == 0
    )
    located = locate("tiny:llama")
    load_model(located, TASKS.get("toy-nlg"), 0, load_tokenizer(located, causal=True)).save_pretrained(
        tmp_path / "llama"
    )
    script = (tmp_path / "train.py").read_text()
    compile(script, "train.py", "exec")
    names: dict = {}
    exec(script.split("trainer =")[0].replace("from trl import SFTTrainer\n", ""), names)
    selection = lora_drop.Selection.from_json(read_json(language_run / "selection.json"))
    assert sum(p.numel() for p in names["model"].parameters() if p.requires_grad) == selection.trainable_parameters


def test_wrong_requests_are_refused_before_work(run, language_run, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    base = ["--base", "acme/tiny"]
    for arguments, message in (
        ([run, "--to", "merge"], "Did you mean 'merged'?"),
        ([tmp_path, "--to", "peft"], "is not a run directory"),
        ([run, "--to", "axolotl", *base], "Axolotl trains language models"),
        ([run, "--to", "peft", *base, "--out", full], "is not an empty folder"),
        ([language_run, "--to", "peft"], "Make it with: lora-drop train"),
        ([run, "--to", "config", *base, "--push", "acme/x"], "--push uploads an adapter or a model"),
        ([run, "--to", "peft", *base, "--push", "x"], "organisation/name"),
    ):
        assert command("export", *arguments) == 2, arguments
        assert message in capsys.readouterr().err
    assert (full / "mine.txt").read_text() == "mine"


def test_an_export_is_pushed_and_read_again(run, tmp_path):
    (tmp_path / "hub" / "models").mkdir(parents=True)
    with HubServer(tmp_path / "hub") as hub, Machine(hub.env(tmp_path / "home")) as machine:
        arguments = ["export", run, "--to", "compact", "--base", "acme/tiny", "--push", "acme/mine", "--out"]
        refused = machine(*arguments, tmp_path / "a")
        assert refused.code == 2 and "--push needs a token" in refused.err and not (tmp_path / "a").exists()
        pushed = machine(*arguments, tmp_path / "a", HF_TOKEN="hf_mine")
        assert pushed.code == 0, pushed.err
        assert f"Uploaded: {hub.url}/acme/mine" in pushed.out
        stored = tmp_path / "hub" / "models" / "acme" / "mine"
        for file in (tmp_path / "a").iterdir():
            assert (stored / file.name).read_bytes() == file.read_bytes()
        hub.fault("POST /api/models/acme/mine/commit", status=403)
        failed = machine(*arguments, tmp_path / "b", HF_TOKEN="hf_mine")
        assert (
            failed.code == 2 and "403" in failed.err and f"its complete content is in {tmp_path / 'b'}" in failed.err
        ), failed.err


def test_a_decoder_is_merged_too(language_run, tmp_path):
    assert command("train", "-d", language_run, "-q", "-o", "train.epochs=1") == 0
    assert command("export", language_run, "--to", "merged", "--out", tmp_path / "m") == 0
    model, whole = AutoModelForCausalLM.from_pretrained(tmp_path / "m"), lora_drop.load_run(language_run, "cpu")[0]
    assert AutoTokenizer.from_pretrained(tmp_path / "m").padding_side == "left"  # as generation needs
    tokens = {"input_ids": torch.arange(5, 25)[None]}
    with torch.no_grad():
        torch.testing.assert_close(model(**tokens).logits, whole(**tokens).logits)
