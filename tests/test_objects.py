"""Scores and Selection as objects: shown, kept, turned into PEFT's configuration."""

import errno
import json
import os
import re
import sys
from html.parser import HTMLParser

import pytest
from models import backbone, inputs, trained_lora
from peft import LoraConfig, get_peft_model

import lora_drop
from lora_drop.errors import UserError
from lora_drop.pruning.adapters import loras
from lora_drop.pruning.selection import Layers, Selection
from lora_drop.pruning.sharing import ties


@pytest.fixture(scope="module")
def scores():
    model, tokenizer = trained_lora("tiny:bert")
    return lora_drop.score(model, [inputs(tokenizer)], per_example=True)


class Cells(HTMLParser):
    """The texts of a table's cells; fails at a tag that is closed in the wrong order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.texts = [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_scores_are_kept_and_read_back(scores, tmp_path):
    scores.save(tmp_path / "scores.json")
    assert lora_drop.Scores.load(tmp_path / "scores.json") == scores
    with pytest.raises(UserError, match="does not hold scores"):
        lora_drop.Scores.load(tmp_path / "nothing.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(UserError, match="does not hold scores"):
        lora_drop.Scores.load(tmp_path / "list.json")


def full(_descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_file_that_was_there(scores, tmp_path, monkeypatch):
    kept = lora_drop.select(scores, 0.5)
    scores.save(tmp_path / "scores.json"), kept.save(tmp_path / "selection.json")
    monkeypatch.setattr(os, "fsync", full)
    for other, name in (
        (lora_drop.Scores(scores.rows[:1], 1, 1), "scores"),
        (lora_drop.select(scores, 0.9), "selection"),
    ):
        with pytest.raises(OSError, match="No space left"):
            other.save(tmp_path / f"{name}.json")
    assert lora_drop.Scores.load(tmp_path / "scores.json") == scores
    assert lora_drop.Selection.load(tmp_path / "selection.json") == kept
    assert {path.name for path in tmp_path.iterdir()} == {"scores.json", "selection.json"}


def test_a_selection_is_kept_and_read_back(scores, tmp_path):
    selection = lora_drop.select(scores, 0.5)
    selection.save(tmp_path / "selection.json")
    assert lora_drop.Selection.load(tmp_path / "selection.json") == selection
    with pytest.raises(UserError, match="does not hold a selection"):
        scores.save(tmp_path / "scores.json")
        lora_drop.Selection.load(tmp_path / "scores.json")


@pytest.mark.parametrize(
    ("key", "value"), [("layer", "0"), ("score", None), ("importance", "1"), ("parameters", 1.5), ("layer", True)]
)
def test_scores_with_a_value_of_another_kind_are_refused(scores, tmp_path, key, value):
    scores.save(tmp_path / "scores.json")
    content = json.loads((tmp_path / "scores.json").read_text())
    content["modules"][0][key] = value
    (tmp_path / "scores.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"does not hold scores .*{key} is {value!r}"):
        lora_drop.Scores.load(tmp_path / "scores.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("share", "false"),
        ("trainable_parameters", "9"),
        ("threshold", None),
        ("projections", {"query": {"retained": "0", "shared": [], "coverage": 1.0}}),
        ("projections", {"query": {"retained": [0.0], "shared": [], "coverage": 1.0}}),
    ],
)
def test_a_selection_with_a_value_of_another_kind_is_refused(scores, tmp_path, key, value):
    content = {**lora_drop.select(scores, 0.5).to_json(), key: value}
    (tmp_path / "selection.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"does not hold a selection \(TypeError: "):
        Selection.load(tmp_path / "selection.json")


def test_frames_hold_a_row_per_layer(scores):
    frame, selection = scores.to_frame(), lora_drop.select(scores, 0.5)
    assert list(frame.columns) == ["name", "projection", "layer", "score", "importance", "parameters"]
    assert frame.groupby("projection")["importance"].sum().tolist() == pytest.approx([1, 1])
    fates = selection.to_frame()
    assert len(fates) == len(frame) and set(fates["lora"]) == {"retained", "shared"}
    merged = frame.merge(fates, on=["projection", "layer"])
    kept = merged[(merged.projection == "query") & (merged.lora == "retained")]
    assert kept["importance"].sum() == pytest.approx(selection.projections["query"].coverage)


def test_a_notebook_shows_tables_with_bars(scores):
    texts = Cells(scores._repr_html_()).texts
    assert "Importance of 8 LoRAs by the criterion output, 7 examples" in texts[0] and {"query", "value", "3"} <= {
        *texts
    }
    for row in scores.rows:
        assert f"{row.importance:.1%}" in texts
    widths = [float(width) for width in re.findall(r"width:([\d.]+)em\"", scores._repr_html_())]
    assert max(widths) == 10 and len(widths) == 8
    selection = lora_drop.select(scores, 0.5)
    html = selection._repr_html_()
    texts = Cells(html).texts
    assert f"{selection.trainable_parameters:,} parameters" in texts[0]
    retained = sum(len(layers.retained) for layers in selection.projections.values())
    assert html.count('title="retained"') == retained and html.count("title=") == 8


def test_names_are_shown_as_they_are(scores):
    selection = Selection("threshold", 0.9, True, {"<b>": Layers((0,), (1,), 0.9)}, 3)
    assert "<b>" not in selection._repr_html_() and "<b>" in Cells(selection._repr_html_()).texts


def test_pictures_show_themselves(scores):
    for figure in (scores.plot(), lora_drop.select(scores, 0.5).plot(scores, "a title")):
        assert figure._repr_png_()[:4] == b"\x89PNG" and len(figure.axes) == 2


def test_a_bar_counts_the_batches_where_it_can_be_seen(scores, monkeypatch, capsys):
    model, tokenizer = trained_lora("tiny:bert")
    batch = inputs(tokenizer)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # of another test
    assert lora_drop.score(model, [batch, batch]).examples == 14 and capsys.readouterr().err == ""  # no terminal
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    assert lora_drop.score(model, [batch, batch], criterion="output_relative").criterion == "output_relative"
    assert "scoring by output_relative" in capsys.readouterr().err
    seen = []
    lora_drop.score(model, [batch], progress=False)
    lora_drop.score(model, [batch, batch], progress=seen.append)
    assert seen == [7, 14]
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=r"Unknown criterion 'fischer'\. Did you mean 'fisher'"):
        lora_drop.score(model, [batch], criterion="fischer")


def ranks(model) -> dict[str, int]:
    return {name: lora.rank for name, lora in loras(model).items()}


@pytest.mark.parametrize("name", ["tiny:bert", "tiny:llama"])
def test_a_configuration_hits_the_modules_that_are_meant(name):
    model, tokenizer = trained_lora(name)
    scores = lora_drop.score(model, [inputs(tokenizer)])
    selection = lora_drop.select(scores, 0.5)
    retained = {row.name for row in scores.rows if row.layer in selection.projections[row.projection].retained}
    everything = {row.name for row in scores.rows}
    assert everything > retained

    shared = get_peft_model(backbone(name)[0], selection.to_lora_config(backbone(name)[0], task_type="SEQ_CLS"))
    assert ranks(shared) == dict.fromkeys(everything, 8)
    assert {each for group in ties(lora_drop.share(shared, selection)) for each in group} == everything - retained

    config = selection.to_lora_config(backbone(name)[0], rank=4, low_rank=0)
    assert set(config.exclude_modules) == everything - retained
    assert ranks(get_peft_model(backbone(name)[0], config)) == dict.fromkeys(retained, 4)

    for rslora in (False, True):
        config = selection.to_lora_config(backbone(name)[0], low_rank=2, lora_alpha=12, use_rslora=rslora)
        wrapped = get_peft_model(backbone(name)[0], config)
        assert ranks(wrapped) == {each: 8 if each in retained else 2 for each in everything}
        scalings = {lora.layer.scaling["default"] for lora in loras(wrapped).values()}
        assert len({round(each, 9) for each in scalings}) == 1


def test_a_selection_without_sharing_leaves_the_low_layers_out(scores):
    model = backbone("tiny:bert")[0]
    selection = lora_drop.select(scores, 0.5, share=False)
    config = selection.to_lora_config(model)
    assert isinstance(config, LoraConfig) and config.r == 8 and not config.rank_pattern
    assert len(config.target_modules) == sum(len(layers.retained) for layers in selection.projections.values())


def test_what_peft_would_ignore_is_refused(scores):
    model = backbone("tiny:bert")[0]
    selection = lora_drop.select(scores, 0.5)
    with pytest.raises(UserError, match=r"rank_pattern: encoder\.layr matches no module"):
        selection.to_lora_config(model, rank_pattern={"encoder.layr": 4})
    with pytest.raises(
        UserError, match=r"would not apply target_modules to the modules .* is matched but should not be"
    ):
        selection.to_lora_config(model, target_modules=["query", "value", "key"])
    with pytest.raises(UserError, match="is not matched but should be"):
        selection.to_lora_config(model, target_modules="all-linar")
    with pytest.raises(UserError, match=r"which the selection names\. Use the model that was scored"):
        selection.to_lora_config(backbone("tiny:llama")[0].model.layers[0])
    with pytest.raises(UserError, match="at least 1"):
        selection.to_lora_config(model, low_rank=-1)
