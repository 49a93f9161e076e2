"""How much a network may learn follows from how much there is to learn from: width, depth and epochs by the training clips.

One rule, for what a recipe leaves to it (``auto``). A few dozen clips want many passes and a small network; a thousand bear
a wider one of two blocks and are seen often enough in fewer passes, so that training takes minutes either way. Measured in
docs/results/network.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dtsf.training.recipe import Recipe

USUAL = 333
"""Clips of a hundred performances before three cameras, for which the recipes were chosen: width 96, one block, 120 epochs."""


def resolve_auto(recipe: Recipe, clips: int) -> Recipe:
    """The recipe with numbers in the place of ``auto``, for so many training clips.

    Width grows with the square root of the clips, 96 at :data:`USUAL`, in steps of 32 from 96 to 384; one block
    below 128, two below 256, four from there; epochs fall with the square root, 120 at :data:`USUAL`, from 240
    to 20.
    """
    ratio = math.sqrt(max(1, clips) / USUAL)
    model, train = recipe.model, recipe.train
    width = model.width or min(384, max(96, 32 * round(3 * ratio)))
    depth = model.depth or (1 if width < 128 else 2 if width < 256 else 4)
    epochs = train.epochs or min(240, max(20, round(120 / ratio)))
    return recipe.model_copy(
        update={
            "model": model.model_copy(update={"width": width, "depth": depth}),
            "train": train.model_copy(update={"epochs": epochs}),
        }
    )
