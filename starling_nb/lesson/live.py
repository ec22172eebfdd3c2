"""A figure that follows a run while it goes on, for `tune_policy(..., on_iteration=...)`."""

import os
from collections.abc import Mapping
from math import ceil

import matplotlib.pyplot as plt
from IPython.display import DisplayHandle, display

from starling_nb.device import running_in_kernel

COLUMNS = 3
EVERY = 3  # records from one drawing to the next


class LivePlot:
    """Called with each record of a run, draws some of its entries over the iterations.

    `panels`: entry of a record -> title. In a notebook the figure is drawn again, in its place,
    after every few records; batch runs, where nobody looks, have `draw` called at the end alone.
    """

    def __init__(self, panels: Mapping[str, str]):
        self.panels = panels
        self.records: list[dict[str, float]] = []
        self.handle: DisplayHandle | None = None

    def __call__(self, record: dict[str, float]) -> None:
        self.records.append(record)
        watched = running_in_kernel() and not os.environ.get("STARLING_BATCH")
        if watched and len(self.records) % EVERY == 0:
            self.draw()

    def draw(self) -> None:
        """Show the figure of all records so far, where the last one stood."""
        rows = ceil(len(self.panels) / COLUMNS)
        size = (9, 2 * rows)
        figure, axes = plt.subplots(
            rows, COLUMNS, figsize=size, layout="constrained", sharex=True, squeeze=False
        )
        for axis, (key, title) in zip(axes.flat, self.panels.items(), strict=False):
            axis.plot([r["iteration"] for r in self.records], [r[key] for r in self.records])
            axis.set_title(title, fontsize="medium")
        for axis in axes.flat[len(self.panels) :]:
            axis.set_axis_off()
        for axis in axes[-1]:
            axis.set_xlabel("iteration")
        if self.handle:
            self.handle.update(figure)
        else:
            self.handle = display(figure, display_id=True)
        plt.close(figure)  # shown once: the inline backend would show it again
