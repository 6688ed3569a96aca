"""A server that speaks S3, on the loopback interface: moto's, which checks signatures and policies as AWS does."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

EVERYTHING = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'


@dataclass(frozen=True)
class Buckets:
    """A server with one user, who may do everything in S3."""

    address: str
    key: str
    secret: str
    s3: Any  # boto3's client of that user

    @property
    def environment(self) -> dict[str, str]:
        """With which the clients of this machine find the server, as that user."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }


@contextmanager
def serving() -> Iterator[Buckets]:
    """A server that answers while the block runs."""
    import boto3
    import requests
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"

        def moto(action: str, content: str = "") -> None:
            requests.post(f"{address}/moto-api/{action}", data=content, timeout=10).raise_for_status()

        moto("reset")  # an earlier server of this process has left its users and checks
        moto("reset-auth", "inf")

        def client(service: str, key: str = "start", secret: str = "start") -> Any:
            return boto3.client(
                service,
                endpoint_url=address,
                region_name="us-east-1",
                aws_access_key_id=key,
                aws_secret_access_key=secret,
            )

        iam = client("iam")
        iam.create_user(UserName="me")
        iam.put_user_policy(UserName="me", PolicyName="all", PolicyDocument=EVERYTHING)
        made = iam.create_access_key(UserName="me")["AccessKey"]
        moto("reset-auth", "0")  # from now on it checks
        key, secret = made["AccessKeyId"], made["SecretAccessKey"]
        yield Buckets(address, key, secret, client("s3", key, secret))
    finally:
        server.stop()
