"""A profile changes only values in params.yaml. A wrong profile is reported in one line and changes nothing."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT
from ruamel.yaml import YAML

from prefdag.check_params import load_params
from prefdag.lifecycle.errors import ParamsError
from prefdag.project import profiles
from prefdag.runtime.yaml import read_yaml

NAMES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))

TEXT = """\
# the head
beta: 0.1       # strength

a:
  source:       # where from
    kind: pypi
    file: x     # its name

  # before rate
  rate: 2.0e-4  # learning rate
  none: null

b:
  names: [p, q]  # modules
  flag: true
"""


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Git repository with this project's params.yaml and profiles committed, as the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "profiles").mkdir()
    for path in [Path("params.yaml"), *(Path("profiles", f"{name}.yaml") for name in NAMES)]:
        path.write_bytes((ROOT / path).read_bytes())
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "parameters"]):
        subprocess.run([*git, *command], check=True)
    return tmp_path


def plain(text: str) -> Any:
    return YAML(typ="safe").load(text)


def test_render_changes_only_the_value() -> None:
    assert profiles.render(TEXT, {"beta": 0.3}) == TEXT.replace("0.1 ", "0.3 ")
    assert profiles.render(TEXT, {"a": {"none": 7}}) == TEXT.replace("none: null", "none: 7")
    assert profiles.render(TEXT, {"b": {"flag": False}}) == TEXT.replace("flag: true", "flag: false")


def test_render_keeps_the_notation_of_an_equal_number() -> None:
    assert profiles.render(TEXT, {"a": {"rate": 0.0002}}) == TEXT


def test_render_replaces_a_whole_source_and_keeps_the_comments_around_it() -> None:
    expected = TEXT.replace("    kind: pypi\n    file: x     # its name\n", "    kind: path\n    path: u\n")
    assert profiles.render(TEXT, {"a": {"source": {"kind": "path", "path": "u"}}}) == expected


@pytest.mark.slow
@given(
    beta=st.floats(1e-6, 1e6),
    rate=st.none() | st.floats(1e-9, 1),
    source=st.none() | st.dictionaries(st.sampled_from(["path", "sha256", "files"]), st.text("ab1", min_size=1)),
    names=st.none() | st.lists(st.text("pq_", min_size=1), min_size=1),
)
def test_render_agrees_with_merge(
    beta: float, rate: float | None, source: dict[str, str] | None, names: list[str] | None
) -> None:
    overlay: dict[str, Any] = {"beta": beta, "a": {"rate": rate}}
    if source is not None:
        overlay["a"]["source"] = {"kind": "path"} | source
    if names is not None:
        overlay["b"] = {"names": names}
    text = profiles.render(TEXT, overlay)
    assert plain(text) == profiles.merge(plain(TEXT), overlay)
    for comment in ("# the head", "# strength", "# where from", "# before rate", "# learning rate", "# modules"):
        assert comment in text


def test_merge_replaces_a_whole_source_and_merges_other_mappings_by_key() -> None:
    base = {"s": {"kind": "pypi", "file": "x"}, "t": {"epochs": 1, "rate": 2}}
    overlay = {"s": {"kind": "cifar10"}, "t": {"rate": 3}}
    assert profiles.merge(base, overlay) == {"s": {"kind": "cifar10"}, "t": {"epochs": 1, "rate": 3}}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_profile_is_valid_and_keeps_every_comment(name: str, repo: Path) -> None:
    before = Path("params.yaml").read_text()
    changes = profiles.apply(name).changes
    after = Path("params.yaml").read_text()
    load_params()
    assert read_yaml(Path("params.yaml")) == profiles.merge(plain(before), read_yaml(Path("profiles", f"{name}.yaml")))
    comments = [line.partition("#")[2] for line in before.splitlines() if "#" in line]
    assert all(comment in after for comment in comments)
    assert {change.key for change in changes} <= set(profiles.values(plain(after)))


@pytest.mark.slow
def test_profiles_do_not_add_up_and_default_restores_every_byte(repo: Path) -> None:
    committed = Path("params.yaml").read_bytes()
    profiles.apply("cifar10")
    cifar10 = Path("params.yaml").read_bytes()
    profiles.apply("tiny")
    profiles.apply("cifar10")
    assert Path("params.yaml").read_bytes() == cifar10
    profiles.apply("default")
    assert Path("params.yaml").read_bytes() == committed
    assert profiles.apply("default") == ([], None)


@pytest.mark.slow
@pytest.mark.parametrize("first", [None, "tiny"])
def test_the_users_own_edits_are_kept_unless_forced(first: str | None, repo: Path) -> None:
    if first:
        profiles.apply(first)
    edited = profiles.render(Path("params.yaml").read_text(), {"beta": 0.3125, "seed": 7})
    Path("params.yaml").write_text(edited)
    for name in ("default", "cifar10"):
        with pytest.raises(ParamsError) as caught:
            profiles.apply(name)
        message = str(caught.value)
        assert message.startswith("params.yaml: has edits that are not committed (beta, seed")
        assert f"`prefdag profile {name} --force`, which keeps a copy" in message
        assert Path("params.yaml").read_text() == edited
    changes, backup = profiles.apply("default", force=True)
    assert changes[0] == profiles.ParameterChange("beta", 0.3125, 0.1, of_profile=False)
    assert backup is not None
    assert backup.parent == Path(".prefdag")
    assert backup.read_text() == edited
    assert load_params().beta == 0.1


@pytest.mark.slow
@pytest.mark.parametrize("content", ["beta: [", "# my comment", "beta: 0.1\r\n"])
def test_an_edit_of_any_kind_counts(content: str, repo: Path) -> None:
    """A file that is broken half-way, and a change of comments or line ends alone."""
    whole = Path("params.yaml").read_bytes()
    edited = content.encode() + whole if content.startswith("#") else content.encode()
    Path("params.yaml").write_bytes(edited)
    with pytest.raises(ParamsError, match="has edits that are not committed"):
        profiles.apply("tiny")
    _, backup = profiles.apply("tiny", force=True)
    assert backup is not None
    assert backup.read_bytes() == edited
    assert profiles.apply("default").backup is None
    assert Path("params.yaml").read_bytes() == whole


@pytest.mark.slow
def test_what_a_profile_wrote_is_no_edit(repo: Path) -> None:
    """Not even if the profile has changed since, or if a fresh clone has what the profile would write."""
    Path("profiles/mine.yaml").write_text("beta: 0.3\n")
    assert profiles.apply("mine").backup is None
    Path("profiles/mine.yaml").write_text("beta: 0.4\n")
    assert profiles.apply("mine").backup is None
    assert profiles.apply("tiny").backup is None
    shutil.rmtree(".prefdag")
    assert profiles.apply("tiny").backup is None
    Path("params.yaml").unlink()
    assert profiles.apply("default").backup is None


@pytest.mark.slow
def test_a_file_anywhere_is_a_profile(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "mine.yaml").write_text("beta: 0.3\n")
    (change,) = profiles.apply(str(elsewhere / "mine.yaml")).changes
    assert (change.key, change.new, change.of_profile) == ("beta", 0.3, True)
    assert profiles.apply("default").backup is None
    Path("own.yml").write_text("bta: 0.3\n")
    with pytest.raises(ParamsError, match=r"^own\.yml: bta: unknown key; did you mean 'beta'\?"):
        profiles.apply("own.yml")
    with pytest.raises(ParamsError, match=r"^nowhere/mine\.yaml: no such file; choose from default, "):
        profiles.apply("nowhere/mine.yaml")


@pytest.mark.slow
def test_the_projects_own_profile_comes_first(
    repo: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    included = tmp_path_factory.mktemp("included")
    for name, beta in (("tiny", 0.7), ("other", 0.8)):
        (included / f"{name}.yaml").write_text(f"# Included.\nbeta: {beta}\n")
    monkeypatch.setattr(profiles, "INCLUDED", included)
    Path("profiles/tiny.yaml").write_text("# Mine.\nbeta: 0.3\n")
    profiles.apply("tiny")
    assert load_params().beta == 0.3
    profiles.apply("other")
    assert load_params().beta == 0.8
    assert profiles.list_profiles()["tiny"] == "Mine."


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        (
            "dpo_text: {adapter: {rnak: 4}}",
            "profiles/mine.yaml: dpo_text.adapter.rnak: unknown key; did you mean 'rank'?",
        ),
        ("bta: 0.3", "profiles/mine.yaml: bta: unknown key; did you mean 'beta'?"),
        ("beta: -1.0", "profiles/mine.yaml: beta: input should be greater than 0, not -1.0"),
        ("- beta", "profiles/mine.yaml: expected a mapping of keys to values at the top level"),
        (
            "download_pairs: {source: {kind: path, path: x}}",
            "profiles/mine.yaml: download_pairs.source.sha256: missing",
        ),
        ("sft_ref: 3", "profiles/mine.yaml: sft_ref: "),
    ],
)
def test_a_wrong_profile_is_one_line_and_changes_nothing(overlay: str, message: str, repo: Path) -> None:
    Path("profiles/mine.yaml").write_text(overlay)
    before = Path("params.yaml").read_bytes()
    with pytest.raises(ParamsError) as caught:
        profiles.apply("mine")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert Path("params.yaml").read_bytes() == before
    assert sorted(path.name for path in repo.iterdir()) == [".git", "params.yaml", "profiles"]


def test_an_unknown_profile_names_the_nearest(repo: Path) -> None:
    with pytest.raises(ParamsError, match=r"^profiles/tinny\.yaml: no such profile; did you mean 'tiny'\?$"):
        profiles.apply("tinny")


def test_without_a_committed_file_there_is_no_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    with pytest.raises(ParamsError, match=r"^params\.yaml: Git has no committed version"):
        profiles.apply("default")


def test_without_a_repository_it_says_how_to_start_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a ZIP of this repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    with pytest.raises(ParamsError, match=r"first run `git init && git add -A && git commit -m Start`$"):
        profiles.apply("tiny")


def test_the_list_has_the_first_line_of_each_profile(repo: Path) -> None:
    Path("profiles/mine.yaml").write_text("# What it is for.\nbeta: 0.3\n")
    listed = profiles.list_profiles()
    assert list(listed) == ["default", *sorted([*NAMES, "mine"])]
    assert listed["mine"] == "What it is for."
