"""What all pictures have in common."""

from __future__ import annotations

from itertools import pairwise

import pytest
from matplotlib.figure import Figure

from yarn_ops.charts import perplexity_axis


@pytest.mark.parametrize("values", [(7.4, 35.3), (8.0, 9.0), (10.1, 19.9), (8.9, 254.0), (3.0, 60_000.0)])
def test_a_perplexity_can_be_read_off_between_named_ticks(values: tuple[float, float]) -> None:
    axes = Figure().subplots()
    perplexity_axis(axes, values, 1.15)
    low, high = axes.get_ylim()
    ticks = [tick for tick in axes.yaxis.get_major_locator()() if low <= tick <= high]
    assert 2 <= len(ticks) <= 15
    assert max(later / tick for tick, later in pairwise(ticks)) <= 10
    assert len(ticks) > 2 or high / low < 2
