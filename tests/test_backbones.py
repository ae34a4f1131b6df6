import pytest
import torch

from lora_drop.errors import UserError
from lora_drop.models.backbones import load_meta_model, load_model, load_tokenizer, locate, resolve_device
from lora_drop.models.packaged import PACKAGED, Packaged
from lora_drop.registry import TASKS


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tiny:brt", "Did you mean 'tiny:bert'"),
        ("tny:bert", "Unknown kind of backbone 'tny' in tny:bert. Did you mean 'tiny'"),
        ("packaged:minilm", "Did you mean 'packaged:minilm-l6'"),
        ("./nowhere", "folder ./nowhere does not exist"),
        ("org/model-that-is-not-here", "not on this machine, and HF_HUB_OFFLINE forbids"),
        ("my model", "neither a folder nor a name on the Hub"),
        ("a--b/c..d", "neither a folder nor a name on the Hub"),
    ],
)
def test_wrong_names_say_what_to_do(name, text):
    with pytest.raises(UserError, match=text):
        locate(name)


def test_offline_never_asks():
    with pytest.raises(UserError, match="--offline forbids"):
        locate("org/model", offline=True)


def test_a_missing_package_names_the_install_command(monkeypatch):
    missing = Packaged("no-such-package", "no_such_module", "", "x", "", "pip install no-such-package")
    monkeypatch.setitem(PACKAGED, "minilm-l6", missing)
    with pytest.raises(UserError, match="pip install no-such-package"):
        locate("packaged:minilm-l6")


def test_a_wrong_checksum_is_refused(monkeypatch):
    good = PACKAGED["minilm-l6"]
    monkeypatch.setitem(PACKAGED, "minilm-l6", Packaged(**{**vars(good), "sha256": "0" * 64}))
    with pytest.raises(UserError, match="is not the expected file"):
        locate("packaged:minilm-l6")


def test_the_packaged_encoder_loads():
    located = locate("packaged:minilm-l6")
    model = load_model(located, TASKS.get("rte"), 0, load_tokenizer(located))
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.config.num_labels) == (6, 384, 2)
    again = load_model(located, TASKS.get("rte"), 0, load_tokenizer(located))
    assert torch.equal(model.classifier.weight, again.classifier.weight)


def test_folders_are_checked(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        locate(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no \.safetensors weights"):
        locate(str(tmp_path))


def test_damaged_weights_are_said(tmp_path):
    located = locate("tiny:bert")
    tokenizer = load_tokenizer(located)
    load_model(located, TASKS.get("toy-nli"), 3, tokenizer).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(locate(str(tmp_path)), TASKS.get("toy-nli"), 0, tokenizer)


def test_a_saved_folder_is_a_backbone(tmp_path):
    located = locate("tiny:bert")
    tokenizer = load_tokenizer(located)
    load_model(located, TASKS.get("toy-nli"), 3, tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = load_model(locate(str(tmp_path)), TASKS.get("toy-nli"), 0, load_tokenizer(locate(str(tmp_path))))
    reference = load_model(located, TASKS.get("toy-nli"), 3, tokenizer)
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, reference.bert.embeddings.word_embeddings.weight)


def test_regression_has_one_output():
    located = locate("tiny:bert")
    model = load_model(located, TASKS.get("stsb"), 0, load_tokenizer(located))
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")


def test_meta_models_take_no_memory():
    assert all(weight.is_meta for weight in load_meta_model(locate("tiny:llama"), TASKS.get("rte")).parameters())


def test_tiny_tokenizer_encodes_anything():
    tokenizer = load_tokenizer(locate("tiny:bert"))
    text = 'naïve 😀 "שלום"\ttab'
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_a_device_that_is_not_there():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="Device cuda is not available"):
        resolve_device("cuda")
    with pytest.raises(UserError, match=r"There is no device 'gpu'\. Use --device cpu"):
        resolve_device("gpu")
