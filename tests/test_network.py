"""Whether a host can be reached, directly or through a proxy."""

import socket
import threading
import time

import pytest

from grpo_jax import network

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def port():
    """A port of this machine that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_host_that_accepts_connections_is_reachable(port):
    assert network.reachable(f"http://127.0.0.1:{port}/models")


def test_a_host_that_refuses_connections_is_not_reachable():
    assert not network.reachable("http://127.0.0.1:9")  # the discard port, where nothing listens


def test_a_host_is_reached_through_its_proxy(port, monkeypatch):
    monkeypatch.setenv("https_proxy", f"http://user:word@127.0.0.1:{port}")
    assert network.reachable("https://huggingface.invalid")
    monkeypatch.setenv("https_proxy", "127.0.0.1:9")
    assert not network.reachable("https://huggingface.invalid")


def test_a_host_that_needs_no_proxy_is_reached_directly(port, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert network.reachable(f"http://127.0.0.1:{port}")


def test_a_slow_name_server_delays_the_answer_by_less_than_a_second(monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(5) and [])
    start = time.monotonic()
    assert not network.reachable("https://huggingface.invalid")
    assert time.monotonic() - start < 1
    released.set()
