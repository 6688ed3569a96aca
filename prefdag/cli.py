"""The command `prefdag`: everything a user does besides `dvc repro`. Slow imports are inside the commands that need them."""

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from prefdag.lifecycle.environment import use_utf8
from prefdag.lifecycle.errors import DataError, PrefdagError
from prefdag.lifecycle.exits import as_stages_write, flush, one_line_errors

if TYPE_CHECKING:
    from prefdag.chat.dialogue import ChatModels

# What typer itself shows: the end of a command, and wrong options.
OF_TYPER = (typer.Exit, typer.Abort, TyperException)
REFERENCE = Path("models/reference")
POLICY = Path("models/policy")
EXPORT = Path("export")
FRONTIER = Path("reports/frontier")  # .html and .csv
COMPARISON = Path("reports/comparison")  # .html and .csv
REPORT = Path("reports/index.html")
TEXT_METRICS, IMAGE_METRICS = Path("reports/text/metrics.json"), Path("reports/image/metrics.json")
WIN_RATE = Path("reports/text/win_rate.json")


class OneLineErrors(TyperGroup):
    """A command group that ends a failure like a stage does: one line on stderr, and its exit code."""

    def main(self, *args: Any, **options: Any) -> Any:
        if not args and options.get("args") is None:  # the arguments are those of the process: this is no test
            use_utf8()
        with one_line_errors("prefdag", *OF_TYPER):
            try:
                return super().main(*args, **options)
            finally:
                flush(sys.stdout)  # of --help and --version too

    def invoke(self, ctx: Any) -> Any:
        with one_line_errors(f"prefdag {ctx.invoked_subcommand or ''}".rstrip(), *OF_TYPER):
            return super().invoke(ctx)


app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Direct Preference Optimization as a declarative, reproducible pipeline. Run it in the repository root.",
    epilog="DVC runs the pipeline itself: `dvc repro`, `dvc exp run -S beta=0.3`.",
)


Force = Annotated[bool, typer.Option("--force", help="Use outputs that are not as dvc.lock records them.")]


def as_recorded(paths: Iterable[Path], *, force: bool) -> AbstractContextManager[None]:
    """Refuse what is not as dvc.lock records it. With `force`, warn of each, and take it as it is in the context."""
    from prefdag.recorded import check_recorded, unchecked

    context: AbstractContextManager[None] = nullcontext()
    for path in paths:
        try:
            check_recorded(path)
        except DataError as error:
            if not path.exists():
                raise
            if not force:
                raise DataError(f"{error}; `--force` takes it as it is") from None
            typer.echo(f"warning: {error}", err=True)
            context = unchecked()
    return context


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"prefdag {version('prefdag')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[  # typer reads it
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The options before the command."""


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="The folder to make.")],
    profile: Annotated[str, typer.Option(help="Lay this profile over params.yaml, such as tiny.")] = "default",
) -> None:
    """Start a project of your own: a Git and DVC repository with the pipeline, its parameters and a CI workflow."""
    from prefdag.project import init

    for note in init.init(folder, profile):
        typer.echo(note)
    typer.echo(f"{folder}: ready; `cd {folder} && dvc repro` runs the pipeline")


@app.command()
def profile(
    name: Annotated[
        str | None,
        typer.Argument(
            help="The profile, or the path of a .yaml file; without it, list all profiles.", show_default=False
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Undo edits of params.yaml that are not committed; keeps a copy of them.")
    ] = False,
) -> None:
    """Lay profiles/NAME.yaml over the committed params.yaml; `default` restores the committed file."""
    from prefdag.project import profiles

    if name is None:
        known = profiles.list_profiles()
        width = max(map(len, known))
        for each, summary in known.items():
            typer.echo(f"{each:<{width}}  {summary}")
        return
    changes, backup = profiles.apply(name, force=force)
    if backup:
        typer.echo(f"{profiles.PARAMS} as it was: {backup}")
    for change in changes:
        note = "" if change.of_profile or name == profiles.DEFAULT else "   (back to the committed value)"
        typer.echo(f"{change.key}: {_shown(change.old)} -> {_shown(change.new)}{note}")
    typer.echo(f"{profiles.PARAMS}: {len(changes)} values changed; `dvc repro` runs what depends on them")


@app.command()
def pin(
    only: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY]...",
            help="Pin these only, such as download_pairs, and fetch again what is pinned already.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit with 1 if a pin would change.")] = False,
) -> None:
    """Write the hashes and commits of the sources into params.yaml: the missing ones, and those of changed local files."""
    from prefdag.project import pin

    result = pin.pin(only or [], check=check)
    for change in result.changes:
        typer.echo(f"{'.'.join(change.keys)}: {_shown(change.old)} -> {change.new}")
    for error in result.errors[1:]:
        typer.echo(f"error: {error}", err=True)
    if result.errors:
        raise result.errors[0]
    if not result.changes:
        typer.echo("every source is pinned")
    elif check:
        raise PrefdagError(f"{pin.PARAMS}: {len(result.changes)} pins differ; `prefdag pin` writes them")
    else:
        typer.echo(f"{pin.PARAMS}: {len(result.changes)} pins written; `dvc repro` runs what depends on them")


@app.command()
def estimate(
    model: Annotated[
        str | None,
        typer.Option(help="A folder with a config.json, or a name such as llama-3.1-8b.", show_default="models/base"),
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(min=1, help="So many pairs of the greatest length, instead of data/pairs.", show_default=False),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Processes that train together.")] = 1,
    shard: Annotated[bool, typer.Option("--shard", help="As with shard: full in params.yaml.")] = False,
    tflops: Annotated[
        float | None,
        typer.Option(min=1e-6, help="Sustained rate of each, 10^12 a second.", show_default="measured here"),
    ] = None,
) -> None:
    """Say how much memory and time sft_ref, ref_logps and dpo_text take with params.yaml. Trains nothing, downloads nothing."""
    from prefdag.lifecycle.environment import set_environment

    set_environment()
    from prefdag.estimate import table

    for line in table.lines(model, pairs, gpus, tflops, shard=shard):
        typer.echo(line)


@app.command()
def summary() -> None:
    """Print what DPO changed in five lines: rankings, answers, KL and perplexity, the classifier, where the report is."""
    from prefdag.report.page.summary import lines
    from prefdag.runtime.artifacts import read_json

    text, win_rate, image = map(read_json, (TEXT_METRICS, WIN_RATE, IMAGE_METRICS))
    with as_stages_write(f"{TEXT_METRICS}, {WIN_RATE} or {IMAGE_METRICS}"):
        shown = lines(text, win_rate, image, f"{REPORT} (opens offline)")
    for line in shown:
        typer.echo(line)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def experiments(
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[OPTIONS]", help="The options of `dvc exp show`.", show_default=False)
    ] = None,
) -> None:
    """List the experiments like `dvc exp show`, with at most 40 columns: the main metrics and what differs."""
    from prefdag.project.experiments import show
    from prefdag.runtime.dvc_files import check_files

    check_files()
    if left_out := show(options or ()):
        typer.echo(f"{left_out} more parameters differ; `prefdag compare A B` lists those of two experiments", err=True)


class Records(StrEnum):
    """Where to look for experiments."""

    dvc = "dvc"
    mlflow = "mlflow"


@app.command()
def frontier(
    records: Annotated[
        Records, typer.Option("--from", help="Read the experiments from DVC or from MLflow.")
    ] = Records.dvc,
) -> None:
    """Plot the gain of each experiment against its KL to the reference: reports/frontier.html, .csv."""
    from prefdag.lifecycle.environment import set_environment

    set_environment()
    from prefdag.report.compare import frontier
    from prefdag.runtime.artifacts import writing
    from prefdag.runtime.dvc_files import check_files

    check_files()
    with as_stages_write("an experiment or the workspace"):
        table = frontier.from_dvc() if records is Records.dvc else frontier.from_mlflow()
        page = frontier.render(table)
    for suffix, content in ((".csv", table.to_csv(index=False, lineterminator="\n")), (".html", page)):
        with writing(FRONTIER.with_suffix(suffix)) as path:
            path.write_text(content, "utf-8")
    typer.echo(f"{len(table)} experiments: {FRONTIER.with_suffix('.html')}, {FRONTIER.with_suffix('.csv')}")


@app.command()
def verify(
    remote: Annotated[str | None, typer.Option(help="Also check this DVC remote.", show_default=False)] = None,
) -> None:
    """Check dvc.yaml against dvc.lock, and hash all outputs, dependencies and objects in DVC's cache again.

    Prints a table of what was checked, every difference, and the outputs that are absent and could not be checked.

    Exit code 0: all that is present is as dvc.lock says.

    Exit code 1: something differs, or a stage has no entry in dvc.lock.

    Exit code 2: dvc.yaml, dvc.lock or the remote is missing or broken.
    """
    from prefdag.project import verify

    result = verify.verify(remote)
    for line in (*result.table(), *result.differences):
        typer.echo(line)
    if result.absent:
        shown = ", ".join(result.absent[:3]) + (", ..." if len(result.absent) > 3 else "")
        typer.echo(
            f"not checked, since they are absent: {len(result.absent)} outputs ({shown}); `dvc pull` or `dvc repro` brings them"
        )
    if result.differences:
        raise PrefdagError(
            f"{len(result.differences)} differences from {verify.LOCK}; `dvc checkout --force` restores outputs from an intact "
            "cache, and `dvc fetch` or `dvc repro` what is missing from the cache"
        )
    typer.echo(f"everything present matches {verify.LOCK}")


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="An experiment, commit, branch or tag.")] = "HEAD",
    second: Annotated[str, typer.Argument(metavar="B", help="Another, or `workspace`.")] = "workspace",
) -> None:
    """Compare B with A, row by row: reports/comparison.html, .csv."""
    from prefdag.lifecycle.environment import set_environment

    set_environment()
    from prefdag.report.compare import comparison, differences, experiments
    from prefdag.runtime.artifacts import writing
    from prefdag.runtime.dvc_files import check_files

    check_files()
    with as_stages_write(f"{first} or {second}"):
        runs = experiments.read(first), experiments.read(second)
        table = differences.differences(*runs)
        frame, page = differences.to_frame(table), comparison.render(*runs, table)
        headlines = [comparison.verdict(track, table, *runs).headline for track in get_args(differences.Track)]
    for suffix, content in ((".csv", frame.to_csv(index=False, lineterminator="\n")), (".html", page)):
        with writing(COMPARISON.with_suffix(suffix)) as path:
            path.write_text(content, "utf-8")
    for headline in headlines:
        typer.echo(headline)
    typer.echo(f"{COMPARISON.with_suffix('.html')}, {COMPARISON.with_suffix('.csv')}")


@app.command()
def sync() -> None:
    """Send MLflow what it missed while the tracking server was down."""
    from prefdag.lifecycle.environment import set_environment

    set_environment()
    from prefdag.tracking import runs

    result = runs.sync()
    typer.echo(f"sent {result.sent}, left {result.left}")
    if result.left:
        raise PrefdagError("the tracking server did not accept the rest; run `prefdag sync` again when it will")


@app.command()
def chat(
    prompt: Annotated[str | None, typer.Option(help="Ask this one question and exit.", show_default=False)] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    web: Annotated[
        bool, typer.Option("--web", help="Open the chat on a local page, which also serves OpenAI's API.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0: any free port.")] = 7860,
    force: Force = False,
) -> None:
    """Ask the reference and the trained policy the same question, and see both answers side by side."""
    if web and prompt is not None:
        raise typer.BadParameter("cannot be combined with --web", param_hint="--prompt")
    held = as_recorded((REFERENCE, POLICY), force=force)  # before importing torch, which takes seconds
    try:
        with held:
            _chat(prompt, max_new_tokens, port if web else None)
    except KeyboardInterrupt:
        typer.echo(err=True)
        raise typer.Exit(130) from None


def _chat(prompt: str | None, max_new_tokens: int, port: int | None) -> None:
    """On a local page at `port`, in the terminal, or for one question."""
    if port is not None:
        from prefdag.chat.server import bind, make_app, serve

        listening = bind(port)
        app = make_app(_chat_models(), max_new_tokens)
        typer.echo(f"http://127.0.0.1:{listening.getsockname()[1]}   (Ctrl-C stops it)")
        serve(app, listening)
        return
    from prefdag.chat.terminal import ask_once, converse

    if prompt is None:
        converse(_chat_models(), max_new_tokens)
    else:
        ask_once(_chat_models(), prompt, max_new_tokens)


def _chat_models() -> "ChatModels":
    """Load the pipeline's reference and policy, with the template they were trained with."""
    from prefdag.check_params import load_params

    format_pairs = load_params().format_pairs
    from prefdag.lifecycle.environment import set_environment

    typer.echo("Loading both models ...", err=True)
    set_environment()
    from prefdag.chat.dialogue import ChatModels
    from prefdag.text.generation.stream import stream
    from prefdag.text.model import load_models
    from prefdag.tokenizer.files import positions
    from prefdag.tokenizer.tokenizer import ChatTokenizer

    models = load_models(REFERENCE, POLICY, packed=False)
    tokenizer = ChatTokenizer(REFERENCE, format_pairs.template, format_pairs.template_options)
    generate = {name: partial(stream, model, tokenizer) for name, model in models._asdict().items()}
    return ChatModels(generate, tokenizer, positions(REFERENCE))


@app.command()
def label(
    number: Annotated[int, typer.Argument(metavar="ROUND", min=1, max=3, help="The round whose answers to label.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0: any free port.")] = 7860,
) -> None:
    """Open a local page on which people say which of two answers is better: several at once, each with a name of their own.

    `dvc repro` says when a round has something to label, and goes on when that is done. Labels are saved at once, in
    labels/round-ROUND/NAME.jsonl.
    """
    from prefdag.chat import labelling
    from prefdag.chat.server import bind, serve
    from prefdag.labelling.forms import read_comparisons, to_label

    name = f"round-{number}"
    comparisons = read_comparisons(to_label(name))
    with labelling.only_server(name):
        listening = bind(port)
        app = labelling.make_app(labelling.Labels(Path("labels", name), comparisons))
        typer.echo(f"http://127.0.0.1:{listening.getsockname()[1]}   {len(comparisons)} comparisons (Ctrl-C stops it)")
        serve(app, listening)


class Part(StrEnum):
    """The folders of an export."""

    text = "text"
    text_adapter = "text_adapter"
    image = "image"


@app.command()
def export(
    to: Annotated[Path, typer.Option(help="The folder to write. Only an earlier export in it is replaced.")] = EXPORT,
    register: Annotated[
        bool, typer.Option("--register", help="Also create a version of each model in MLflow's registry.")
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Also upload one part to this hub repository.", show_default=False),
    ] = None,
    part: Annotated[Part, typer.Option(help="The part to upload.")] = Part.text,
    public: Annotated[
        bool, typer.Option("--public", help="Let anybody see the repository; without it, it is private.")
    ] = False,
    force: Force = False,
) -> None:
    """Write the models in formats that other programs load; each is read back and compared with the pipeline's own."""
    if push is not None:
        from prefdag.export.push import check

        check(push)
    from prefdag.check_params import load_params
    from prefdag.export import pipeline
    from prefdag.lifecycle.environment import set_environment

    set_environment()
    params = load_params()
    with as_recorded(pipeline.INPUTS, force=force):
        pipeline.export(to, params, typer.echo)
    typer.echo(f"exported to {to}")
    if register:
        from prefdag.export import registry

        for version in registry.register(to, params):
            typer.echo(f"registered {version}")
    if push is not None:
        from prefdag.export.push import push as upload

        typer.echo(f"pushed {part} to {upload(to / part, push, public=public)}")


def _shown(value: Any) -> str:
    """A parameter or a source on one line, written as in params.yaml."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
