"""Check tables with Great Expectations, and write the results, the Data Docs and the offending rows.

Importing this module imports Great Expectations, which takes seconds, so stages import it inside `main`.
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

from prefdag.lifecycle.errors import DataError
from prefdag.runtime.artifacts import write_json, writing

if TYPE_CHECKING:
    from prefdag.config.levels import Level

logger = logging.getLogger(__name__)

SHOWN = 20  # offending rows shown per expectation in the Data Docs, and lines logged when the stage stops
EXCERPT = 120  # characters
OFFENDING = ["source", "column", "level", "reason", "excerpt", "expectation"]
# Data Docs name folders after the time of the run. A fixed time keeps the bytes the same for the same data.
RUN = RunIdentifier(run_name="validation", run_time=datetime.fromtimestamp(0, UTC))


@dataclass(frozen=True)
class Table:
    """Rows to check, and the expectations that they should meet.

    `rows` has a unique column `source`. An expectation's `description` says what should hold; its `notes` say what is wrong
    with a row that fails, and what to do; `at` gives its level. The column `fault` says why a row could not be read, and
    comes with the columns `fault_column` and `excerpt`.
    """

    name: str
    rows: pd.DataFrame
    expectations: list[Expectation]


def at(level: "Level") -> dict[str, Any]:
    """The keyword arguments that give an expectation this level."""
    severity = FailureSeverity.WARNING if level == "warn" else FailureSeverity.CRITICAL
    return {"severity": severity, "meta": {"level": level}}


def none_in(column: str, level: "Level", description: str, notes: str) -> Expectation:
    """Expect a column to be null in every row; it says what is wrong with a row, or is null if nothing is."""
    return gxe.ExpectColumnValuesToBeNull(column=column, description=description, notes=notes, **at(level))


def check(tables: Iterable[Table | Callable[[pd.DataFrame], Table]], report: Path) -> pd.DataFrame:
    """Check `tables`, and write results.json, offending.csv and data_docs/index.html to the folder `report`.

    Args:
        tables: each is a table, or a function that makes one from the offending rows of the tables before it.

    Returns:
        The content of offending.csv, one row per fault, in the order of the tables' rows: `source` (FILE:ROW), `column`,
        `level` (error, drop or warn), `reason` (with its remedy), an `excerpt` of the value, and the name of the failed
        `expectation` in results.json.
    """
    report.mkdir(parents=True, exist_ok=True)
    context = _context(report / "data_docs")
    results, offending = {}, [pd.DataFrame(columns=OFFENDING)]
    for item in tables:
        table = item(pd.concat(offending, ignore_index=True)) if callable(item) else item
        result, rows = _check_table(context, table)
        results[table.name] = _reproducible(result)
        offending.append(rows)
    faults = pd.concat(offending, ignore_index=True)
    write_json(report / "results.json", results)
    faults.to_csv(report / "offending.csv", index=False, lineterminator="\n")
    _data_docs(context, report / "data_docs")
    return faults


def refuse(offending: pd.DataFrame, report: Path, kept: Path, why: str = "") -> DataError:
    """The error that names the first offending row. Logs up to `SHOWN` rows, and copies the report to `kept`.

    The copy is for the user to read, since a stage that fails leaves no report among its outs.
    """
    with writing(kept) as folder:
        shutil.copytree(report, folder)
    # If no row is an error, the stage stops because it would drop too many.
    faults = offending[offending["level"] == ("error" if "error" in set(offending["level"]) else "drop")]
    first, *others = [DataError(_line(fault)) for _, fault in faults.head(SHOWN).iterrows()]
    for line in others:
        logger.error("%s", line)
    more = f" ({len(faults) - 1} more)" if len(faults) > 1 else ""
    return DataError(f"{first}{more}{why}; all are listed in {kept / 'offending.csv'}")


def _line(fault: "pd.Series[Any]") -> str:
    """FILE:ROW:COLUMN: reason; remedy."""
    return f"{':'.join(part for part in (fault['source'], fault['column']) if part)}: {fault['reason']}"


def _check_table(context: Any, table: Table) -> tuple[ExpectationSuiteValidationResult, pd.DataFrame]:
    """The result for one table, stored in `context` with at most `SHOWN` rows per expectation, and all offending rows."""
    # Great Expectations lists rows by an index without a name, and then copies no columns.
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
        if not outcome.success:  # only on failure and one at a time, since a complete result lists every row
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
    """The rows `sources`, which fail `expectation`, as the columns `OFFENDING`."""
    failed = rows.loc[sources]
    if (column := getattr(expectation, "column", None) or expectation.column_A) == "fault":
        columns, reasons, excerpts = failed["fault_column"].fillna(""), failed["fault"], failed["excerpt"]
    else:
        columns, reasons, excerpts = column, expectation.notes, failed[column].map(_short)
    values = {
        "source": sources,
        "column": columns,
        "level": expectation.meta["level"],
        "reason": reasons,
        "excerpt": excerpts,
        "expectation": expectation.meta["name"],
    }
    return pd.DataFrame(values, index=failed.index)


def _short(value: Any) -> Any:
    """`value` with long texts and lists shortened, since an offending row may hold a megabyte."""
    if isinstance(value, str):
        return value if len(value) <= EXCERPT else value[:EXCERPT] + "…"
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value[:SHOWN]]
    return value


def _reproducible(result: ExpectationSuiteValidationResult) -> dict[str, Any]:
    """The result without identifiers, times, versions and batches, which differ from run to run."""
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
    """Great Expectations in memory, without progress bars, that writes its pages to `data_docs`."""
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
    """Write Great Expectations' own pages, and add links to them.

    Their style sheets and scripts come from a CDN. Offline, the pages of results are unstyled but complete. The table on
    the index page, which a script draws, is empty, so the index gets a line of plain links. A page of results shows only
    the first rows that fail, so it gets a link to all of them.
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
    """A page with fixed identifiers and times and a local logo. `root` is the relative path to the folder of the pages."""
    html = re.sub(r"https://great-expectations-web-assets[^\"')\s]*", f"{root}static/images/logo-long.png", html)
    html = re.sub(r"\b\d{8}T\d{6}\.\d{6}Z", "19700101T000000.000000Z", html)
    names: dict[str, str] = {}
    uuid = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    return re.sub(uuid, lambda match: names.setdefault(match[0], f"id{len(names)}"), html)
