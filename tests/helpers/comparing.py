"""Comparisons for tests of labelling: three answers to one prompt, two to another one."""

import pandas as pd

from prefdag.labelling.comparisons import Comparison, comparisons
from prefdag.pairs.turns import Asked

HOSTILE = "<script>window.hit = 1</script><img src=x onerror='window.hit = 2'>\n" + "w" * 300
ANSWERS = pd.DataFrame(
    [("p", "a, b"), ("p", 'c "q"\nnew'), ("p", HOSTILE), ("q", "x"), ("q", "y")], columns=["id", "text"]
)
ASKED = {key: Asked([{"role": "user", "content": f"Is {key} <b>?"}], None) for key in "pq"}


def four() -> list[Comparison]:
    return list(comparisons(ANSWERS, ASKED).values())
