"""A local AWS: a moto server in a thread, and the environment that points every SDK at it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import httpx
from moto.server import ThreadedMotoServer

NOBODY = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/no/such/file",
    "AWS_SHARED_CREDENTIALS_FILE": "/no/such/file",
}
"""An environment in which no SDK finds credentials of the machine's user."""
SOMEBODY = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


class FakeAws:
    """The server's address and what tests put there."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.environment = {**NOBODY, **SOMEBODY, "AWS_ENDPOINT_URL": url}

    def client(self, service: str) -> Any:
        """Return a boto3 client of the server."""
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )

    def upload(self, folder: Path, bucket: str, prefix: str) -> None:
        """Make a bucket that holds every file of a folder."""
        s3 = self.client("s3")
        s3.create_bucket(Bucket=bucket)
        for path in folder.rglob("*"):
            if path.is_file():
                s3.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder).as_posix()}")

    def reset(self) -> None:
        """Forget everything, and let everybody in."""
        self._authenticate_after("inf")
        httpx.post(f"{self.url}/moto-api/reset", trust_env=False)

    def require_rights(self) -> None:
        """From now on, refuse who has no right to what is asked."""
        self._authenticate_after("0")

    def _authenticate_after(self, requests: str) -> None:
        httpx.post(f"{self.url}/moto-api/reset-auth", content=requests, trust_env=False)


@contextmanager
def fake_aws() -> Iterator[FakeAws]:
    """Run a server on a free port."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield FakeAws(f"http://127.0.0.1:{server.get_host_and_port()[1]}")
    finally:
        server.stop()
