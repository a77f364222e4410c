"""REST client of the Ray dashboard (Ray Jobs): every request has a timeout, every error says what to do."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from twostream_ray.errors import ClusterError, ConfigError
from twostream_ray.redaction import one_line, redact

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")

_TIMEOUT_S = 20.0
_CONNECT_S = 5.0
_UPLOAD_S = 600.0
_AGENT_TIMEOUT_S = 90.0
"""How long the head of a new cluster may take until it accepts jobs."""
_FIRST_NODE_S = 10.0
_IDLE_S, _PROBE_EVERY_S, _PROBES = 20, 10, 3
"""TCP keep-alive: seconds of silence before the first probe, seconds between probes, probes until it counts as lost."""
_CLOSE_TIMEOUT_S = 0.5

Job = dict[str, Any]
"""A job as Ray describes it: submission_id, status, entrypoint, message, metadata, start_time in ms, ..."""


class UnreachableError(ClusterError):
    """The dashboard does not answer at the moment."""


class Dashboard:
    """A Ray cluster's dashboard."""

    def __init__(self, address: str | None = None) -> None:
        """At `address`, or by default at the one that the environment names.

        Raises:
            ConfigError: it is not the address of a dashboard.
        """
        self.url = dashboard_url(address)
        parts = urlsplit(self.url)
        self._secure, self._host, self._prefix = parts.scheme == "https", str(parts.hostname), parts.path
        self._port = parts.port or (443 if self._secure else 80)
        self._token = token()

    @property
    def is_loopback(self) -> bool:
        """Whether the address is this machine's own: a local cluster, or a tunnel to one."""
        return is_loopback(self._host)

    def versions(self) -> dict[str, str]:
        """The cluster's versions under "ray" and "python"; the latter is missing if the cluster does not report it."""
        found = self._json("GET", "/api/version")
        if not isinstance(found, dict) or "ray_version" not in found:
            raise self._not_a_dashboard()
        known = {"ray": str(found["ray_version"])}
        metadata = self._json("GET", "/api/v0/cluster_metadata", missing={})
        python = metadata.get("data", {}).get("pythonVersion") if isinstance(metadata, dict) else None
        return known | ({"python": str(python)} if python else {})

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that are alive, each with node_ip, resources_total and labels.

        Waits for the first: a dashboard that has just started knows none for some seconds.
        """
        deadline = time.monotonic() + _FIRST_NODE_S
        while True:
            alive = [one for one in self.state("nodes") if one.get("state") == "ALIVE"]
            if alive or time.monotonic() > deadline:
                return alive
            time.sleep(0.5)

    def state(self, kind: str, **wanted: str) -> list[dict[str, Any]]:
        """Entries of Ray's state API (nodes, actors or placement_groups) whose fields equal `wanted`."""
        filters = "".join(
            f"&filter_keys={quote(key)}&filter_predicates=%3D&filter_values={quote(value)}"
            for key, value in wanted.items()
        )
        found = self._json("GET", f"/api/v0/{kind}?detail=1&limit=1000{filters}", missing={})
        listed = ((found.get("data") or {}).get("result") or {}).get("result") if isinstance(found, dict) else None
        return list(listed or [])

    def autoscaler_status(self) -> dict[str, Any]:
        """The autoscaler's last report; empty where there is none."""
        found = self._json("GET", "/api/cluster_status", missing={})
        return dict(((found.get("data") or {}).get("clusterStatus")) or {}) if isinstance(found, dict) else {}

    def jobs(self) -> list[Job]:
        """All submitted jobs, the oldest first."""
        found = self._json("GET", "/api/jobs/")
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise self._not_a_dashboard()
        submitted = [one for one in found if one.get("type") == "SUBMISSION"]
        return sorted(submitted, key=lambda one: one.get("start_time") or 0)

    def job(self, name: str) -> Job:
        """One job.

        Raises:
            ConfigError: the cluster has no job of that name.
        """
        found = self._json("GET", f"/api/jobs/{quote(name, safe='')}", missing=None)
        if found is None:
            raise ConfigError(
                f"the Ray cluster {self.url} has no job {name!r}: `twostream jobs` lists those it has; a "
                "restarted cluster forgets its jobs"
            )
        if not isinstance(found, dict) or "status" not in found:
            raise self._not_a_dashboard()
        return found

    def has_package(self, name: str) -> bool:
        """Whether the cluster still has an uploaded package; asking keeps it for some minutes."""
        return self._request("GET", f"/api/packages/gcs/{quote(name)}", accepted=(200, 404))[0] == 200

    def upload(self, name: str, content: bytes) -> None:
        """Upload a package."""
        self._request("PUT", f"/api/packages/gcs/{quote(name)}", body=content, timeout_s=_UPLOAD_S)

    def submit(self, request: Mapping[str, Any]) -> str:
        """Start a job and return its name; waits for a head that has just started.

        Raises:
            ConfigError: the cluster already has a job of that name.
        """
        name, deadline = str(request["submission_id"]), time.monotonic() + _AGENT_TIMEOUT_S
        while True:
            status, said = self._request("POST", "/api/jobs/", body=_as_json(request), accepted=(200, 400, 500))
            if status == 200:
                return str(json.loads(said)["submission_id"])
            text = said.decode(errors="replace")
            if "already exists" in text:
                raise ConfigError(
                    f"the Ray cluster {self.url} has a job {name!r} already: choose another --job, or follow it by "
                    f"`twostream jobs logs {name}`"
                )
            starting = "No available agent" in text or "head node agent" in text
            if not starting or time.monotonic() > deadline:
                raise self._refused("POST", "/api/jobs/", status, said)
            time.sleep(2)

    def stop(self, name: str) -> None:
        """Request a job to stop."""
        self._request("POST", f"/api/jobs/{quote(name, safe='')}/stop", body=b"{}")

    async def log(self, name: str) -> AsyncIterator[str]:
        """Stream a job's output from its beginning until the job ends, however long it is silent.

        Raises:
            UnreachableError: the connection broke.
        """
        import aiohttp

        url = f"{self.url}/api/jobs/{quote(name, safe='')}/logs/tail"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)
        # Ray's dashboard never reads from this WebSocket, so it answers neither pings nor a close frame: a heartbeat
        # would take every silent job for a lost connection. TCP keep-alive probes it instead.
        connector = aiohttp.TCPConnector(socket_factory=_keepalive_socket)
        ends = aiohttp.ClientWSTimeout(ws_close=_CLOSE_TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(headers=self._headers(), timeout=timeout, connector=connector) as session,
                session.ws_connect(url, timeout=ends, max_msg_size=0) as log,
            ):
                async for message in log:
                    if message.type is aiohttp.WSMsgType.TEXT:
                        yield message.data
                if log.close_code not in (None, aiohttp.WSCloseCode.OK):
                    raise UnreachableError(f"the Ray cluster {self.url} ended the log ({log.close_code})")
        except (aiohttp.ClientError, OSError) as error:
            raise UnreachableError(f"the Ray cluster {self.url} does not answer ({one_line(error)})") from error

    def _json(self, method: str, path: str, **missing: Any) -> Any:
        """A request's JSON; `missing`, if given, is returned for 404."""
        status, said = self._request(method, path, accepted=(200, 404) if missing else (200,))
        if status == 404:
            return missing["missing"]
        try:
            return json.loads(said)
        except ValueError:
            raise self._not_a_dashboard() from None

    def _request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        accepted: tuple[int, ...] = (200,),
        timeout_s: float = _TIMEOUT_S,
    ) -> tuple[int, bytes]:
        """Status and content of a response whose status is accepted.

        No redirect is followed, as it would send the token on.
        """
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        try:
            with closing(kind(self._host, self._port, timeout=_CONNECT_S)) as connection:
                connection.connect()
                connection.sock.settimeout(timeout_s)
                headers = {"Content-Type": "application/json"} if method == "POST" else {}
                connection.request(method, self._prefix + path, body=body, headers=headers | self._headers())
                answer = connection.getresponse()
                status, said = answer.status, answer.read()
        except ssl.SSLError as error:
            raise UnreachableError(
                f"the TLS handshake with {self.url} failed ({one_line(error)}): use http://, or set SSL_CERT_FILE to "
                "the certificate authority of the cluster"
            ) from error
        except OSError as error:
            raise UnreachableError(
                f"no Ray cluster answers at {self.url} ({one_line(error)}): start it, open the tunnel to it (`ray "
                "dashboard ray_cluster.yaml`), or name its dashboard by --address http://HOST:8265"
            ) from error
        except (http.client.HTTPException, ValueError) as error:
            raise self._not_a_dashboard() from error
        if status in (401, 403):
            raise self._unauthorised(status)
        if status not in accepted:
            raise self._not_a_dashboard() if status == 404 else self._refused(method, path, status, said)
        return status, said

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def _unauthorised(self, status: int) -> ClusterError:
        ways = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH (a file) or ~/.ray/auth_token"
        if status == 401 and not self._token:
            return ClusterError(f"the Ray cluster {self.url} requires a token, and none is set: put it in {ways}")
        return ClusterError(
            f"the Ray cluster {self.url} rejects the token of {_token_source()}: put the cluster's in {ways}"
        )

    def _not_a_dashboard(self) -> ClusterError:
        return ClusterError(
            f"the dashboard of a Ray cluster was wanted at {self.url}, but something else answers: its port is 8265 "
            "unless `ray start --dashboard-port` says otherwise"
        )

    def _refused(self, method: str, path: str, status: int, said: bytes) -> ClusterError:
        # Ray answers with a traceback, whose last line is the error.
        last = next((line for line in reversed(said.decode(errors="replace").splitlines()) if line.strip()), "")
        return ClusterError(
            f"the Ray cluster {self.url} refuses {method} {path.partition('?')[0]} with {status} "
            f"({one_line(redact(last), longest=300)}): its log is dashboard.log on the head"
        )


def _keepalive_socket(address: tuple[Any, ...]) -> socket.socket:
    """A TCP socket for an address of `getaddrinfo`, whose keep-alive detects a vanished peer of a silent connection."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for names, value in (
        (("TCP_KEEPIDLE", "TCP_KEEPALIVE"), _IDLE_S),  # Linux's name, macOS's
        (("TCP_KEEPINTVL",), _PROBE_EVERY_S),
        (("TCP_KEEPCNT",), _PROBES),
    ):
        option = next((getattr(socket, name) for name in names if hasattr(socket, name)), None)
        if option is not None:
            made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def is_loopback(host: str) -> bool:
    """Whether a host name or IP address is a loopback one."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def dashboard_url(address: str | None) -> str:
    """The dashboard's URL for an address, without a trailing slash.

    Raises:
        ConfigError: it is not the address of a dashboard.
    """
    named = address or os.environ.get("RAY_API_SERVER_ADDRESS", "").strip() or DEFAULT_ADDRESS
    setting = "address" if address else "RAY_API_SERVER_ADDRESS"
    url = named if "://" in named else f"http://{named}"
    wanted = f"{setting} wants the dashboard of a cluster as http://HOST:8265, got {redact(named)}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError(wanted) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(wanted)
    if parts.username or parts.password:
        raise ConfigError(f"{wanted}: a token goes in RAY_AUTH_TOKEN")
    if port == 6379:
        raise ConfigError(f"{wanted}: 6379 is the port of Ray's own processes, the dashboard's is 8265")
    return url.rstrip("/")


def token() -> str | None:
    """The cluster token, from where Ray's own programs read it; None where there is none.

    Unlike them this uses it even if RAY_AUTH_MODE is not set: a cluster that needs no token ignores it.
    """
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return None
    if given := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return given
    path = _token_file()
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError) as error:
        if os.environ.get("RAY_AUTH_TOKEN_PATH"):
            raise ConfigError(f"RAY_AUTH_TOKEN_PATH names {path}, which cannot be read: {one_line(error)}") from error
        return None


def _token_file() -> Path:
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(named) if named else Path("~/.ray/auth_token").expanduser()


def _token_source() -> str:
    return "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN", "").strip() else str(_token_file())


def _as_json(values: Mapping[str, Any]) -> bytes:
    return json.dumps({name: value for name, value in values.items() if value is not None}).encode()
