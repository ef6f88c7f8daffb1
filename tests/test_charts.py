"""Pictures with labels in any script."""

import logging
from pathlib import Path

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure

from resnet_lab import charts

HANGUL = "고양이"


@pytest.fixture
def old_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matplotlib's list of fonts, as if it were older than all fonts but its own."""
    manager = font_manager.fontManager
    own = [font for font in manager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(manager, "ttflist", own)
    monkeypatch.setattr(charts, "_no_font_for", set())
    manager._findfont_cached.cache_clear()  # type: ignore[attr-defined]


def labelled(text: str) -> np.ndarray:
    picture = np.zeros((8, 8, 3), np.uint8)
    return charts.render(lambda: charts.grid([charts.Tile(picture, text)], text))


def cjk_font() -> str | None:
    for path in font_manager.findSystemFonts():
        try:
            font = font_manager.get_font(path)
        except RuntimeError:
            continue
        if font.family_name in charts.FONTS and font.get_char_index(ord(HANGUL[0])):
            return path
    return None


def test_a_font_that_is_newer_than_matplotlibs_list_is_found(
    old_list: None, caplog: pytest.LogCaptureFixture
) -> None:
    if cjk_font() is None:
        pytest.skip("needs a font for Hangul, such as the package fonts-noto-cjk")
    assert charts.fonts() == ["DejaVu Sans"]
    first = labelled(HANGUL)
    assert len(charts.fonts()) > 1
    assert charts.fonts(HANGUL) == charts.fonts()
    np.testing.assert_array_equal(labelled(HANGUL), first)
    # Boxes would all be the same.
    assert not np.array_equal(labelled("비행기"), first)
    assert caplog.records == []


def test_without_such_a_font_one_line_names_the_package(
    old_list: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    searches = []

    def no_fonts() -> list[str]:
        searches.append(1)
        return []

    monkeypatch.setattr(charts, "findSystemFonts", no_fonts)
    for _ in range(3):
        labelled(HANGUL)
    assert len(searches) == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "fonts-noto-cjk" in record.getMessage()


def test_other_warnings_of_a_drawing_are_not_lost(tmp_path: Path) -> None:
    def draw() -> Figure:
        figure = Figure()
        figure.subplots().set_xlim(1, 1)  # Matplotlib warns of it
        return figure

    with pytest.warns(UserWarning, match="identical low and high xlims"):
        charts.write_png(tmp_path / "picture.png", draw)


def test_the_title_of_one_picture_is_all_there():
    tile = charts.Tile(np.zeros((8, 16, 3), np.uint8), "one.png")
    figure = charts.grid([tile], "1 image; dashed: what the net sees", side=1.6, seen=1.0)
    figure.canvas.draw()
    box = figure.axes[0].title.get_window_extent()  # all titles are on the left
    left = figure.axes[0]._left_title.get_window_extent()
    box = left if left.width > box.width else box
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert charts.is_cut(tile.picture, 1.0)
    assert not charts.is_cut(np.zeros((8, 8, 3), np.uint8), 1.0)
    assert not charts.is_cut(None, 1.0)
