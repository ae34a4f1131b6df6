"""The page of a run: what it says, that it needs nothing else, and that its slider does what stage 3 does."""

import html
import itertools
import json
import re
import shutil
import subprocess
from dataclasses import asdict
from html.parser import HTMLParser

import pytest
from run_folders import WIDTHS, head, pair, scores, write_own_run, write_run
from safetensors.torch import load, save

from lora_drop.cli import app as cli
from lora_drop.files import read_json, write_json
from lora_drop.pruning.agreement import agreement
from lora_drop.pruning.scores import Scored, Scores
from lora_drop.pruning.selection import select
from lora_drop.registry import CRITERIA, METHODS, TITLES
from lora_drop.report.charts import pareto
from lora_drop.report.criteria import side_by_side
from lora_drop.report.page import render, write_page
from lora_drop.runs import listing, words
from lora_drop.runs.facts import read_facts

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = """
<script>
const told = [], profile = document.querySelector(".profile"), field = profile.querySelector("input[type=number]");
const heads = profile.querySelector(".heat thead tr").cells;
const place = (cell) => [heads[cell.cellIndex].textContent, Number(cell.parentElement.cells[0].textContent)];
const read = (name) => [...profile.querySelectorAll(`[data-out^="${name}"]`)].map((each) => each.textContent);
for (const T of THRESHOLDS) {
  field.value = T;
  field.dispatchEvent(new Event("input"));
  told.push([read("parameters")[0], read("kept-"), read("compact")[0], read("peft")[0],
    [...profile.querySelectorAll("td.own")].map(place), profile.querySelector("input[type=range]").value]);
}
document.body.innerHTML = "";
document.body.append(Object.assign(document.createElement("pre"), { id: "told", textContent: JSON.stringify(told) }));
</script>
"""


def lora_drop(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    return end.value.code


def text_of(page: str) -> str:
    """The words of a page without its scripts and styles."""
    seen = re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", seen)).split())


class Structure(HTMLParser):
    """Checks that elements close in order, and collects attributes."""

    def __init__(self, page):
        super().__init__()
        self.open, self.attributes, self.ids = [], [], []
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "input", "br", "circle", "path", "polyline"):
            self.open.append(tag)
        self.attributes += [(tag, *each) for each in attrs]

    def handle_endtag(self, tag):
        if tag not in ("circle", "path", "polyline"):
            assert self.open.pop() == tag


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: chromium")
@pytest.mark.parametrize(
    "method",
    [{}, {"share": False}, {"policy": "inverse"}, {"policy": "random"}, {"policy": "top", "share": False}],
    ids=str,
)
def test_the_slider_selects_as_stage_3_does_at_a_hundred_thresholds(method, tmp_path):
    run = write_run(tmp_path / "run", scores(17, seed=3, projections=("value", "query")), seed=3, **method)
    rows = Scores.load(run / "scores.json").rows
    thresholds = [round(0.01 * number, 2) for number in range(1, 101)]
    page = render([read_facts(run)]).replace(
        "</body>", DRIVER.replace("THRESHOLDS", json.dumps(thresholds)) + "</body>"
    )
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--dump-dom", (tmp_path / "page.html").as_uri()]
    seen = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=True).stdout
    told = json.loads(html.unescape(re.search(r'<pre id="told">(.*?)</pre>', seen)[1]))
    assert len(told) == 100
    for threshold, (parameters, kept, compact, peft, marked, moved) in zip(thresholds, told, strict=True):
        chosen = select(rows, threshold, None, method.get("policy", "threshold"), method.get("share", True), 3)
        names = ("value", "query")  # the model's order
        assert kept == [words.spans(chosen.projections[name].retained) for name in names], threshold
        assert int(parameters.replace(",", "")) == chosen.trainable_parameters and float(moved) == threshold
        own = {(name, layer) for name in names for layer in chosen.projections[name].retained}
        assert set(map(tuple, marked)) == own and len(marked) == len(own)
        sizes = [len(save(tensors, {"format": "pt"})) for tensors in files(rows, chosen)]
        assert [int(size.replace(",", "")) for size in (compact, peft)] == sizes, threshold


def files(rows, chosen):
    """The tensors of the compact file and of PEFT's."""
    owners = {
        (name, layer)
        for name, layers in chosen.projections.items()
        for layer in (*layers.retained, *(layers.shared[:1] if chosen.share else ()))
    }
    compact = {n: t for row in rows if (row.projection, row.layer) in owners for n, t in pair(row).items()} | head()
    whole = {n: t for row in rows for n, t in pair(row).items()} | head()
    return compact, whole if chosen.share else compact


def test_a_page_answers_in_sentences_and_needs_nothing_else(tmp_path):
    run = write_run(tmp_path / "run", threshold=0.6, score=0.91)
    write_run(run / "compare" / "lora", name="lora", score=0.9)
    write_page([run], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    chosen, told = select(scores(), 0.6), text_of(page)
    query = chosen.projections["query"]
    assert f"{len(query.retained)} of 12 query layers ({words.spans(query.retained)})" in told
    assert f"LoRA-drop reaches accuracy 0.9100 with {chosen.trainable_parameters:,} parameters, LoRA 0.9000" in told
    assert "One seed each" in told and "The most frequent label for every row would give 0.5000" in told
    assert "lora-drop export" in told and "loss of the warm-up" in page and len(page) < 300_000
    found = Structure(page)
    assert not [each for each in found.attributes if each[1] in ("src", "href", "srcset")]
    assert "url(" not in page and "@import" not in page and "fetch(" not in page
    labelled = {
        value for tag, name, value in found.attributes if name in ("aria-labelledby", "aria-describedby", "for")
    }
    assert labelled and labelled <= {value for _, name, value in found.attributes if name == "id"}
    write_page([run], tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_seeds_are_repetitions_and_settings_tell_runs_apart(tmp_path):
    runs = [write_run(tmp_path / f"s{seed}", seed=seed, score=0.8 + seed / 100) for seed in range(3)]
    runs += [write_run(tmp_path / "low", threshold=0.5, score=0.7), write_run(tmp_path / "l", name="lora", score=0.9)]
    rows = words.compared([read_facts(run) for run in runs])
    assert [row.title for row in rows] == ["LoRA-drop (threshold 0.9)", "LoRA-drop (threshold 0.5)", "LoRA"]
    assert words.measured(rows[0]) == "0.8100 ± 0.0100" and rows[0].seeds == "0, 1, 2"
    page = render([read_facts(run) for run in runs])
    assert Structure(page) and "0.8100 ± 0.0100" in text_of(page) and page.count('class="profile"') == 4


def test_names_in_the_plot_do_not_cover_each_other(tmp_path):
    methods = ("lora", "vera", "adalora", "tied_lora", "full", "sparse_adapter")  # all at one place
    runs = [read_facts(write_run(tmp_path / name, name=name, score=0.8)) for name in methods]
    drawn = pareto(words.compared(runs))
    names = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="\w+" class="name">([^<]+)<', drawn)
    heights = sorted(float(y) for _, y, _ in names)
    assert len(names) == 6 and all(b - a >= 14 for a, b in itertools.pairwise(heights))


def test_intervals_and_doubts_are_shown(tmp_path):
    run = write_run(tmp_path / "run", losses=[0.7] * 8)
    modules = [
        {
            "projection": row.projection,
            "layer": row.layer,
            "importance": row.importance,
            "low": 0.0123,
            "high": 0.2,
            "retained": 0.87,
        }
        for row in scores()
    ]
    content = {"resamples": 300, "threshold": 0.9, "budget": None, "share": True, "modules": modules}
    write_json(run / "stability.json", content)
    manifest = read_json(run / "run.json")
    manifest["stages"]["train"]["limited"] = {"train": 200}
    manifest["stages"]["train"]["cut"] = {"train": ["7 of 200 inputs were cut at 128 tokens"]}
    write_json(run / "run.json", {**manifest, "status": "failed"})
    told = text_of(render([read_facts(run)]))
    assert told.count("1.2 to 20.0 % retained in 87 %") == 24 and "300 resamples" in told
    for doubt in (
        "it is failed",
        "only 200 train rows",
        "7 of 200 inputs were cut",
        "only 8 optimizer steps",
        "did not fall",
    ):
        assert doubt in told
    manifest["stages"]["train"]["trainable_parameters"]["adapter"] += 1
    write_json(run / "run.json", manifest)
    assert "trained under another selection" in text_of(render([read_facts(run)]))
    write_json(run / "stability.json", {**content, "threshold": 0.8})  # of another selection
    assert "resamples" not in text_of(render([read_facts(run)]))


def write_criteria(run, names=("output", "gradient", "mine"), layers=12):
    """Write what the stage `criteria` writes."""
    modules = {name: [asdict(row) for row in scores(layers, seed=number)] for number, name in enumerate(names)}
    modules[names[0]] = read_json(run / "scores.json")["modules"]
    criteria = {name: {"version": 1, "modules": rows} for name, rows in modules.items()}
    content = {"chosen": names[0], "criteria": criteria, "agreement": agreement(modules)}
    write_json(run / "criteria.json", content)
    return content


@pytest.mark.parametrize(
    ("criterion", "measured"), [("output", "‖ΔW·x‖²"), ("weight", "weights ‖ΔW‖"), ("of_a_plugin", "of_a_plugin")]
)
def test_the_caption_says_what_was_measured(criterion, measured, tmp_path):
    run = write_run(tmp_path / "run")
    config = (run / "config.yaml").read_text().replace("criterion: output", f"criterion: {criterion}")
    (run / "config.yaml").write_text(config)
    assert f"its share of {measured} within the projection" in text_of(render([read_facts(run)]))


def test_own_data_are_called_by_their_file(tmp_path):
    runs = []
    for name in ("reviews.csv", "tickets.csv"):
        run = write_run(tmp_path / name)
        config = (run / "config.yaml").read_text().replace("  path: null", f"  path: data/{name}")
        (run / "config.yaml").write_text(config.replace("toy-nli", "own"))
        runs.append(read_facts(run))
    told = text_of(render(runs))
    for name in ("reviews.csv", "tickets.csv"):
        assert f"Which layers does {name} need?" in told and f"{name} needs a LoRA of its own in" in told
    assert listing.row(runs[0], tmp_path)["task"] == "reviews.csv"


def test_runs_of_other_rows_are_not_compared(tmp_path):
    """The name of a file says as little about its rows as its path does."""

    def topics(*files):
        runs = [
            write_own_run(tmp_path / f"{path}{content}-{number}", path, content, seed=number, name="lora")
            for number, (path, content) in enumerate(files)
        ]
        told = text_of(render([read_facts(run) for run in runs]))
        return re.findall(r"Which layers does (.*?) need\?", told)[1:], told

    titles, told = topics(("A/r.csv", "aa"), ("B/r.csv", "bb"))
    assert titles == ["A/r.csv", "B/r.csv"] and "0.9000 ±" not in told
    titles, told = topics(("r.csv", "aa"), ("r.csv", "bb"))
    assert titles == ["r.csv (train aa, validation aa)", "r.csv (train bb, validation bb)"] and "0.9000 ±" not in told
    for content in ("aa", None):
        titles, told = topics(("r.csv", "aa"), ("r.csv", content))
        assert titles == ["r.csv"] and "0.9000 ±" in told


def test_criteria_stand_side_by_side(tmp_path):
    run = write_run(tmp_path / "run", threshold=0.6)
    content = write_criteria(run)
    (query, value) = side_by_side(read_facts(run))
    assert [row["name"] for row in query["rows"]] == ["output", "gradient", "mine"]
    assert query["rows"][2]["title"] == "mine" and query["rows"][1]["title"] != "gradient"
    for row in (*query["rows"], *value["rows"]):
        projection = "query" if row in query["rows"] else "value"
        rows = [Scored(**each) for each in content["criteria"][row["name"]]["modules"]]
        chosen = select(rows, 0.6).projections[projection].retained
        assert tuple(layer for layer, cell in enumerate(row["cells"]) if cell[2]) == chosen
        assert [cell[0] for cell in row["cells"]] == [each.importance for each in rows if each.projection == projection]
    of_pair = {(row["projection"], row["one"], row["two"]): row["tau"] for row in content["agreement"]}
    assert query["rows"][2]["taus"] == [of_pair["query", "output", "mine"], of_pair["query", "gradient", "mine"], 1.0]
    page = render([read_facts(run)])
    told = text_of(page)
    assert Structure(page) and "Criteria side by side" in told
    assert f"{of_pair['value', 'output', 'gradient']:+.2f}" in told
    Scores(tuple(scores(seed=9)), 90, 900).save(run / "scores.json")  # scored again since
    assert "Criteria side by side" not in text_of(render([read_facts(run)]))


def test_a_page_of_a_large_model_is_small(tmp_path):
    names = ("query", "key", "value", "output", "gate", "up", "down")
    WIDTHS.update(dict.fromkeys(names[3:], (32, 32)) | {"key": (32, 32)})
    run = write_run(tmp_path / "run", scores(32, projections=names))
    content = {name: {"version": 1, "modules": read_json(run / "scores.json")["modules"]} for name in CRITERIA.own}
    taus = agreement({name: entry["modules"] for name, entry in content.items()})
    write_json(run / "criteria.json", {"chosen": "output", "criteria": content, "agreement": taus})
    write_json(run / "warmup" / "losses.json", {"losses": [1 / n for n in range(1, 3000)]})
    page = render([read_facts(run)])
    assert len(page.encode()) < 300_000 and page.count('class="strips"') == 7


def test_names_and_paths_are_text_not_markup(tmp_path):
    folder = tmp_path / "<b>a & 'b'" / "</script>"
    page = render([read_facts(write_run(folder))])
    assert (
        Structure(page)
        and "<b>a" not in page
        and "</script>" not in page.split('type="application/json"')[1].split("</script>")[0]
    )
    assert f"lora-drop export '{tmp_path}/<b>a & '\"'\"'b'\"'\"'/</script>' --to peft" in text_of(page)


def test_a_run_without_a_selection_has_a_page_too(tmp_path):
    run = write_run(tmp_path / "run", name="full", score=None)
    assert Structure(page := render([read_facts(run)])) and "Nothing was trained yet" in text_of(page)


def test_a_single_epoch_has_no_curve_but_was_trained(tmp_path):
    run = write_run(tmp_path / "run", name="full")
    manifest = read_json(run / "run.json")
    manifest["stages"]["train"]["epochs"] = manifest["stages"]["train"]["epochs"][:1]
    write_json(run / "run.json", manifest)
    told = text_of(render([read_facts(run)]))
    assert "One epoch was trained: there is no curve." in told and "Nothing was trained" not in told


def test_a_compact_file_is_offered_where_layers_share(tmp_path):
    for threshold, offered in ((0.5, True), (1.0, False)):
        page = render([read_facts(write_run(tmp_path / f"{threshold}", threshold=threshold))])
        assert ("--to compact" in page) == offered


def test_the_snippet_is_of_the_lora_that_was_scored(tmp_path):
    run = write_run(tmp_path / "run", rank=16)
    for rslora, told in ((False, "LoraConfig(r=4, lora_alpha=8, target_modules=["), (True, "8, use_rslora=True, ")):
        write_json(run / "warmup" / "adapter_config.json", {"r": 4, "lora_alpha": 8, "use_rslora": rslora})
        assert told in text_of(render([read_facts(run)]))


def test_layers_in_a_row_are_told_as_spans():
    assert words.spans([0, 3, 4, 5, 7, 8]) == "0, 3 to 5, 7, 8" and words.spans([]) == "" and words.spans([2]) == "2"


def test_the_titles_are_those_of_the_methods():
    assert {name: METHODS.get(name).title for name in METHODS.names()} == TITLES


def test_the_command_makes_pages_and_refuses_what_is_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1), (tmp_path / "empty").mkdir()
    assert lora_drop("report", "a") == 0 and (tmp_path / "a" / "report.html").is_file()
    assert lora_drop("report", "a", "b", "--json") == 0 and (tmp_path / "report.html").is_file()
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"page": "report.html"}
    assert lora_drop("report", "a", "--out", "x/y.html") == 0 and (tmp_path / "x" / "y.html").is_file()
    for arguments, message in (
        (["a", "figure2"], "figure2 is not a run directory"),
        (["./c"], "./c is not a run directory"),
        (["--out", "x.html"], "--out is for the page of run directories"),
        (["b/.."], "is not a run directory"),
        (["empty"], "empty is not a run directory"),
        (["a", "--out", "empty"], "empty cannot be written"),
        (["a", "--out", "b/config.yaml"], "exists and is not a page of lora-drop"),
    ):
        assert lora_drop("report", *arguments) == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.rglob(".*")), "nothing half written is left"
    (tmp_path / "a" / "scores.json").write_text("{")
    assert lora_drop("report", "a") == 2 and "does not hold scores" in capsys.readouterr().err


def test_a_page_over_a_warm_up_that_is_damaged_is_refused(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    weights = run / "warmup" / "adapter_model.safetensors"
    whole = load(weights.read_bytes())
    first = min(name for name in whole if "lora_A" in name)  # safetensors gives them in any order
    for damaged, message in (
        (save(whole)[:-1], "is not a readable safetensors file"),
        (
            save({name: whole[name] for name in whole if name != first}),
            "which scores.json names: the two are from different warm-ups",
        ),
    ):
        weights.write_bytes(damaged)
        assert lora_drop("report", run) == 2 and message in capsys.readouterr().err


def test_an_adapter_without_parameters_is_drawn(tmp_path):
    runs = [read_facts(write_run(tmp_path / "own")), read_facts(write_run(tmp_path / "lora", name="lora"))]
    runs[1].stages["train"]["trainable_parameters"]["adapter"] = 0
    assert "with 0 parameters" in pareto(words.compared(runs))


def test_a_copy_of_a_run_is_no_further_seed(tmp_path):
    run, copy = write_run(tmp_path / "a", score=0.75), tmp_path / "b"
    shutil.copytree(run, copy)
    (row,) = words.compared([read_facts(run), read_facts(copy)])
    assert row.seeds == "0" and row.deviation is None
    said = text_of(render([read_facts(run), read_facts(copy)]))
    assert f"it has the configuration and the seed of {run}, so only the latter is counted" in said
    other = write_run(tmp_path / "c", score=0.8, seed=1)
    (row,) = words.compared([read_facts(run), read_facts(copy), read_facts(other)])
    assert row.seeds == "0, 1" and row.scores == [0.75, 0.8]
