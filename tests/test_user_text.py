"""What users write - paths, names, titles - is shown and stored as it is: no markup, no YAML, no formula."""

import io
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from models import backbone
from rich.console import Console

from lora_drop.cli import app as cli
from lora_drop.cli.console import PLAIN, ConsoleReporter, print_table
from lora_drop.config.identity import to_dict
from lora_drop.config.loading import from_dict, load_config
from lora_drop.config.schema import Config
from lora_drop.errors import first_line
from lora_drop.experiments.grid import Choice, expand, load_experiment, slug
from lora_drop.experiments.report import report
from lora_drop.files import read_json, write_json
from lora_drop.runs.store import Run

ODD = "my #1 [data] [/b] :bug: $x$ ~ %s {0}"


def call(*arguments):
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    return end.value.code


@pytest.mark.slow
def test_odd_paths_run_and_are_shown_and_kept_as_they_are(tmp_path, capsys):
    run, data, model = (tmp_path / f"{name} {ODD}" for name in ("run", "rows", "model"))
    data.mkdir(parents=True)
    pretrained, tokenizer = backbone("tiny:bert")
    pretrained.save_pretrained(model)
    tokenizer.save_pretrained(model)
    small = ["--limit-train", "40", "--limit-eval", "20", "-o", "train.epochs=1", "--device", "cpu"]
    assert call("run", "-d", run, "--data-dir", data, "-o", f"backbone={model}", *small) == 0
    shown = capsys.readouterr()
    assert f"Files: {run}\n" in shown.out
    assert yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data_dir"] == str(data)
    assert read_json(run / "run.json")["backbone"] == str(model)
    assert call("run", "-d", run) == 0 and capsys.readouterr().err.count("skipped") == 6
    assert call("params", "-b", model, "--json") == 0
    assert json.loads(capsys.readouterr().out)["backbone"] == str(model)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "-d", "x", "--data-dir", ODD),
        ("run", "-d", "x", "-o", f"data_dir={ODD}"),
        ("tasks", "--data-dir", ODD),
        ("run", "-d", "x", "-c", ODD),
        ("reproduce", ODD),
        ("report", ODD),
        ("eval", "-t", "toy-nli", "--predictions", ODD),
        ("params", "-b", f"./{ODD}"),
    ],
)
def test_messages_show_odd_names_as_they_are(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    assert ODD in capsys.readouterr().err


@pytest.mark.parametrize("text", ["007", "~", "null", "yes", "1e3", "[a, b]", "{a: b}", "a: b", "#", "", " x ", "!!x"])
def test_a_flag_is_taken_as_it_is(text):
    assert load_config(flags={"data_dir": text}).data_dir == text
    (run, *_) = expand(load_experiment("table1"), Choice(flags={"data_dir": text}))
    assert run.config.data_dir == text


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data_dir=/mnt/my #1 data", "/mnt/my #1 data"),
        ("data_dir=~", "~"),
        ("data_dir=007", "007"),
        ("data_dir=a=b: c", "a=b: c"),
        ("data_dir=", None),
        ("data_dir=null", None),
        ("backbone=null", "null"),
        ("backbone=1e3", "1e3"),
        ("seed=010", 10),
        ("limit.train=", None),
        ("limit.train=null", None),
        ("train.epochs=1e1", 10.0),
        ("method.share=false", False),
        ("method.target_projections=[key, value]", ("key", "value")),
    ],
)
def test_an_override_is_read_as_its_key_asks_for(override, value):
    found = load_config([], [override])
    for part in override.partition("=")[0].split("."):
        found = getattr(found, part)
    assert found == value and type(found) is type(value)


@settings(deadline=None, max_examples=60)
@given(st.text() | st.sampled_from(["\udcff", "\x85\u2028", "\ufeff", "'\"\\", "- a\n\n b "]))
def test_any_text_survives_in_a_configuration_file(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("run")
    config = load_config(flags={"data_dir": text, "backbone": f"tiny:{text}"})
    with Run(path, config).working():
        pass
    assert Run(path).config == config
    assert read_json(path / "run.json")["backbone"] == config.backbone
    assert load_config([path / "config.yaml"]) == config == from_dict(to_dict(config))


def test_a_number_in_a_file_is_no_text(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("data_dir: 007\n")  # YAML's 7: what was written is lost
    assert call("config", "-c", tmp_path / "a.yaml") == 2
    assert "data_dir = 7: must be a text (in quotes) or empty" in capsys.readouterr().err


def test_bars_and_tables_show_text_as_it_is():
    console = Console(file=io.StringIO(), force_terminal=True, width=200, **PLAIN)
    reporter = ConsoleReporter(console)
    reporter.start(f"stage {ODD}")
    reporter.advance(1, 1, ODD)
    reporter.finish("stage", 1.0, ODD)
    reporter.notice(ODD)
    print_table(console, [ODD], [[ODD]], title=ODD)
    shown = console.file.getvalue()
    assert f"stage {ODD}" in shown and shown.count(ODD) >= 7


@pytest.mark.slow
def test_odd_titles_and_backbones_are_drawn_and_tabulated_as_they_are(tmp_path):
    title = "a|b *c* $d$ 50% {e} [f](g) \\h `i` _j_ ~k^l"
    source = Path(__file__).parent.parent / "results" / "smollm2" / "packaged-smollm2-135m"
    for path in source.glob("*.json"):
        content = read_json(path)
        content["layout"]["rows"] = dict.fromkeys(content["layout"]["rows"], title)
        content["layout"]["figures"] = ["tradeoff", "importance", "ratios"]
        content["backbone"] = content["config"]["backbone"] = "my/$x$ [y]"
        write_json(tmp_path / "smollm2" / slug(content["backbone"]) / path.name, content)
    (folder,) = report(tmp_path, ["smollm2"])
    assert r"| a\|b \*c\* $d$ 50% {e} \[f](g) \\h \`i\` _j_ ~k^l |" in (folder / "table.md").read_text(encoding="utf-8")
    latex = r"a|b *c* \$d\$ 50\% \{e\} [f](g) \textbackslash{}h `i` \_j\_ \textasciitilde{}k\textasciicircum{}l & "
    assert latex in (folder / "table.tex").read_text(encoding="utf-8")
    assert {"tradeoff.png", "importance.png", "ratios.pdf"} <= {path.name for path in folder.iterdir()}


def test_the_default_configuration_is_what_an_empty_one_gives():
    assert load_config(flags={"data_dir": None}) == Config()


def test_the_first_line_of_an_error_is_more_than_its_heading():
    assert first_line(RuntimeError("Error(s) in loading:\n\tsize mismatch for head\n\tmore")) == (
        "Error(s) in loading: size mismatch for head"
    )
    assert [first_line(each) for each in (KeyError(), ValueError(" a\nb"))] == ["KeyError", "a"]
