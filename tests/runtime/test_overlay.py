"""Overlays show the mask and change nothing else."""

import numpy as np
import pytest

from agvas_runtime.masks.overlay import ANOMALY_RGB, draw_overlay, shrink


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def test_an_empty_mask_leaves_the_frame_as_it_is() -> None:
    frame = grey(50, 70)
    drawn = draw_overlay(frame, np.zeros((50, 70), bool))
    assert np.array_equal(drawn, frame) and drawn is not frame


def test_the_frame_itself_is_never_drawn_on() -> None:
    frame = grey(300, 300)
    draw_overlay(frame, np.ones((300, 300), bool), tag="FAIL 0.99")
    assert (frame == 128).all()


def test_the_outline_follows_the_mask_and_stays_near_it() -> None:
    mask = np.zeros((200, 300), bool)
    mask[60:120, 80:200] = True
    changed = (draw_overlay(grey(200, 300), mask) != 128).any(axis=2)
    assert changed[mask].all()  # fill or line
    assert not changed[:50].any() and not changed[:, :70].any() and not changed[130:].any() and not changed[:, 210:].any()


def test_the_line_is_orange_within_a_dark_halo() -> None:
    mask = np.zeros((200, 300), bool)
    mask[60:120, 80:200] = True
    column = draw_overlay(grey(200, 300), mask)[55:66, 140].astype(int)
    assert np.abs(column - ANOMALY_RGB).sum(axis=1).min() < 60
    assert column[:5].sum(axis=1).min() < 150


def test_a_crack_of_one_pixel_stays_visible_in_a_frame_that_is_shrunk() -> None:
    mask = np.zeros((3200, 4800), bool)
    mask[1600, 1000:3000] = True
    drawn = draw_overlay(grey(3200, 4800), mask)
    assert drawn.shape == (1067, 1600, 3)
    assert (drawn != 128).any(axis=2)[:, 400:900].any(axis=0).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 900), (7, 3), (2000, 10), (1600, 1600)])
def test_any_shape_can_be_drawn(height: int, width: int) -> None:
    drawn = draw_overlay(grey(height, width), np.ones((height, width), bool), tag="FAIL 0.50")
    assert drawn.dtype == np.uint8 and max(drawn.shape) <= 1600 and min(drawn.shape) >= 1


def test_small_frames_have_no_tag_and_are_not_enlarged() -> None:
    frame = grey(64, 64)
    assert np.array_equal(draw_overlay(frame, np.zeros((64, 64), bool), tag="PASS 0.10"), frame)
    assert shrink(frame, 360) is frame
