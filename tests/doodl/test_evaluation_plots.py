"""Plots: a dot where the mean is, a line as long as the interval, and text that stays text."""

from xml.etree import ElementTree

import pytest

from doodl.evaluation.plots import plot_name, svg_of, write_plots
from doodl.evaluation.tables import Table

SVG = "{http://www.w3.org/2000/svg}"


def table(values, labels=("a", "b", "c"), title="t: gains"):
    rows = tuple((label, "…") for label in labels)
    return Table(title, "c", ("method", "gain"), rows, values=tuple(values),
                 plotted=(("gain", "gain"), ("absent", "nobody has it")))  # fmt: skip


def interval(mean, half):
    return {"gain": {"mean": mean, "low": mean - half, "high": mean + half, "count": 9}}


def parsed(one):
    root = ElementTree.fromstring(svg_of(one))
    dots = [float(dot.get("cx")) for dot in root.iter(f"{SVG}circle")]
    lines = [
        (float(line.get("x1")), float(line.get("x2")))
        for line in root.iter(f"{SVG}line")
        if line.get("stroke-width") == "2"
    ]
    return root, dots, lines


def test_dots_and_lines_are_in_proportion_to_means_and_intervals():
    _, dots, lines = parsed(table([interval(-1, 0.5), interval(0, 1), interval(3, 0.25)]))
    scale = (dots[1] - dots[0]) / 1
    assert scale > 0
    # Places are written to a tenth of a pixel.
    assert dots[2] - dots[1] == pytest.approx(3 * scale, abs=0.3)
    assert [x2 - x1 for x1, x2 in lines] == pytest.approx([scale, 2 * scale, scale / 2], abs=0.3)


def test_row_without_the_figure_has_no_dot_and_a_figure_nobody_has_no_panel():
    root, dots, _ = parsed(table([interval(1, 0.5), {"gain": None}, interval(2, 0.5)]))
    assert len(dots) == 2
    assert not any("nobody" in (text.text or "") for text in root.iter(f"{SVG}text"))
    assert svg_of(table([{"gain": None}] * 3)) is None


@pytest.mark.parametrize("value", [0.0, 1e-9, 7e6, -3.3])
def test_figures_of_any_size_are_plotted_inside_the_picture(value):
    root, dots, _ = parsed(table([interval(value, 0)] * 3))
    assert all(0 <= x <= float(root.get("width")) for x in dots)


def test_names_from_outside_stay_text():
    evil = "<script>alert(1)</script>&\x1b[31m"
    root, _, _ = parsed(table([interval(1, 1)] * 3, labels=(evil, "b", "c")))
    assert {element.tag for element in root.iter()} <= {
        SVG + tag for tag in ("svg", "rect", "text", "line", "circle")
    }
    assert plot_name("../Über: a/b") == "ber-a-b"


def test_plots_of_an_earlier_evaluation_go(tmp_path):
    values = [interval(1, 1)] * 3
    write_plots(tmp_path, [table(values), table(values, title="u")])
    written = write_plots(tmp_path, [table(values, title="u")])
    assert [path.name for path in tmp_path.iterdir()] == [written["u"].name] == ["u.svg"]
