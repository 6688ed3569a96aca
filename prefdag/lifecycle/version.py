"""The installed version of the library against the one that a project pins."""

from importlib.metadata import version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from prefdag.lifecycle.errors import PrefdagError

REQUIREMENTS = Path("requirements.txt")


def check_version() -> None:
    """Raise `PrefdagError` if requirements.txt pins another version of the library than the one that is running.

    Every stage of a project depends on that file. With another library, its results would be recorded under the wrong version.
    """
    if not REQUIREMENTS.exists():
        return
    pinned = [v for line in REQUIREMENTS.read_text("utf-8").splitlines() if (v := pinned_version(line))]
    if pinned and version("prefdag") not in pinned:
        raise PrefdagError(
            f"{REQUIREMENTS}: pins prefdag {pinned[0]}, but {version('prefdag')} is installed; install the pinned one "
            f"(pip install --no-deps -r {REQUIREMENTS}), or pin the installed one, and every stage runs again"
        )


def pinned_version(line: str) -> str | None:
    """The version of prefdag that a line of requirements.txt installs; None if it installs something else, or any version."""
    requirement = line.partition("#")[0].partition("--hash")[0].strip()
    try:
        name, found, *_ = parse_wheel_filename(requirement.rpartition("/")[2])
        return str(found) if name == "prefdag" else None
    except InvalidWheelFilename:
        pass
    try:
        parsed = Requirement(requirement)
    except InvalidRequirement:
        return None
    exact = [spec.version for spec in parsed.specifier if spec.operator == "=="]
    return exact[0] if parsed.name == "prefdag" and exact else None
