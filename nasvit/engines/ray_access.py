"""Who may reach a Ray cluster: its address is checked, and its token, before anything is sent there.

Ray's control service runs whatever it is sent, and listens on every address of its machine. So a cluster that nasvit starts asks for a
token of its own, and one on another address than loopback is joined only with a token. Nothing here imports ray.
"""

from __future__ import annotations

import atexit
import importlib.util
import ipaddress
import os
import shutil
import socket
import tempfile
from pathlib import Path
from secrets import token_hex

from nasvit.errors import ConfigError

CONNECT_SECONDS = 10.0
MODE, TOKEN, TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
HELP = ("make one with `ray get-auth-token --generate`, give ~/.ray/auth_token to every node, and set RAY_AUTH_MODE=token wherever Ray is "
        "started or joined")


def running_cluster(address: str | None) -> str | None:
    """The running cluster that is meant: `address`, else RAY_ADDRESS; None for a local one to be started."""
    address = address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address


def check_start(address: str | None, *, gpus: float) -> None:
    """What can be refused before a cluster is joined or begun: no package ray, a share of a GPU where there is no running cluster, and one
    of this run's own without tokens."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("the engine ray needs the package ray: pip install 'ray[default]', or use the engine processes")
    if running_cluster(address) is not None:
        return
    if gpus:
        raise ConfigError(f"a share of a GPU for each worker ({gpus:g}) is a cluster's to give, and there is none: start one "
                          "(ray start --head), name one (--ray-address), or leave the share away")
    require_own_token()


def host_of(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `ray://host:port`; raises ConfigError for anything else."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ConfigError(f"a Ray address is auto, host:port or ray://host:port, not {address!r}")
    return host.strip("[]"), int(port)


def check_reachable(address: str) -> None:
    """A clear error in seconds; Ray itself waits for a minute or more."""
    host, port = host_of(address)
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(f"no Ray cluster answers at {address} within {CONNECT_SECONDS:g} s ({error}); "
                          "start one with `ray start --head`, or unset RAY_ADDRESS for a local one") from error


def on_loopback(host: str) -> bool:
    """Whether every address of the name leads to this machine alone; a name that is not known does not."""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
        return bool(found) and all(ipaddress.ip_address(str(place).partition("%")[0]).is_loopback for place in found)
    except (OSError, ValueError):
        return False


def has_token() -> bool:
    """Whether this process would show a token: the mode is set, and there is one, where Ray looks for it."""
    if os.environ.get(MODE, "").lower() != "token":
        return False
    if os.environ.get(TOKEN):
        return True
    path = Path(os.environ.get(TOKEN_FILE) or Path.home() / ".ray" / "auth_token")
    try:
        return bool(path.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError):
        return False


def check_token(address: str) -> None:
    """Raises ConfigError for a cluster that others can reach and a process without a token."""
    host, _ = host_of(address)
    if on_loopback(host) or has_token():
        return
    raise ConfigError(f"the Ray cluster at {address} can be reached by others, and there is no token (RAY_AUTH_MODE is "
                      f"{os.environ.get(MODE, 'not set')}): without one, whoever reaches it runs what they like there; {HELP}")


def require_own_token() -> None:
    """For a cluster that is started for this run: token mode, with a token file that only this user can read, gone at the end.

    Raises ConfigError where the environment switches tokens off.
    """
    if os.environ.get(MODE, "token").lower() != "token":
        raise ConfigError(f"RAY_AUTH_MODE is {os.environ[MODE]!r}, and a Ray cluster without tokens runs what anyone on the network sends "
                          "it; unset RAY_AUTH_MODE, or use the engine processes")
    if has_token():
        return
    folder = tempfile.mkdtemp(prefix="nasvit-ray-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "token"
    path.touch(mode=0o600)
    path.write_text(token_hex(32), encoding="utf-8")
    os.environ.pop(TOKEN, None)
    os.environ[MODE] = "token"
    os.environ[TOKEN_FILE] = str(path)
