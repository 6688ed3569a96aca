"""What is wrong with a server or its storage, in words for a user. The many clients have no classes of errors in common."""

import re
import socket

S3_LOCK = "requirements-s3.lock"
CREDENTIALS = "it may want credentials, as in https://$USER:$TOKEN@HOST/FILE"


def fault(error: Exception) -> str | None:
    """What is wrong, and the remedy; None if the error is not known."""
    import aiohttp

    name = type(error).__name__  # botocore need not be installed
    if missing := re.search(r"requires '(dvc-(\w+))' to be installed", str(error)):  # DVC's own words
        return f"{missing[2]}:// needs {missing[1]}; install it: {installing(missing[2])}"
    match error:
        case aiohttp.TooManyRedirects():
            return "the server sends from one address to another without an end; check the address"
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError():
            return "the address, or one that the server sends to, is not valid; check the address"
        case aiohttp.ClientResponseError() if "Bad status line" in error.message:
            return "the server does not answer as a web server does; check the address"
        case aiohttp.ClientResponseError():
            advice = {401: CREDENTIALS, 403: CREDENTIALS}.get(error.status, "try again later, or check the address")
            return f"the server answers {error.status} {error.message}; {advice}"
        case FileNotFoundError() if "specified bucket does not exist" in str(error):  # S3's own words
            return "there is no such bucket; check the address"
        case PermissionError():
            return "permission denied; check the credentials of this machine"
        case aiohttp.ClientPayloadError() | aiohttp.ServerDisconnectedError() | ConnectionResetError():
            return "the server interrupted the transfer; try again"
        case aiohttp.ClientSSLError():
            return "the server has no certificate that this machine trusts"
        case aiohttp.ClientConnectionError() | TimeoutError() | ConnectionError() | socket.gaierror():
            return "the server cannot be reached; check the address and the network"
        case _ if name in {"EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError"}:
            return "the server cannot be reached; check the address and the network"
        case _ if name == "NoCredentialsError":
            return "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    return None


def installing(scheme: str) -> str:
    """The command that installs what a scheme needs."""
    return f"pip install --no-deps -r {S3_LOCK}" if scheme == "s3" else f"pip install dvc-{scheme}"
