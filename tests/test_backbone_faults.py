"""Backbone folders as people have them: what is wrong with one is said before work starts, what is only unusual works."""

import json
import os
import shutil

import pytest
import torch
from architectures import ALL, GROUPED, SIZES, Architecture, make_checkpoint, run, tokenizer
from edits import accept_outputs, edit_config, edit_stages
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

import lora_drop
from lora_drop.cli.app import main
from lora_drop.errors import UserError
from lora_drop.files import read_json
from lora_drop.models.backbones import load_meta_model, load_model, load_tokenizer, locate
from lora_drop.models.checks import check_length
from lora_drop.registry import TASKS

pytestmark = pytest.mark.slow

BY_NAME = {str(architecture): architecture for architecture in ALL}


@pytest.fixture
def folder(tmp_path):
    """A BERT as the Hub has it."""
    return make_checkpoint(tmp_path / "backbone", BY_NAME["bert"])


def load(folder, task="toy-nli"):
    told = []
    located = locate(str(folder))
    tokens = load_tokenizer(located, notice=told.append)
    return load_model(located, TASKS.get(task), 0, tokens, notice=told.append), tokens, told


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_classifier_of_another_size_gets_a_fresh_head_and_says_so(folder):
    config = AutoConfig.from_pretrained(folder, num_labels=3)
    AutoModelForSequenceClassification.from_pretrained(folder, config=config).save_pretrained(folder)
    model, _, told = load(folder)
    assert told == [f"{folder} comes with a head of 3 outputs; this task needs 2, so a new head is initialised"]
    assert model.classifier.weight.shape == (2, 32) and model.fresh_modules == ["classifier"]
    assert torch.equal(model.classifier.weight, load(folder)[0].classifier.weight)
    model, _, told = load(folder, "mnli")
    assert told == [] and model.fresh_modules == []


def test_a_multi_label_checkpoint_of_another_task(folder):
    change_config(
        folder,
        problem_type="multi_label_classification",
        id2label={str(number): f"emotion{number}" for number in range(5)},
        label2id={f"emotion{number}": number for number in range(5)},
    )
    model, tokens, _ = load(folder)
    assert (model.config.problem_type, model.config.num_labels) == ("single_label_classification", 2)
    assert model(**tokens("a", return_tensors="pt"), labels=torch.tensor([1])).loss.isfinite()


def with_nan(weights):
    name = "bert.encoder.layer.1.attention.self.query.weight"
    weights[name][0, 0] = float("nan")
    return weights


FAULTY_WEIGHTS = {
    "hold NaN or infinity": with_nan,
    "are incomplete: 16 tensors": lambda weights: {k: v for k, v in weights.items() if ".layer.2." not in k},
    "missing, such as bert.embeddings.word": lambda weights: {k: v for k, v in weights.items() if "word_emb" not in k},
    "missing, such as bert.embeddings.pos": lambda weights: {k: v for k, v in weights.items() if "position_e" not in k},
    "missing, such as bert.embeddings.LayerNorm": lambda weights: {
        k: v for k, v in weights.items() if "embeddings.LayerNorm" not in k
    },
    "has the shape": lambda weights: {
        k: torch.zeros(8, 8) if k.endswith("layer.0.output.dense.weight") else v for k, v in weights.items()
    },
}


@pytest.mark.parametrize("what", FAULTY_WEIGHTS)
def test_weights_that_would_be_random_or_nan_are_refused(what, folder):
    change_weights(folder, FAULTY_WEIGHTS[what])
    with pytest.raises(UserError, match=what):
        load(folder)


@pytest.mark.parametrize(("name", "norm"), [("llama", "model.norm"), ("gpt2", "transformer.ln_f")])
def test_a_last_norm_that_would_be_random_is_refused(name, norm, tmp_path):
    folder = make_checkpoint(tmp_path / "backbone", BY_NAME[name])
    change_weights(folder, lambda weights: {k: v for k, v in weights.items() if not k.startswith(norm)})
    for task in ("toy-nli", "toy-nlg"):
        with pytest.raises(UserError, match=f"are incomplete: . tensors .* such as {norm}"):
            load(folder, task)


def test_a_tokenizer_that_makes_no_mask_is_asked_for_one(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_input_names": ["input_ids"]}))
    _, tokens, _ = load(folder)
    batch = tokens.pad([tokens("a"), tokens("a longer text")], return_tensors="pt")
    assert batch["attention_mask"].sum(1).tolist() == [3, 15]


COMPOSITE = {
    "text_config": {**GROUPED, "vocab_size": 260, "head_dim": 8},
    "vision_config": {**SIZES, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8},
    "mm_tokens_per_image": 4,
}


@pytest.mark.parametrize(
    ("name", "options", "task"),
    [
        ("codegen", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "vocab_size": 260}, "toy-nlg"),
        ("gemma3", COMPOSITE, "toy-nlg"),
        ("gemma3", COMPOSITE, "toy-nli"),
    ],
)
def test_a_configuration_without_a_padding_token_gets_the_tokenizers(name, options, task, tmp_path):
    config = AutoConfig.for_model(name, **options)
    assert not hasattr(config, "pad_token_id")
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer(1).save_pretrained(tmp_path)
    model, _, _ = load(tmp_path, task)
    assert model.config.pad_token_id == model.config.get_text_config().pad_token_id == 1


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "phi"])
def test_texts_are_not_written_by_a_random_head(name, tmp_path):
    folder = make_checkpoint(tmp_path / "backbone", BY_NAME[name])
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(folder)
    load(folder)
    with pytest.raises(UserError, match=r"has no language-model head.* saved with one \(\w+ForCausalLM\)"):
        load(folder, "toy-nlg")


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_a_head_that_is_tied_to_the_embeddings_need_not_be_saved(name, tmp_path):
    tied = Architecture(name, BY_NAME[name].pretrained, {**BY_NAME[name].options, "tie_word_embeddings": True})
    folder = make_checkpoint(tmp_path / "backbone", tied)
    assert not [key for key in load_file(folder / "model.safetensors") if "lm_head" in key]
    model, _, _ = load(folder, "toy-nlg")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight and not model.fresh_modules


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folder):
    tokens = tokenizer()
    tokens.add_tokens(["Who", "the"])
    tokens.save_pretrained(folder)
    with pytest.raises(UserError, match=r"2 more tokens than the model's embedding has rows \(260\), such as 'Who'"):
        load(folder)


def test_a_padding_token_without_a_row_is_replaced(folder):
    tokens = tokenizer()
    tokens.add_special_tokens({"pad_token": "[PAD]"})
    tokens.save_pretrained(folder)
    _, loaded, told = load(folder)
    assert loaded.pad_token == "<pad>" and "[PAD]" in told[0]


def test_a_padding_token_without_a_row_leaves_a_decoder_its_shapes(tmp_path):
    folder = make_checkpoint(tmp_path / "backbone", BY_NAME["llama"])
    change_config(folder, pad_token_id=260)  # as many as the embedding has rows
    model, tokens, _ = load(folder, "toy-nlg")
    shapes = load_meta_model(locate(str(folder)), TASKS.get("toy-nlg"), tokens)
    assert {name: value.shape for name, value in shapes.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_no_padding_token(name, tmp_path):
    folder = make_checkpoint(tmp_path / "backbone", BY_NAME[name])
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer().backend_tokenizer, unk_token="<unk>", eos_token="</s>")
    bare.save_pretrained(folder)
    change_config(folder, pad_token_id=None)
    assert load(folder)[1].pad_token == "</s>"
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer().backend_tokenizer, unk_token="<unk>")
    bare.save_pretrained(folder)
    with pytest.raises(UserError, match="neither a padding nor an end-of-text token"):
        load(folder)


def test_a_folder_without_a_vocabulary_is_refused(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(UserError, match=r"no vocabulary|cannot be loaded"):
        load(folder)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_pickle_of_weights_is_converted_by_the_line_that_is_said(name, tmp_path):
    folder = make_checkpoint(tmp_path / "back bone's", BY_NAME[name])
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no \.safetensors weights .*Save the model there"):
        locate(str(folder))
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="If you trust it, convert it once in Python: from transformers") as told:
        locate(str(folder))
    exec(str(told.value).partition("in Python: ")[2], {})
    converted = load_file(folder / "model.safetensors")
    assert converted.keys() == weights.keys() and all(torch.equal(converted[key], weights[key]) for key in weights)
    assert locate(str(folder)).identity


@pytest.mark.parametrize("value", [["os; import evil"], [], None, "x", [3], ["logging"]])
def test_no_name_of_the_configuration_gets_into_that_line_unless_it_is_a_model(value, folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    change_config(folder, architectures=value)
    with pytest.raises(UserError, match=r"in Python: from transformers import AutoModel; AutoModel\.from_pretrained"):
        locate(str(folder))


def test_a_folder_without_a_tokenizer_says_how_to_get_one(tmp_path):
    folder = make_checkpoint(tmp_path / "backbone", BY_NAME["llama"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(UserError, match=r"has no tokenizer\. Save .*: tokenizer\.save_pretrained\('(.+)'\)") as told:
        load(folder)
    assert str(told.value).count(str(folder)) == 2 and "backend" not in str(told.value)


@pytest.mark.parametrize(
    ("only_adapter", "text"), [(False, "holds an adapter beside the model"), (True, "and no model")]
)
def test_an_adapter_in_the_backbones_folder_is_not_loaded_silently(only_adapter, text, folder):
    get_peft_model(load(folder)[0], LoraConfig(target_modules=["query"], task_type="SEQ_CLS")).save_pretrained(folder)
    if only_adapter:
        (folder / "config.json").unlink()
    with pytest.raises(UserError, match=text):
        locate(str(folder))


@pytest.mark.parametrize("name", ["roberta", "camembert", "mpnet", "xlm-roberta", "data2vec-text", "bert", "opt"])
def test_positions_are_counted_as_the_model_counts_them(name, tmp_path):
    """80 of them can be used, whatever stands in config.json; the 81st would be an index out of range."""
    model, _, _ = load(make_checkpoint(tmp_path / "backbone", BY_NAME[name]))
    check_length(model, 80)
    with pytest.raises(UserError, match="more than this backbone's 80 positions"):
        check_length(model, 81)
    ids = torch.full((1, 80), 9)
    model(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_what_a_model_cannot_do_is_said(tmp_path):
    for name, task, text in (
        ("bert", "toy-nlg", "is an encoder"),
        ("t5", "toy-nlg", "is an encoder-decoder"),
    ):
        with pytest.raises(UserError, match=text):
            load(make_checkpoint(tmp_path / name, BY_NAME[name]), task)
    granite = Architecture("granite", BY_NAME["llama"].pretrained, BY_NAME["llama"].options)
    with pytest.raises(UserError, match="transformers has none for"):
        load(make_checkpoint(tmp_path / "granite", granite))


def test_a_folder_is_what_it_computes(folder):
    before = locate(str(folder)).identity
    (folder / "notes.txt").write_text("my notes")
    (folder / "README.md").write_text("a model card")
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    assert locate(str(folder)).identity == before
    (folder / "chat_template.jinja").write_text("{% for turn in messages %}{{ turn.content }}{% endfor %}")
    assert locate(str(folder)).identity != before
    (folder / "chat_template.jinja").unlink()
    change_weights(folder, lambda weights: {name: tensor + (tensor.ndim > 1) for name, tensor in weights.items()})
    assert locate(str(folder)).identity != before


def test_a_finished_run_stands_where_only_the_place_is_another(folder, tmp_path, capsys):
    directory = run(folder, tmp_path / "run")
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    run(moved, directory, "-o", "eval.batch_size=3")
    stages = read_json(directory / "run.json")["stages"]
    main_options = ["run", "-d", str(directory), "-o", "eval.batch_size=5", "-o", f"backbone={moved}"]
    with pytest.raises(SystemExit) as end:
        main(main_options)
    assert end.value.code == 0 and capsys.readouterr().err.count("skipped") == len(stages)


def test_other_libraries_are_told_and_the_stage_stands(folder, tmp_path, capsys):
    directory = run(folder, tmp_path / "run")
    edit_stages(directory, lambda name, entry: entry["versions"].update(peft="0.1") if name == "train" else None)
    with pytest.raises(SystemExit):
        main(["run", "-d", str(directory)])
    error = capsys.readouterr().err
    assert error.count("skipped") == len(read_json(directory / "run.json")["stages"])
    assert error.count("note: train was done with peft 0.1 (here: ") == 1


def test_a_run_is_loaded_without_data_or_its_device(folder, tmp_path):
    directory = run(folder, tmp_path / "run")
    edit_config(directory, lambda text: text.replace("data_dir: null", "data_dir: /nowhere/at/all"))
    model, _ = lora_drop.load_run(directory, "cpu")
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", {"hidden_act": "os.system"}),
        ("config.json", {"hidden_size": "x"}),
        ("config.json", {"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}),
        ("tokenizer.json", {"model": None}),
        ("tokenizer.json", {"added_tokens": 3}),
        ("tokenizer_config.json", {"extra_special_tokens": {"a": 3}}),
    ],
)
def test_a_file_that_transformers_cannot_take_is_a_sentence(name, change, folder):
    path = folder / name
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.is_file() else {}), **change}))
    (folder / "evil.py").write_text("raise SystemExit('executed')")
    with pytest.raises(UserError, match=r"(cannot be loaded: |its own code)"):
        load(folder)


def test_a_model_answers_by_names_whatever_its_configuration_says(folder):
    change_config(folder, torchscript=True, return_dict=False)
    model, _, _ = load(folder)
    assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 2)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "", 3, None])
def test_an_index_that_names_files_elsewhere_is_refused(name, folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="which is not a file in its folder"):
        locate(str(folder))


def test_training_starts_from_an_adapter(folder, tmp_path, capsys):
    first = run(folder, tmp_path / "first", "-o", "method.name=lora")
    capsys.readouterr()
    options = ["-o", f"train.start_from={first}", "-o", "train.learning_rate=1e-12"]
    second = tmp_path / "second"
    with pytest.raises(SystemExit) as end:
        main(["run", "-d", str(second), "-c", str(first / "config.yaml"), *options, "-o", "method.name=lora"])
    assert end.value.code == 0
    assert f"started from {first}/adapter: 6 of 6 LoRAs, and its head" in capsys.readouterr().err
    one, two = (load_file(place / "adapter" / "adapter_model.safetensors") for place in (first, second))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-6)

    shared = tmp_path / "shared"
    with pytest.raises(SystemExit) as end:
        main(["run", "-d", str(shared), "-c", str(first / "config.yaml"), *options, "-o", "method.name=lora_drop"])
    assert end.value.code == 0
    selection = read_json(shared / "selection.json")["projections"]
    groups = read_json(shared / "adapter" / "lora_drop.json")["tied"]
    own = 6 - sum(map(len, groups))
    assert f"{own} of {own + len(groups)} LoRAs, and its head" in capsys.readouterr().err
    assert sum(len(layers["retained"]) for layers in selection.values()) <= own


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["method.name=lora", "train.start_from=nowhere"], "neither a PEFT adapter nor a run"),
        (["method.name=vera", "train.start_from={first}"], "train.start_from is for lora and lora_drop"),
        (["method.name=lora", "method.rank=4", "train.start_from={first}"], "Set method.rank=8 and method.alpha=16"),
    ],
)
def test_what_cannot_be_started_from_is_said(options, text, folder, tmp_path, capsys):
    first = run(folder, tmp_path / "first", "-o", "method.name=lora")
    chosen = [part for option in options for part in ("-o", option.format(first=first))]
    with pytest.raises(SystemExit) as end:
        main(["run", "-d", str(tmp_path / "second"), "-c", str(first / "config.yaml"), *chosen])
    assert end.value.code == 2 and text in capsys.readouterr().err


def test_an_adapter_saved_with_the_parts_of_its_head_loads(tmp_path):
    folder = make_checkpoint(tmp_path / "backbone", BY_NAME["roberta"])
    directory = run(folder, tmp_path / "run", "-o", "method.name=lora")
    expected = lora_drop.load_run(directory, "cpu")[0]
    path = directory / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    names = ["classifier", "classifier.dense", "classifier.out_proj", "classifier", "score"]
    path.write_text(json.dumps({**config, "modules_to_save": names}))
    accept_outputs(directory, "train", "adapter")
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(lora_drop.load_run(directory, "cpu")[0](ids).logits, expected(ids).logits)
