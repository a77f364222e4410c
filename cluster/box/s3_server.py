"""S3 server in one process: OpenStack Swift's proxy, account, container and object servers behind its S3 interface.

python s3_server.py FOLDER PORT: listens on loopback, at this port and the three after it. Requests are signed (AWS
signature version 4) by the access key and the secret in BOX_S3_KEY (ACCOUNT:USER) and BOX_S3_SECRET, path-style.
FOLDER needs extended attributes of users, as ext4, XFS and tmpfs have.
"""

import os
import socket
import sys
from pathlib import Path
from typing import Any

REGION = "us-east-1"
_STORAGE = ("account", "container", "object")

_RINGS = """[swift-hash]
swift_hash_path_suffix = twostream
swift_hash_path_prefix = ray
[storage-policy:0]
name = default
default = yes
"""

_STORAGE_SERVER = """[DEFAULT]
swift_dir = {settings}
devices = {folder}/devices
mount_check = false
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
log_level = ERROR
log_address = /nonexistent
disk_chunk_size = 1048576
network_chunk_size = 1048576
fallocate_reserve = 0
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""

_PROXY = """[DEFAULT]
swift_dir = {settings}
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
log_level = ERROR
max_clients = 256
client_chunk_size = 1048576
object_chunk_size = 1048576
[pipeline:main]
pipeline = catch_errors gatekeeper proxy-logging cache listing_formats s3api tempauth bulk slo dlo proxy-logging proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:proxy-logging]
use = egg:swift#proxy_logging
access_log_level = ERROR
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = {region}
force_swift_request_proxy_log = false
allow_multipart_uploads = true
min_segment_size = 5242880
[filter:tempauth]
use = egg:swift#tempauth
user_{user} = {secret} .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""  # noqa: E501


def main(folder: Path, port: int, *, key: str, secret: str) -> None:
    """Serve until this process is ended."""
    settings = folder / "etc"
    settings.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / "devices/d1").mkdir(parents=True, exist_ok=True)
    ports = {kind: port + 1 + number for number, kind in enumerate(_STORAGE)}
    (settings / "swift.conf").write_text(_RINGS)
    for kind, its in ports.items():
        _write_ring(settings, kind, its)
        text = _STORAGE_SERVER.format(settings=settings, folder=folder, port=its, kind=kind)
        (settings / f"{kind}.conf").write_text(text)
    user = key.replace(":", "_")
    (settings / "proxy.conf").write_text(
        _PROXY.format(settings=settings, port=port, region=REGION, user=user, secret=secret)
    )
    _serve_all(settings, ports | {"proxy": port})


def _write_ring(settings: Path, kind: str, port: int) -> None:
    """Where objects of a kind are: one replica on one device behind one server."""
    from swift.common.ring import RingBuilder

    ring = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
    ring.add_dev(
        {
            **{"id": 0, "region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "d1", "weight": 1.0},
            **{"meta": "", "replication_ip": "127.0.0.1", "replication_port": port},
        }
    )
    ring.rebalance()
    ring.get_ring().save(str(settings / f"{kind}.ring.gz"))


def _serve_all(settings: Path, ports: dict[str, int]) -> None:
    import eventlet
    import eventlet.wsgi
    from swift.common import utils
    from swift.common.wsgi import SwiftHttpProtocol, loadapp

    utils.set_swift_dir(str(settings))
    eventlet.hubs.use_hub("epolls" if "epolls" in str(eventlet.hubs.builtin_hub_names) else None)
    eventlet.patcher.monkey_patch(all=False, socket=True, select=True, thread=True)

    def serve(kind: str) -> None:
        application = loadapp(str(settings / f"{kind}.conf"), global_conf={"log_name": kind})
        listening = eventlet.listen(("127.0.0.1", ports[kind]), backlog=1024)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        eventlet.wsgi.server(
            listening,
            application,
            _Nowhere(),
            protocol=SwiftHttpProtocol,
            log_output=False,
            capitalize_response_headers=False,
            max_size=512,
        )

    for kind in _STORAGE:
        eventlet.spawn(serve, kind)
    serve("proxy")


class _Nowhere:
    """A log that keeps nothing: eventlet's would have a line a request."""

    def write(self, *_: Any) -> None:
        pass

    def flush(self) -> None:
        pass


if __name__ == "__main__":
    main(
        Path(sys.argv[1]).resolve(),
        int(sys.argv[2]),
        key=os.environ["BOX_S3_KEY"],
        secret=os.environ["BOX_S3_SECRET"],
    )
