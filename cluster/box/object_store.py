"""An S3 object store process with an access key and a secret, its data in a folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.box.s3_server import REGION
from cluster.box.server_process import ServerProcess, answers_at
from twostream_ray.errors import ClusterError

PORTS = 4
"""Consecutive ports that it uses."""


@dataclass(frozen=True, kw_only=True)
class ObjectStore:
    """An S3 server on loopback; it uses `port` and the next three."""

    folder: Path
    """Contains its log, settings and objects; its file system must support user extended attributes."""
    port: int
    key: str
    """Access key, ACCOUNT:USER."""
    secret: str

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of clients."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> ServerProcess:
        """Start it; `wait` until it answers.

        Raises:
            ClusterError: the folder's file system cannot keep what it notes about objects.
        """
        self.folder.mkdir(exist_ok=True)
        probe = self.folder / "attributes"
        probe.touch()
        try:
            os.setxattr(probe, "user.probe", b"1")
        except OSError as error:
            raise ClusterError(
                f"the object store needs a file system with user extended attributes (ext4, XFS, tmpfs), "
                f"{self.folder} has none ({error.strerror}): name a folder elsewhere"
            ) from error
        finally:
            probe.unlink()
        script = Path(__file__).with_name("s3_server.py")
        return ServerProcess.started(
            "the object store",
            [sys.executable, "-P", "-W", "ignore", str(script), str(self.folder), str(self.port)],
            log=self.folder / "log",
            environment=os.environ | {"BOX_S3_KEY": self.key, "BOX_S3_SECRET": self.secret},
        )

    def wait(self, process: ServerProcess, *, buckets: Iterable[str]) -> None:
        """Until it answers; then create buckets.

        Raises:
            ClusterError: it has ended, or does not answer within a minute.
        """
        process.wait_until(lambda: answers_at(self.port), seconds=60)
        client = self._client()
        for bucket in buckets:
            client.create_bucket(Bucket=bucket)

    def upload(self, folder: Path, *, bucket: str, prefix: str) -> None:
        """Upload all files of a folder to a bucket, under a prefix."""
        client = self._client()
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            client.put_object(Bucket=bucket, Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes())

    def keys(self, *, bucket: str, prefix: str) -> list[str]:
        """Names of the first thousand objects under a prefix."""
        listed = self._client().list_objects_v2(Bucket=bucket, Prefix=prefix)
        return [entry["Key"] for entry in listed.get("Contents", [])]

    def _client(self) -> Any:
        import botocore.session

        return botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            region_name=REGION,
        )
