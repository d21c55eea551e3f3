"""A copy of a search's trials in an Optuna storage (`--storage URL`), for teams that watch one database. The records stay the truth.

The driver never waits for the storage: a thread of its own writes. A storage that is lost does not stop the search: that is told once, and
what it misses is written when it is back, at the latest by the next session.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence

import optuna
from optuna.trial import FixedTrial
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from nasvit.errors import ArchError, ConfigError
from nasvit.results.record import TrialRecord, latest
from nasvit.search.rebuilt import ARCH, TRIAL, create_study, frozen
from nasvit.search.study import Space

RETRY_SECONDS = 30.0
END_SECONDS = 10.0
"""So long the end of a search waits for what is not written yet."""
ACCEPTED = ("an Optuna storage URL, such as sqlite:///watch.db, postgresql+psycopg://user:password@host/database or "
            "mysql+pymysql://user:password@host/database (with the driver installed)")


class Mirror:
    """Writes settled trials into the study `name` of the storage at `url`; a context manager, whose end writes what is left.

    Raises ConfigError where the storage cannot be opened, or its study of this name is another run's: before the first trial.
    """

    def __init__(self, url: str, *, name: str, objectives: Sequence[str], space: Space, records: Sequence[TrialRecord] = (),
                 told: Callable[[str], object] = lambda text: None) -> None:
        self._url, self._name, self._objectives, self._space, self._told = url, name, tuple(objectives), space, told
        self._waiting: queue.Queue[TrialRecord | None] = queue.Queue()
        self._ending = threading.Event()
        self.lost: str | None = None
        self._storage = _opened(url)
        self._study = self._joined(latest(records))
        for record in sorted(latest(records).values(), key=lambda r: r.trial):
            self.add(record)
        self._thread = threading.Thread(target=self._write, daemon=True, name="nasvit-mirror")
        self._thread.start()

    def add(self, record: TrialRecord) -> None:
        """Write this record soon, as one Optuna trial, unless the storage has it."""
        self._waiting.put(record)

    def close(self) -> None:
        """Write what is left, for a few seconds at most."""
        self._ending.set()
        self._waiting.put(None)
        self._thread.join(END_SECONDS)
        left = self._waiting.qsize()
        if self._thread.is_alive() or self.lost is not None:
            self._told(f"the storage misses about {max(1, left)} trials of this run ({self.lost or 'it is too slow'}); the records have "
                       "them all, and a search resumed with --storage writes them")

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _joined(self, known: Mapping[int, TrialRecord]) -> optuna.Study:
        """The run's study, made where there is none. What it has already is not written again."""
        try:
            study = create_study(self._objectives, storage=self._storage, study_name=self._name, load_if_exists=True)
            self._there = {(int(t.user_attrs[TRIAL]), int(t.user_attrs["rung"])): str(t.user_attrs[ARCH])
                           for t in study.get_trials(deepcopy=False)}
        except Exception as error:  # drivers of databases raise what they like
            raise ConfigError(f"the storage {hidden(self._url)} cannot hold the study {self._name!r}: {self._words(error)}") from error
        if self._there and not known:
            raise ConfigError(f"the storage has trials of a study {self._name!r} already; choose another --out, or delete that study")
        foreign = [n for (n, _), arch in self._there.items() if n in known and known[n].arch_id != arch]
        if foreign or list(study.directions) != list(create_study(self._objectives).directions):
            raise ConfigError(f"the study {self._name!r} of the storage is another run's; choose another --out, or delete that study")
        return study

    def _write(self) -> None:
        """The thread's life."""
        while (record := self._waiting.get()) is not None:
            while not self._entered(record):
                if self._ending.wait(RETRY_SECONDS):
                    return
            self._back()

    def _entered(self, record: TrialRecord) -> bool:
        if (record.trial, record.rung) in self._there:
            return True
        asked = FixedTrial(record.params)
        try:
            self._space.suggest(asked)
            trial = frozen(record, self._objectives, distributions=asked.distributions)
            self._study.add_trial(trial)
        except (ValueError, ArchError) as error:  # it will never go in
            self._told(f"the storage cannot hold trial {record.trial}: {self._words(error)}")
            return True
        except Exception as error:  # drivers of databases raise what they like; told, and tried again
            if self.lost is None:
                self.lost = self._words(error)
                self._told(f"the storage is lost: {self.lost}; the search goes on, and what is missing is written when it is back")
            return False
        self._there[record.trial, record.rung] = record.arch_id
        return True

    def _back(self) -> None:
        if self.lost is not None:
            self.lost = None
            self._told("the storage is back")

    def _words(self, error: Exception) -> str:
        return words(error, url=self._url)


def hidden(url: str) -> str:
    """The URL without its password."""
    return make_url(url).render_as_string(hide_password=True)


def words(error: Exception, *, url: str) -> str:
    """The error in a line, without the URL's password."""
    text, password = str(error).strip() or "no reason given", make_url(url).password
    line = f"{type(error).__name__}: {text.splitlines()[0]}"
    return (line.replace(str(password), "***") if password else line)[:300]


def _opened(url: str) -> optuna.storages.RDBStorage:
    try:
        make_url(url)
    except ArgumentError:
        raise ConfigError(f"--storage takes {ACCEPTED}") from None  # without the text: it may hold a password
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.storages.RDBStorage(url)
    except Exception as error:  # drivers of databases raise what they like
        raise ConfigError(f"the storage {hidden(url)} cannot be opened: {words(error, url=url)}; --storage takes {ACCEPTED}") from error
