"""The view of the pipeline runs in MLflow: which columns the list of runs shows.

MLflow shows no metric in its list until columns are chosen by hand. A chosen view can be shared: MLflow keeps it in a tag of
the experiment, and an address with `viewStateShareKey` opens it. `make ui` prints that address.
"""

import json
from collections.abc import Iterable

KEY = "prefdag"  # in the address
TAG = f"mlflow.sharedViewState.{KEY}"
WIDTH = 140  # pixels of a column, enough for the longest of the main metrics


def tags(params: Iterable[str], metrics: Iterable[str]) -> dict[str, str]:
    """The experiment's tag with the view: pipeline runs, the latest first, with these parameters and metrics as columns."""
    columns = [f"{kind}.`{key}`" for kind, keys in (("params", params), ("metrics", metrics)) for key in keys]
    view = {
        "searchFilter": 'tags.kind = "pipeline"',
        "orderByKey": "attributes.end_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": columns,
        "columnOrder": [],
        "columnWidths": dict.fromkeys(columns, WIDTH),
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
