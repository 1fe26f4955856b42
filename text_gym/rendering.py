"""Frames of render_mode="rgb_array": images of the current text and the reward."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from text_gym.extras import import_extra

Frame = npt.NDArray[np.uint8]
"""RGB image, [height, width, 3]."""

WIDTH, HEIGHT, MARGIN = 640, 240, 16
FONT_SIZE = 18
LINE = 24  # pixels
COLUMNS = 64  # characters
BACKGROUND, INK, FAINT = (255, 255, 255), (20, 20, 20), (120, 120, 120)


def describe_reward(reward: float, terms: Mapping[str, float]) -> str:
    """Format a reward as one line; with several terms, each with its score.

    >>> describe_reward(0.5, {"bleu": 0.5}), describe_reward(2.0, {"length": 3.0, "validity": 1.0})
    ('reward 0.5 (bleu)', 'reward 2 (length 3, validity 1)')
    """
    shown = ", ".join(f"{name} {score:.4g}" if len(terms) > 1 else name for name, score in terms.items())
    return f"reward {reward:.4g} ({shown})"


def draw_frame(prompt: str, text: str, status: str) -> Frame:
    """Draw a prompt, a text and a status line below them; of a long text, draw the last lines."""
    drawing = import_extra("PIL.ImageDraw", 'render_mode="rgb_array"', "render")
    image = import_extra("PIL.Image", 'render_mode="rgb_array"', "render").new("RGB", (WIDTH, HEIGHT), BACKGROUND)
    pen, font = drawing.Draw(image), _font()
    room = (HEIGHT - 3 * MARGIN) // LINE - 1
    prompt_lines = textwrap.wrap(prompt, COLUMNS)[-(room // 2) :]
    text_lines = textwrap.wrap(text, COLUMNS)[-(room - len(prompt_lines)) :]
    lines = [(line, FAINT) for line in prompt_lines] + [(line, INK) for line in text_lines]
    for i, (line, colour) in enumerate(lines):
        pen.text((MARGIN, MARGIN + i * LINE), line, fill=colour, font=font)
    pen.text((MARGIN, HEIGHT - MARGIN - LINE), textwrap.shorten(status, COLUMNS), fill=FAINT, font=font)
    return np.array(image)


@lru_cache(maxsize=1)
def _font() -> Any:
    return import_extra("PIL.ImageFont", 'render_mode="rgb_array"', "render").load_default(FONT_SIZE)
