"""The picture of a selection: bars for few layers, a strip for many, and what is written on both."""

from dataclasses import replace

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.patches import Rectangle
from run_folders import scores

from lora_drop.pruning.picture import importance_figure, save_figure
from lora_drop.pruning.scores import Scored
from lora_drop.pruning.selection import select


def many(projections: int, layers: int) -> list[Scored]:
    """Importances of more projections than the small run has."""
    return [
        replace(row, projection=f"p{number}", name=f"{row.name}.{number}")
        for number in range(projections)
        for row in scores(layers, seed=number, projections=("query",))
    ]


def doubts(rows, retained=0.5):
    return [
        {
            "projection": row.projection,
            "layer": row.layer,
            "low": 0.9 * row.importance,
            "high": 1.1 * row.importance,
            "retained": retained,
        }
        for row in rows
    ]


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def frames(figure) -> set[tuple[int, int]]:
    """Layer and row of the framed cells."""
    found = [each for each in figure.axes[0].patches if isinstance(each, Rectangle) and not each.get_fill()]
    return {(round(each.get_x() + 0.44), round(each.get_y() + 0.42)) for each in found}


@pytest.mark.parametrize(("projections", "layers"), [(7, 32), (3, 6), (2, 24), (7, 80)])
def test_many_layers_are_a_strip_that_fits_on_a_page(projections, layers):
    rows = many(projections, layers)
    selection = select(rows, 0.8)
    figure = importance_figure(rows, selection, "a task", doubts(rows))
    width, height = figure.get_size_inches()
    assert width <= 0.3 * layers + 6 and height < 6 and width >= 7.5
    assert frames(figure) == {
        (layer, number) for number in range(projections) for layer in selection.projections[f"p{number}"].retained
    }
    assert figure.axes[0].images[0].get_array().shape == (projections, layers)
    marks = texts(figure)
    assert all("–" in mark for mark in marks) if layers <= 16 else set(marks) == {"?"}


def test_few_layers_are_bars_with_their_intervals():
    rows = scores(12)
    figure = importance_figure(rows, select(rows, 0.8), "a task", doubts(rows))
    assert len(figure.axes) == 2
    for axis, projection in zip(figure.axes, ("query", "value"), strict=True):
        bars = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in axis.patches}
        assert bars == {row.layer: row.importance for row in rows if row.projection == projection}
        assert sum(isinstance(each, ErrorbarContainer) for each in axis.containers) == 12


def test_the_title_tells_threshold_and_saving():
    rows = scores(12)
    selection = select(rows, 0.8)
    whole = sum(row.parameters for row in rows)
    title = importance_figure(rows, selection, "cost $5$").get_suptitle()
    assert (
        title.startswith(r"cost \$5\$")
        and f"T = 0.8, {selection.trainable_parameters:,} of {whole:,} parameters" in title
    )
    assert f"({1 - selection.trainable_parameters / whole:.0%} saved)" in title
    assert "(inverse)" in importance_figure(rows, select(rows, 0.8, policy="inverse"), "x").get_suptitle()


def test_nothing_of_a_strip_is_cut_off(tmp_path):
    rows = many(7, 32)
    figure = importance_figure(rows, select(rows), "a task, meta-llama/Llama-2-7b-hf", doubts(rows))
    save_figure(figure, tmp_path / "a.png")
    renderer = FigureCanvasAgg(figure).get_renderer()
    inside = figure.bbox
    for text in [figure._suptitle, figure.axes[0].xaxis.label, *figure.axes[0].get_yticklabels()]:
        box = text.get_window_extent(renderer)
        assert box.x0 >= inside.x0 and box.x1 <= inside.x1 and box.y0 >= inside.y0 and box.y1 <= inside.y1, text
