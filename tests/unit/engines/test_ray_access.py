from __future__ import annotations

import os
import socket
import stat
import sys
from pathlib import Path

import pytest

from nasvit.engines import make_engine, ray_access
from nasvit.errors import ConfigError


@pytest.fixture(autouse=True)
def no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")  # first, so that what the code sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # and no ~/.ray/auth_token


@pytest.mark.parametrize("address", ["nowhere", "host:port", ":6379", "ray://host", "host:0", "host:99999"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="host:port"):
        ray_access.host_of(address)


def test_an_address_where_nobody_answers_is_refused_in_seconds() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConfigError, match="ray start --head"):
        make_engine("ray", workers=1, address=f"127.0.0.1:{port}")


def test_what_needs_no_cluster_to_be_seen_is_refused_before_one_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    for start in (ray_access.check_start, lambda address, gpus: make_engine("ray", workers=2, address=address, gpus=gpus)):
        with pytest.raises(ConfigError, match=r"a share of a GPU for each worker .1. is a cluster's to give, and there is none"):
            start(None, gpus=1.0)
        with monkeypatch.context() as without:
            without.setitem(sys.modules, "ray", None)
            with pytest.raises(ConfigError, match="pip install"):
                start("127.0.0.1:6379", gpus=0.0)
    ray_access.check_start("127.0.0.1:1", gpus=1.0)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ConfigError, match="unset RAY_AUTH_MODE"):
        ray_access.check_start(None, gpus=0.0)


@pytest.mark.parametrize("address", ["192.0.2.7:6379", "ray://192.0.2.7:10001", "0.0.0.0:6379", "[2001:db8::1]:6379", "no.such.invalid:1"])
def test_a_cluster_beyond_loopback_without_a_token_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="RAY_AUTH_MODE=token"):
        ray_access.check_token(address)


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "localhost:6379", "ray://127.0.0.1:10001", "[::1]:6379"])
def test_a_cluster_on_loopback_may_do_without(address: str) -> None:
    ray_access.check_token(address)


def test_a_token_needs_the_mode_and_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 64)
    assert not ray_access.has_token()  # Ray does not show it unless it is told to
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert ray_access.has_token()
    ray_access.check_token("192.0.2.7:6379")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    assert not ray_access.has_token()
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("\n")
    assert not ray_access.has_token()
    (tmp_path / ".ray" / "auth_token").write_text("y" * 64)
    assert ray_access.has_token()


def test_the_engine_refuses_before_it_sends_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_access, "on_loopback", lambda host: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(ConfigError, match="can be reached by others"):
            make_engine("ray", workers=1, address=f"127.0.0.1:{server.getsockname()[1]}")
        server.settimeout(5)
        assert server.accept()[0].recv(1) == b""  # only that it answers was asked


def test_a_cluster_of_our_own_has_a_token_that_only_the_user_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    ray_access.require_own_token()
    path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert os.environ["RAY_AUTH_MODE"] == "token" and len(path.read_text()) == 64 and ray_access.has_token()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    ray_access.require_own_token()
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(path)


def test_a_cluster_of_our_own_is_never_started_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ConfigError, match="unset RAY_AUTH_MODE"):
        make_engine("ray", workers=1)
