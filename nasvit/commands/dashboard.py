"""`nasvit dashboard`: Optuna's own dashboard on a run."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

import typer

from nasvit.errors import ConfigError

HOST = "127.0.0.1"


def dashboard(
    run: Annotated[Path, typer.Argument(help="A run directory, finished or not.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0 takes a free one.")] = 8080,
) -> None:
    """Open optuna-dashboard on the trials of a run, for this machine alone; what is changed there changes no record."""
    try:
        from optuna_dashboard import run_server
    except ImportError as error:
        raise ConfigError(f"the dashboard needs the package optuna-dashboard ({error}); pip install 'nasvit[dashboard]'") from error
    from nasvit.search.rebuilt import study_of_run

    study, trials = study_of_run(run)
    free = free_port(port)
    typer.echo(f"{trials} trials of {run} at http://{HOST}:{free}/ (as they stand now; Ctrl-C ends)")
    run_server(study._storage, host=HOST, port=free)


def free_port(port: int) -> int:
    """The port, or one that is free for 0; raises ConfigError where somebody listens there."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(f"port {port} of {HOST} cannot be used ({error.strerror}); choose another with --port, or 0") from None
        return int(probe.getsockname()[1])
