"""The ports that a process and those it has started listen on, and what they answer."""

import http.client
import socket
import urllib.error
import urllib.request

import psutil


def ports_of(pid: int) -> list[tuple[int, str, int]]:
    """(process, address, port) of every TCP port that this process or one below it listens on."""
    found = []
    process = psutil.Process(pid)
    for each in [process, *process.children(recursive=True)]:
        try:
            connections = each.net_connections(kind="tcp")
        except psutil.Error:
            continue
        found += [(each.pid, *made.laddr) for made in connections if made.status == psutil.CONN_LISTEN]
    return found


def foreign_addresses() -> list[str]:
    """IPv4 addresses of this machine beside loopback."""
    addresses = [address for many in psutil.net_if_addrs().values() for address in many]
    return [one.address for one in addresses if one.family == socket.AF_INET and not one.address.startswith("127.")]


def post_job(port: int) -> int:
    """Ask an agent to run a command; gives what it answers."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/job_agent/jobs/",
        data=b'{"entrypoint": "id > /tmp/owned"}',
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return 0  # no server of HTTP
