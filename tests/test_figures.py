"""Figures from records: what they name, count and tell apart."""

import shutil
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure
from measured import RESULTS, record

from lora_drop.errors import UserError
from lora_drop.experiments.agreement import between_rows, retained_alike, seeds_and_tasks
from lora_drop.experiments.figures.criteria import points_of
from lora_drop.experiments.markdown import to_markdown
from lora_drop.experiments.plots import OWN, shade
from lora_drop.experiments.records import read_records
from lora_drop.experiments.report import draw
from lora_drop.experiments.table import build_tables
from lora_drop.registry import FIGURES

SCORES = [{"projection": name, "layer": layer, "importance": 0.5} for name in ("query", "value") for layer in (0, 1)]


def test_the_importance_figure_counts_seeds_not_rows():
    records = [
        record(row, "rte", seed, 0.8, experiment="table7", scores=SCORES)
        for row in ("lora_drop", "inverse", "top")
        for seed in (0, 1)
    ]
    figure = FIGURES.get("importance").of(build_tables(records)[0])
    assert next(axis.get_title() for axis in figure.axes) == "RTE (n = 2 seeds)"
    own = [{**module, "importance": 0.2 + 0.6 * module["layer"]} for module in SCORES]
    table = build_tables([*records, record("without_share", "rte", 0, 0.8, experiment="table7", scores=own)])[0]
    drawn = next(row.title for row in table.rows if row.name == "lora_drop")
    figure = FIGURES.get("importance").of(table)
    assert next(axis.get_title() for axis in figure.axes) == f"RTE (n = 2 seeds)\n{drawn}"


def test_the_tradeoff_names_every_row():
    records = [record("full", "rte", 0, 0.8), record("full", "mrpc", 0, 0.8), record("lora_drop", "mrpc", 0, 0.8)]
    figure = FIGURES.get("tradeoff").of(build_tables(records)[0])
    names = [{(text.get_text(), text.get_color()) for text in axis.texts} for axis in figure.axes]
    assert names == [{("Full-FT", "black")}, {("LoRA-drop", OWN), ("Full-FT", "black")}] and not figure.legends
    assert {bar.lines[0].get_color() for bar in figure.axes[1].containers} >= {OWN}
    table = build_tables(read_records(RESULTS / "minilm" / "packaged-minilm-l6"))[0]
    measured = [row.title for row in table.rows if row.cells]
    figure = FIGURES.get("tradeoff").of(table)
    (legend,) = figure.legends  # too many for names at the points; that of Full-FT is at its line
    assert len(measured) > 9 and [text.get_text() for text in legend.get_texts()] == measured[1:]
    assert {text.get_text() for axis in figure.axes for text in axis.texts} == {"Full-FT"} == {measured[0]}


def test_the_key_of_the_claims_names_the_marks_that_are_drawn():
    key = {}
    for experiment, backbone in (("mpnet", "mpnet-base"), ("minilm", "minilm-l6")):
        folder = RESULTS / experiment / f"packaged-{backbone}"
        (axis,) = FIGURES.get("claims").of(build_tables(read_records(folder))[0]).axes
        key[experiment] = axis.get_xlabel().replace("\n", " ")
    for mark, nowhere_held_out in {"thick": True, "strokes": True, "dotted": True, "grey": False}.items():
        assert f"{mark}: " in key["mpnet"] and (f"{mark}: " in key["minilm"]) is nowhere_held_out


@pytest.mark.parametrize("name", ["tradeoff", "curves"])
def test_a_legend_of_long_titles_is_inside_the_picture(name):
    figure = FIGURES.get(name).of(build_tables(read_records(RESULTS / "mpnet" / "packaged-mpnet-base"))[0])
    figure.draw_without_rendering()
    left, right = figure.legends[0].get_window_extent().intervalx
    assert 0 <= left < right <= figure.bbox.width


def test_ratios_are_told_apart_by_lightness():
    from matplotlib.colors import to_rgb

    lightness = [np.dot(to_rgb(shade(number, 10)), [0.2126, 0.7152, 0.0722]) for number in range(10)]
    assert all(one > other + 0.02 for one, other in pairwise(lightness))


def test_kendall_is_that_of_the_rankings():
    def scores(*values):
        return [{"projection": "query", "layer": layer, "importance": value} for layer, value in enumerate(values)]

    rows = {"r0.1": scores(0.1, 0.2, 0.3, 0.4), "r0.2": scores(0.1, 0.2, 0.3, 0.4), "r0.3": scores(0.4, 0.3, 0.2, 0.1)}
    records = [record(row, "rte", 0, 0, experiment="figure11", metrics={}, scores=value) for row, value in rows.items()]
    (table,) = build_tables(records)
    assert between_rows(table, "query") == {("0.1", "0.2"): 1.0, ("0.1", "0.3"): -1.0, ("0.2", "0.3"): -1.0}


def test_ablations_are_grey_beside_lora_drop():
    records = [
        record("lora_drop", "rte", 0, 0.8, experiment="table7", config={"task": "rte", "seed": 0}),
        *(
            record(row, "rte", 0, 0.79, experiment="table7", method="lora_drop", config={"method": changed})
            for row, changed in (("inverse", {"policy": "inverse"}), ("without_share", {"share": False}))
        ),
    ]
    assert [each.own for each in records] == [True, False, False]


def test_the_dashed_line_joins_what_nothing_beats_with_as_few_parameters():
    sizes = {"lora": (300, 0.80), "sparse_adapter": (100, 0.70), "vera": (200, 0.69), "lora_drop": (150, 0.75)}
    records = [
        record(row, "rte", 0, score, parameters={"adapter": size, "head": 0}) for row, (size, score) in sizes.items()
    ]
    (axis, *_) = FIGURES.get("tradeoff").of(build_tables(records)[0]).axes
    (line,) = [line for line in axis.lines if line.get_linestyle() == "--"]
    assert list(line.get_xdata()) == [100, 150, 300] and list(line.get_ydata()) == pytest.approx([70, 75, 80])


def test_the_dashed_line_is_that_of_the_sizes_not_of_places_side_by_side():
    scores = {"lora_drop": 0.75, "vera": 0.74, "sparse_adapter": 0.78}  # the first is drawn to the left of the others
    records = [
        record("lora", "rte", 0, 0.80),
        *(record(row, "rte", 0, score, parameters={"adapter": 150, "head": 0}) for row, score in scores.items()),
    ]
    (axis, *_) = FIGURES.get("tradeoff").of(build_tables(records)[0]).axes
    (line,) = [line for line in axis.lines if line.get_linestyle() == "--"]
    assert list(line.get_xdata()) == [150, 294912] and list(line.get_ydata()) == pytest.approx([78, 80])


def test_adapters_without_parameters_have_no_tradeoff():
    none = record("lora", "rte", 0, 0.8, parameters={"adapter": 0, "head": 66})
    assert FIGURES.get("tradeoff").of(build_tables([none])[0]) is None


def test_the_distribution_has_panels_for_each_task():
    norms = [{"projection": name, "layer": layer, "norms": [1.0, 2.0, 3.0]} for name in "qv" for layer in (0, 1)]
    records = [record("lora", task, seed, 0.8, norms=norms) for task in ("rte", "cola") for seed in (1, 0)]
    figure = FIGURES.get("distribution").of(build_tables(records)[0])
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == [f"{task}, {name} (3 examples, seed 1)" for task in ("RTE", "CoLA") for name in "qv"]


def test_criteria_are_compared_by_lora_drop_alone():
    criteria = {"output": {}, "weight": {"score": {"criterion": "weight"}}}
    records = [
        record(name, "rte", 0, 0.8, method="lora_drop", config={"method": {"name": "lora_drop"}, **changed})
        for name, changed in criteria.items()
    ]
    inverse = {"method": {"name": "lora_drop", "policy": "inverse"}}
    others = [record("vera", "rte", 0, 0.7), record("x", "rte", 0, 0.7, method="lora_drop", config=inverse)]
    assert points_of([*others, *records]) == {name: [(294912, 80, 0)] for name in criteria}


def test_a_figure_that_is_not_known_is_told_and_the_others_drawn(tmp_path):
    layout = {**record("lora", "rte", 0, 0.8).layout, "figures": ["mine", "tradeoff"]}
    tables, told = build_tables([record("lora", "rte", 0, 0.8, layout=layout)]), []
    draw(tables, tmp_path, told.append)
    assert len(told) == 1 and "'mine'" in told[0] and "--plugin" in told[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tradeoff.pdf", "tradeoff.png"]
    with pytest.raises(UserError, match="mine"):
        draw(tables, tmp_path)


def test_rows_of_one_size_stand_beside_each_other_and_full_fine_tuning_is_a_line():
    sizes = {"lora": 900, "sparse_adapter": 100, "vera": 100, "full": 10**8}
    records = [
        record(row, "rte", 0, 0.8, method="full" if row == "full" else row, parameters={"adapter": size, "head": 0})
        for row, size in sizes.items()
    ]
    (axis, *_) = FIGURES.get("tradeoff").of(build_tables(records)[0]).axes
    places = sorted(container.lines[0].get_xdata()[0] for container in axis.containers)
    assert places[0] < 100 < places[1] < 110 and places[2] == 900
    assert places[0] * places[1] == pytest.approx(100**2) and axis.get_xlim()[1] < 2000
    assert any(set(line.get_ydata()) == {80} and line.get_linestyle() == ":" for line in axis.lines)


def test_each_panel_has_the_sizes_of_its_own_task_and_a_table_weighs_tasks_alike():
    sizes = {("rte", 0): 200, ("mrpc", 0): 100, ("mrpc", 1): 110, ("mrpc", 2): 120}
    records = [
        record("lora_drop", task, seed, 0.8, parameters={"adapter": size, "head": 0})
        for (task, seed), size in sizes.items()
    ]
    table = build_tables(records)[0]
    places = {
        axis.get_title(): axis.containers[0].lines[0].get_xdata() for axis in FIGURES.get("tradeoff").of(table).axes
    }
    assert {title: list(place) for title, place in places.items()} == {"RTE": [200], "MRPC": [110]}
    assert next(row.parameters for row in table.rows if row.name == "lora_drop") == 155


def test_the_heat_strip_counts_the_seeds_in_which_the_row_of_most_runs_retains_a_layer():
    scores = [
        {"projection": name, "layer": layer, "score": 1.0, "importance": 0.7 - 0.4 * layer}
        for name in ("query", "value")
        for layer in (0, 1)
    ]
    records = [
        record(row, "rte", seed, 0.8, experiment="table6", method="lora_drop", scores=scores, selection=chosen)
        for row, seed, retained in (("t0.95", 0, [0, 1]), ("t0.90", 0, [0]), ("t0.90", 1, [0, 1]))
        for parts in ({name: {"retained": retained, "shared": []} for name in ("query", "value")},)
        for chosen in ({"projections": parts},)
    ]
    query, value, _ = FIGURES.get("layers").of(build_tables(records)[0]).axes
    for axis in (query, value):
        assert [text.get_text() for text in axis.texts] == ["2", "1"]
        assert np.allclose(axis.images[0].get_array(), [[0.7, 0.3]])


def own_warm_ups(*values):
    """Records of two rows of one task, with these importances of the first of two layers."""
    rows = ("t0.95", "t0.90")
    return [
        record(
            *(row, "rte", seed, 0.8),
            experiment="table6",
            method="lora_drop",
            scores=[{"projection": "query", "layer": layer, "score": 1.0, "importance": each} for layer, each in both],
            selection={"projections": {"query": {"retained": [0], "shared": [1]}}},
        )
        for seed, value in enumerate(values)
        for row, first in zip(rows, value, strict=False)
        for both in (((0, first), (1, 1 - first)),)
    ]


def test_the_heat_strip_shades_the_warm_ups_whose_choices_it_counts():
    table = build_tables(own_warm_ups((0.9, 0.6), (0.8, 0.4))[:3] + own_warm_ups((0.9, 0.6), (0.8, 0.4))[3:])[0]
    fewer = build_tables([each for each in table.records if (each.row, each.seed) != ("t0.95", 1)])[0]
    assert np.allclose(FIGURES.get("layers").of(table).axes[0].images[0].get_array(), [[0.85, 0.15]])
    assert np.allclose(FIGURES.get("layers").of(fewer).axes[0].images[0].get_array(), [[0.5, 0.5]])


def test_rows_of_one_task_with_warm_ups_of_their_own_have_panels_of_their_own():
    titles = [axis.get_title() for axis in FIGURES.get("importance").of(build_tables(own_warm_ups((0.9, 0.6)))[0]).axes]
    assert [title.split(" (n")[0] for title in titles] == ["RTE, T = 0.95", "RTE, T = 0.9"]
    same = FIGURES.get("importance").of(build_tables(own_warm_ups((0.9, 0.9)))[0])
    assert [axis.get_title() for axis in same.axes] == ["RTE (n = 1 seed)"]


def test_layers_without_a_lora_after_the_training_have_no_bar_after_it():
    def scores(**by_layer):
        rows = [(int(name[1:]), value) for name, value in by_layer.items()]
        return [{"projection": "query", "layer": layer, "importance": value} for layer, value in rows]

    chosen = {"projections": {"query": {"retained": [0, 2], "shared": [1]}}}
    before, after = scores(l2=0.5, l0=0.3, l1=0.2), scores(l0=0.4, l2=0.6)
    kept = {"scores": before, "trained_scores": after, "selection": chosen}
    mine = record("lora_drop", "rte", 0, 0.8, experiment="figure7", **kept)
    (axis,) = FIGURES.get("sharing").of(build_tables([mine])[0]).axes
    bars = {(round(float(bar.get_x() + 0.2), 1), float(bar.get_height())) for bar in axis.patches if bar.get_height()}
    assert bars == {(-0.2, 0.3), (0.8, 0.2), (1.8, 0.5), (0.2, 0.4), (2.2, 0.6)}


@pytest.mark.parametrize("name", ["sharing", "layers"])
def test_a_figure_has_the_projections_of_what_it_draws(name):
    """Another row has a LoRA on other projections."""

    def scores(*projections):
        return [
            {"projection": each, "layer": layer, "importance": 0.6 - 0.2 * layer}
            for each in projections
            for layer in (0, 1)
        ]

    runs = [
        record(row, task, 0, 0.8, method="lora_drop", scores=rows, trained_scores=rows, selection={"projections": kept})
        for row, task, projections in (
            ("lora_drop", "rte", ("query", "value")),
            ("sparse_adapter", "rte", ("key",)),
            ("lora_drop", "mrpc", ("value",)),
        )
        for rows, kept in [(scores(*projections), {each: {"retained": [0], "shared": [1]} for each in projections})]
    ]
    axes = [axis for axis in FIGURES.get(name).of(build_tables(runs)[0]).axes if axis.get_title()]
    assert len(axes) == 2 and {axis.get_title() for axis in axes} <= {"query", "value"}
    if name == "layers":
        (query,) = [axis.images[0].get_array() for axis in axes if axis.get_title() == "query"]
        assert np.allclose(np.ma.filled(query, np.nan), [[0.6, 0.4], [np.nan] * 2], equal_nan=True)


def test_rows_with_other_projections_are_compared_where_they_have_the_same():
    """Of three sample ratios one has no LoRA on the values."""
    both = (("query", "value"), ("query",), ("query", "value"))
    scores = [
        [
            {"projection": each, "layer": layer, "importance": share}
            for each in projections
            for layer, share in enumerate(shares)
        ]
        for projections, shares in zip(both, ((0.5, 0.3, 0.2), (0.2, 0.3, 0.5), (0.5, 0.2, 0.3)), strict=True)
    ]
    rows = ("r0.1", "r0.2", "r0.3")
    runs = [
        record(row, "rte", 0, 0, experiment="figure11", metrics={}, scores=given)
        for row, given in zip(rows, scores, strict=True)
    ]
    (table,) = build_tables(runs)
    assert (
        between_rows(table, "value") == {("0.1", "0.3"): pytest.approx(1 / 3)}
        and len(between_rows(table, "query")) == 3
    )
    assert "| 0.3 | 0.33 | 1.00 |" in to_markdown([table])
    axes = FIGURES.get("ratios").of(table).axes
    assert [len(axis.lines) for axis in axes] == [3, 2] and len(axes[0].figure.legends[0].get_texts()) == 3
    assert len(FIGURES.get("importance").of(table).axes) == 6


def test_a_learning_curve_is_the_mean_over_seeds_of_the_epochs_that_all_have():
    def run(seed, *scores):
        return record("lora", "rte", seed, 0.8, epochs=[{"epoch": e, "accuracy": s} for e, s in enumerate(scores, 1)])

    (axis,) = FIGURES.get("curves").of(build_tables([run(0, 0.6, 0.8), run(1, 0.7, 0.9, 0.5)])[0]).axes
    (line,) = axis.lines
    assert list(line.get_xdata()) == [1, 2] and np.allclose(line.get_ydata(), [65, 85])


def test_a_smaller_report_removes_the_figures_of_a_larger_one_and_nothing_else(tmp_path):
    records = [
        record("lora", "rte", seed, 0.8, experiment="figure9", scores=SCORES, overrides=asked)
        for seed, asked in enumerate(({}, {"method.rank": 4}))
    ]
    tables = build_tables(records)
    draw(tables, tmp_path)
    ours = sorted(path.name for path in tmp_path.iterdir())
    assert [name for name in ours if "-2" in name] == ["importance-2.pdf", "importance-2.png"]
    shutil.copy(tmp_path / "importance-2.png", tmp_path / "importance-before.png")  # kept under a name of one's own
    Figure().savefig(tmp_path / "claims.png"), Figure().savefig(tmp_path / "layers-3.pdf")  # drawn by somebody else
    (tmp_path / "curves.csv").write_text("mine")
    mine = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name not in ours}
    draw(tables[:1], tmp_path)
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert (
        sorted(left) == sorted([*mine, *(name for name in ours if "-2" not in name)]) and left.items() >= mine.items()
    )


def test_agreement_of_seeds_and_of_tasks_beside_chance():
    def run(task, seed, values, retained):
        rows = [{"projection": "query", "layer": layer, "score": value, "importance": value} for layer, value in values]
        kept = {"projections": {"query": {"retained": retained, "shared": []}}}
        return record("lora_drop", task, seed, 0.8, selection=kept, scores=rows)

    up, down = [(3, 0.4), (0, 0.1), (1, 0.2), (2, 0.3)], [(0, 0.4), (1, 0.3), (2, 0.2), (3, 0.1)]
    runs = {"a": [run("a", 0, up, [2, 3]), run("a", 1, up, [3])], "b": [run("b", 0, down, [0, 3])]}
    same, other = seeds_and_tasks(runs, "query")
    assert (same.tau, same.common, same.chance) == pytest.approx((1, 2 / 3, 2 * 2 * 1 / 4 / 3))
    assert (other.tau, other.common) == pytest.approx((-1, (2 / 4 + 2 / 3) / 2))
    assert retained_alike(runs["a"], "query") == "1.0 of 1.5"
