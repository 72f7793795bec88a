"""Whether there is a network, found out before a library would spend half a minute on retries."""

import socket
import threading
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

SECONDS = 0.8
PORTS = {"http": 80, "https": 443}


def reachable(url: str) -> bool:
    """Whether the host of `url`, or the proxy that leads to it, accepts a connection. The answer takes under a second.

    The connection is made in a thread, because looking up the name of a host has no time limit.
    """
    connected = threading.Event()
    thread = threading.Thread(target=_connect, args=(_address(url), connected), daemon=True)
    thread.start()
    thread.join(SECONDS)
    return connected.is_set()


def _connect(address: tuple[str, int], connected: threading.Event) -> None:
    try:
        socket.create_connection(address, timeout=SECONDS).close()
    except OSError:
        return
    connected.set()


def _address(url: str) -> tuple[str, int]:
    """Where to connect to for `url`: the proxy that the environment names for it, or else its own host."""
    target, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(target.scheme, proxies.get("all"))
    if proxy and not proxy_bypass(target.netloc):
        target = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = target.port if target.port is not None else PORTS.get(target.scheme, PORTS["http"])
    return target.hostname or "", port
