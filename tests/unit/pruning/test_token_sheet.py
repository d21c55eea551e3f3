from __future__ import annotations

import numpy as np

from nasvit.pruning.token_sheet import GAP, LABEL, PANEL, Panel, token_sheet

IMAGE = np.full((8, 8, 3), 100, dtype=np.uint8)


def inside(sheet, panel: int) -> np.ndarray:
    """The pixels of the n-th panel (0 is the image itself)."""
    x, y = GAP + panel % 6 * (PANEL + GAP), GAP + LABEL + panel // 6 * (PANEL + LABEL + GAP)
    return np.asarray(sheet)[y : y + PANEL, x : x + PANEL]


def test_a_token_that_is_not_kept_fades_and_the_others_stay() -> None:
    places = np.array([[0, -1], [1, 2]])
    found = inside(token_sheet(IMAGE, [Panel(label="block 0", kind="kept", places=places)]), 1)
    half = PANEL // 2
    assert (found[:half, half:] > 200).all() and (found[half:] == 100).all() and (found[:half, :half] == 100).all()


def test_merged_tokens_show_their_mean() -> None:
    image = IMAGE.copy()
    image[:, 4:] = 200
    found = inside(token_sheet(image, [Panel(label="block 0", kind="merged", places=np.zeros((2, 2), dtype=int))]), 1)
    assert set(np.unique(found)) == {150}


def test_clusters_have_different_colours_and_panels_wrap_after_six() -> None:
    panels = [Panel(label=str(i), kind="clusters", places=np.array([[0, 1], [2, 3]])) for i in range(7)]
    sheet = token_sheet(IMAGE, panels)
    corners = {tuple(inside(sheet, 7)[y, x]) for y in (5, -5) for x in (5, -5)}
    assert len(corners) == 4 and sheet.size == (6 * (PANEL + GAP) + GAP, 2 * (PANEL + LABEL + GAP) + GAP)
