"""The view of the pipeline runs in MLflow: which columns the list of runs shows.

MLflow shows no metric in its list until columns are chosen by hand. A chosen view can be shared: MLflow keeps it in a tag of
the experiment, and an address with `viewStateShareKey` opens it. `make ui` prints that address.
"""

import json
from collections.abc import Iterable

KEY = "prefdag"  # in the address
TAG = f"mlflow.sharedViewState.{KEY}"
FIRST = {"attributes.`Run Name`": 200, "runDateAndNestInfo": 150, "duration": 80}  # columns, with their pixels
WIDTH = 145  # of a metric


def tags(metrics: Iterable[str], params: Iterable[str]) -> dict[str, str]:
    """The experiment's tag with the view: pipeline runs, the latest first, with these metrics and parameters as columns."""
    columns = [f"{kind}.`{key}`" for kind, keys in (("metrics", metrics), ("params", params)) for key in keys]
    view = {
        "searchFilter": 'tags.kind = "pipeline"',
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": columns,
        "columnOrder": [*FIRST, *columns],
        "columnWidths": FIRST | dict.fromkeys(columns, WIDTH),
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "FIRST_10_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }
    return {TAG: json.dumps(view)}
