"""The live plot: redrawn in place where somebody looks, once where nobody does."""

import matplotlib
import pytest

from starling_nb.lesson import live
from starling_nb.lesson.live import LivePlot

matplotlib.use("Agg")
PANELS = {"reward": "learned reward", "kl": "KL", "length": "tokens", "entropy": "nats"}


@pytest.fixture
def shown(monkeypatch):
    """What was displayed anew and what in place of it: ("new" or "update", figure)."""
    found = []

    class Handle:
        def update(self, figure):
            found.append(("update", figure))

    def display(figure, display_id):
        assert display_id
        found.append(("new", figure))
        return Handle()

    monkeypatch.setattr(live, "display", display)
    monkeypatch.setattr(live, "running_in_kernel", lambda: True)
    monkeypatch.delenv("STARLING_BATCH", raising=False)
    return found


def follow(plot, count):
    for i in range(count):
        plot({"iteration": i, "reward": 2.0 * i, "kl": 0.1, "length": 12, "entropy": 1.0})


def test_the_figure_is_redrawn_in_its_place(shown):
    plot = LivePlot(PANELS)
    follow(plot, 7)
    plot.draw()
    assert [how for how, _ in shown] == ["new", "update", "update"]
    axes = shown[-1][1].axes
    assert [axis.get_title() for axis in axes[:4]] == list(PANELS.values())
    assert axes[0].lines[0].get_xydata().tolist() == [[i, 2.0 * i] for i in range(7)]
    assert [axis.axison for axis in axes] == [True] * 4 + [False] * 2
    assert live.plt.get_fignums() == []


@pytest.mark.parametrize("where", ["batch", "no kernel"])
def test_where_nobody_looks_it_is_drawn_once(shown, monkeypatch, where):
    if where == "batch":
        monkeypatch.setenv("STARLING_BATCH", "1")
    else:
        monkeypatch.setattr(live, "running_in_kernel", lambda: False)
    plot = LivePlot(PANELS)
    follow(plot, 7)
    assert shown == []
    plot.draw()
    assert [how for how, _ in shown] == ["new"]
