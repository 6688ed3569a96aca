"""Tables judged by Great Expectations, and what that leaves behind: results, Data Docs, offending rows.

Importing this module imports Great Expectations, which takes seconds: stages import it inside `main`.
"""

import copy
import logging
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd
from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.data_context.types.base import (
    DataContextConfig,
    InMemoryStoreBackendDefaults,
    ProgressBarsConfig,
)
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.metadata_types import FailureSeverity

from prefdag.runtime.artifacts import write_json, writing
from prefdag.runtime.errors import DataError

if TYPE_CHECKING:
    from prefdag.config.levels import Level

logger = logging.getLogger(__name__)

SHOWN = 20  # offending rows an expectation shows in the Data Docs, and lines a refusal prints
EXCERPT = 120  # characters
OFFENDING = ["source", "column", "level", "reason", "excerpt", "expectation"]
# Data Docs name folders after the time of the run; the same data must make the same bytes.
RUN = RunIdentifier(run_name="validation", run_time=datetime.fromtimestamp(0, UTC))


@dataclass(frozen=True)
class Table:
    """Rows to judge, and what is expected of them.

    `rows` has a unique column `source`. An expectation's `description` says what holds, its `notes` what is wrong with a
    row where it does not, and the remedy; `at` its level. In the column `fault` stands why a row could not be read;
    `fault_column` and `excerpt` go with it.
    """

    name: str
    rows: pd.DataFrame
    expectations: list[Expectation]


def at(level: "Level") -> dict[str, Any]:
    """What makes an expectation one of this level."""
    severity = FailureSeverity.WARNING if level == "warn" else FailureSeverity.CRITICAL
    return {"severity": severity, "meta": {"level": level}}


def none_in(column: str, level: "Level", description: str, notes: str) -> Expectation:
    """That nothing stands in a column that holds what is wrong with a row."""
    return gxe.ExpectColumnValuesToBeNull(column=column, description=description, notes=notes, **at(level))


def check(tables: Iterable[Table | Callable[[pd.DataFrame], Table]], report: Path) -> pd.DataFrame:
    """Judge `tables`; write results.json, offending.csv and data_docs/index.html below the folder `report`.

    Args:
        tables: each a table, or what makes one of the faults of those before it.

    Returns:
        What offending.csv holds, one row a fault, in the order of the tables' rows: `source` (FILE:ROW), `column`,
        `level` (error, drop or warn), `reason` (with its remedy), `excerpt` of what stands there, and the `expectation`
        that fails, as results.json calls it.
    """
    report.mkdir(parents=True, exist_ok=True)
    context = _context(report / "data_docs")
    results, offending = {}, [pd.DataFrame(columns=OFFENDING)]
    for item in tables:
        table = item(pd.concat(offending, ignore_index=True)) if callable(item) else item
        result, rows = _judge(context, table)
        results[table.name] = _plain(result)
        offending.append(rows)
    faults = pd.concat(offending, ignore_index=True)
    write_json(report / "results.json", results)
    faults.to_csv(report / "offending.csv", index=False, lineterminator="\n")
    _data_docs(context, report / "data_docs")
    return faults


def refuse(offending: pd.DataFrame, report: Path, kept: Path, why: str = "") -> DataError:
    """The error that names the first offending row; up to `SHOWN` are logged, all are kept with the report in `kept`.

    For the user to look at: the report among the stage's outs does not exist when the stage fails.
    """
    with writing(kept) as folder:
        shutil.copytree(report, folder)
    # Without an error it is the rows to be dropped that are too many.
    faults = offending[offending["level"] == ("error" if "error" in set(offending["level"]) else "drop")]
    first, *others = [DataError(_line(fault)) for _, fault in faults.head(SHOWN).iterrows()]
    for line in others:
        logger.error("%s", line)
    more = f" ({len(faults) - 1} more)" if len(faults) > 1 else ""
    return DataError(f"{first}{more}{why}; all are listed in {kept / 'offending.csv'}")


def _line(fault: "pd.Series[Any]") -> str:
    """FILE:ROW:COLUMN: reason; remedy."""
    return f"{':'.join(part for part in (fault['source'], fault['column']) if part)}: {fault['reason']}"


def _judge(context: Any, table: Table) -> tuple[ExpectationSuiteValidationResult, pd.DataFrame]:
    """The result of one table, stored in `context` with at most `SHOWN` rows an expectation, and all offending rows."""
    # An index without a name: Great Expectations then lists rows by it, and copies none of their columns.
    rows = table.rows.set_axis(list(table.rows["source"]), axis="index")
    asset = context.data_sources.add_pandas(table.name).add_dataframe_asset(table.name)
    batch_definition = asset.add_batch_definition_whole_dataframe("all")
    expected = copy.deepcopy(table.expectations)
    for place, expectation in enumerate(expected, 1):
        expectation.meta = (expectation.meta or {}) | {"name": f"{table.name}-{place}"}
    suite = context.suites.add(gx.ExpectationSuite(table.name, expectations=expected))
    definition = gx.ValidationDefinition(name=table.name, data=batch_definition, suite=suite)
    parameters = {"dataframe": rows}
    definition = context.validation_definitions.add(definition)
    result = definition.run(batch_parameters=parameters, run_id=RUN, result_format="SUMMARY")
    batch = batch_definition.get_batch(parameters)
    expectations = {expectation.id: expectation for expectation in suite.expectations}
    offending = []
    for outcome in result.results:
        expectation = expectations[outcome.expectation_config.id]
        if "element_count" not in outcome.result:
            raise RuntimeError(f"{expectation.expectation_type} could not be evaluated: {outcome.exception_info}")
        if not outcome.success:  # only now, and one by one: a complete result lists every row
            single = copy.copy(expectation)
            single.id = None
            complete = batch.validate(single, result_format="COMPLETE").result
            offending.append(_offending(rows, expectation, complete["unexpected_index_list"]))
            outcome.result = {key: value for key, value in complete.items() if key != "unexpected_index_query"}
        outcome.result = _short(outcome.result)
    store = context.validation_results_store
    for key in store.list_keys():
        if key.expectation_suite_identifier.name == table.name:
            store.update(key, result)
    faults = pd.concat([pd.DataFrame(columns=OFFENDING), *offending])
    order = rows.index.get_indexer(pd.Index(faults["source"])).argsort(kind="stable")
    return result, faults.iloc[order]


def _offending(rows: pd.DataFrame, expectation: Any, sources: list[str]) -> pd.DataFrame:
    """The rows `sources`, which fail `expectation`, with the columns `OFFENDING`."""
    found = rows.loc[sources]
    if (column := getattr(expectation, "column", None) or expectation.column_A) == "fault":
        columns, reasons, excerpts = found["fault_column"].fillna(""), found["fault"], found["excerpt"]
    else:
        columns, reasons, excerpts = column, expectation.notes, found[column].map(_short)
    values = {
        "source": sources,
        "column": columns,
        "level": expectation.meta["level"],
        "reason": reasons,
        "excerpt": excerpts,
        "expectation": expectation.meta["name"],
    }
    return pd.DataFrame(values, index=found.index)


def _short(value: Any) -> Any:
    """`value` with long texts and long lists cut: an offending row may hold a megabyte."""
    if isinstance(value, str):
        return value if len(value) <= EXCERPT else value[:EXCERPT] + "…"
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value[:SHOWN]]
    return value


def _plain(result: ExpectationSuiteValidationResult) -> dict[str, Any]:
    """The result without what differs from run to run: identifiers, times, versions, batches."""
    tree = result.to_json_dict()
    kept = {key: tree[key] for key in ("success", "statistics", "suite_name")}
    expectations = []
    for outcome in tree["results"]:
        config = outcome["expectation_config"]
        kwargs = {key: value for key, value in config["kwargs"].items() if key != "batch_id"}
        expectations.append(
            {
                "name": config["meta"]["name"],
                "expectation": config["type"],
                "description": config.get("description"),
                "kwargs": kwargs,
                "notes": config.get("notes"),
                "severity": config["severity"],
                "success": outcome["success"],
                "result": outcome["result"],
            }
        )
    return kept | {"results": expectations}


def _context(data_docs: Path) -> Any:
    """Great Expectations in memory, without progress bars, with its pages in `data_docs`."""
    site = {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(data_docs.resolve())},
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }
    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(),
        data_docs_sites={"docs": site},
        progress_bars=ProgressBarsConfig(globally=False),
        analytics_enabled=False,
    )
    return gx.get_context(mode="ephemeral", project_config=config)


def _data_docs(context: Any, folder: Path) -> None:
    """Great Expectations' own pages.

    Their style sheets and scripts come from a CDN. Offline the pages of results are plain, yet complete; the table of
    the index, which a script draws, is empty, so that the index gets a line of plain links. A page of results shows the
    first rows that fail, and gets a link to all of them.
    """
    context.build_data_docs(site_names=["docs"])
    results = sorted(page.relative_to(folder) for page in folder.glob("validations/**/*.html"))
    links = ", ".join(f'<a href="{page.as_posix()}">{page.parts[1]}</a>' for page in results)
    container = '<div class="container-fluid'
    for page in sorted(folder.rglob("*.html")):
        name = page.relative_to(folder)
        root = "../" * len(name.parent.parts)
        head, _, tail = _pinned(page.read_text("utf-8"), root).partition(container)
        line = f'All rows that fail: <a href="{root}../offending.csv">offending.csv</a>' if name in results else ""
        line = f"Results: {links}" if name.name == "index.html" else line
        page.write_text(f"{head}<p>{line}</p>{container}{tail}" if line else head + container + tail, "utf-8")


def _pinned(html: str, root: str) -> str:
    """A page without random identifiers and times, and with the logo beside it; `root` leads to the folder."""
    html = re.sub(r"https://great-expectations-web-assets[^\"')\s]*", f"{root}static/images/logo-long.png", html)
    html = re.sub(r"\b\d{8}T\d{6}\.\d{6}Z", "19700101T000000.000000Z", html)
    names: dict[str, str] = {}
    uuid = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    return re.sub(uuid, lambda match: names.setdefault(match[0], f"id{len(names)}"), html)
