"""The figures of the held-out pairs, or of unpaired responses."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from prefdag.report.page.figures import COLOR, svg
from prefdag.report.page.numbers import number, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def margins(margin: pd.Series, *, name: str) -> str:
    """A histogram of the held-out reward margins. Zero is a bin edge, because it divides right from wrong."""
    right, wrong = int((margin > 0).sum()), int((margin < 0).sum())
    reach = float(margin.abs().max()) or 1.0
    width = _nice(2 * reach / 24)
    low, high = np.floor(margin.min() / width), np.ceil(margin.max() / width)
    edges = np.arange(min(low, -1), max(high, 1) + 1) * width

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import MaxNLocator

        counts, _ = np.histogram(margin[margin != 0], edges)
        axes.bar(
            edges[:-1] + width / 2,
            counts,
            width=0.86 * width,
            color=[COLOR["chosen"] if left > -width / 2 else COLOR["rejected"] for left in edges[:-1]],
        )
        axes.axvline(0, color=COLOR["ink"], linewidth=0.9)
        axes.set_ylim(0, 1.28 * max(counts.max(), 1))
        axes.grid(axis="y")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        top = axes.get_xaxis_transform()
        axes.text(
            -width / 3, 0.96, f"{number(wrong)} wrong", ha="right", va="top", color=COLOR["rejected"], transform=top
        )
        axes.text(width / 3, 0.96, f"{number(right)} right", ha="left", va="top", color=COLOR["chosen"], transform=top)

    described = f"Histogram of {number(len(margin))} reward margins: {number(right)} above zero, {number(wrong)} below."
    return svg(draw, (290, 190), (30, 12, 22, 8), name, described)


def rewards(pairs: pd.DataFrame, *, name: str) -> str:
    """One dot per held-out pair: the reward of the chosen response against the rejected one's. Above the diagonal is right."""
    every = max(1, len(pairs) // 600)
    shown = pairs.sort_values("margin")[::every]

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import MaxNLocator

        both = shown[["reward_rejected", "reward_chosen"]].to_numpy()
        low, high = min(both.min(), 0.0), max(both.max(), 0.0)
        pad = 0.06 * (high - low or 1.0)
        axes.set_xlim(low - pad, high + pad)
        axes.set_ylim(low - pad, high + pad)
        axes.axhline(0, color=COLOR["grid"], linewidth=0.8)
        axes.axvline(0, color=COLOR["grid"], linewidth=0.8)
        axes.plot([low - pad, high + pad], [low - pad, high + pad], color=COLOR["muted"], linewidth=0.9, dashes=(3, 3))
        for is_right, role in ((True, "chosen"), (False, "rejected")):
            part = shown[(shown["margin"] > 0) == is_right]
            axes.scatter(
                part["reward_rejected"], part["reward_chosen"], s=13, color=COLOR[role], alpha=0.75, linewidths=0
            )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=4))
        for x, y, text, ha, va in (
            (0.02, 0.99, "reward of chosen", "left", "top"),
            (0.99, 0.02, "of rejected", "right", "bottom"),
        ):
            axes.text(x, y, text, ha=ha, va=va, color=COLOR["muted"], fontsize=9.5, transform=axes.transAxes)

    described = (
        f"Scatter of {number(len(shown))} held-out pairs. Mean reward of the chosen responses "
        f"{signed(float(pairs['reward_chosen'].mean()))}, of the rejected ones "
        f"{signed(float(pairs['reward_rejected'].mean()))}."
    )
    return svg(draw, (290, 190), (44, 12, 22, 8), name, described)


def spread(pairs: pd.DataFrame, *, name: str) -> str:
    """Histograms of the rewards of desirable and of undesirable responses, each as shares of its kind."""
    kinds = {"desirable": "chosen", "undesirable": "rejected"}
    rewards = {kind: pairs[f"reward_{side}"].dropna() for kind, side in kinds.items()}
    edges = np.histogram_bin_edges(pd.concat(rewards.values()), 20)

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        for height, (kind, values) in zip((0.99, 0.88), rewards.items(), strict=True):
            color = COLOR[kinds[kind]]
            shares = np.histogram(values, edges)[0] / len(values)
            axes.stairs(shares, edges, color=color, fill=True, alpha=0.25)
            axes.stairs(shares, edges, color=color, linewidth=1.6)
            axes.text(0.02, height, kind, va="top", color=color, transform=axes.transAxes)
        axes.axvline(0, color=COLOR["ink"], linewidth=0.9)
        axes.set_ylim(0, 1.35 * axes.get_ylim()[1])
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))

    described = "; ".join(f"{number(len(v))} {kind}, mean {signed(float(v.mean()))}" for kind, v in rewards.items())
    return svg(draw, (290, 190), (42, 12, 22, 8), name, f"Histograms of the rewards of responses: {described}.")


def _nice(width: float) -> float:
    """The next larger of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(width))
    return float(next(power * step for step in (1, 2, 5, 10) if power * step >= width))
