"""A copy of a search's trials in an Optuna storage (`--storage URL`), for teams that watch one database. The records stay the truth.

The driver never waits for the storage: a thread of its own writes. A storage that is lost does not stop the search: that is told once, and
what it misses is written when it is back, at the latest by the next session.

Optuna changes no finished trial, but the end of a search lets some rise again. What such a trial was at its lower rungs then stands as
pruned, and the complete trials of the study are those of the records, each once.
"""

from __future__ import annotations

import queue
import re
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import quote, quote_plus

import optuna
from sqlalchemy import column, literal_column, select, table, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from nasvit.errors import ArchError, ConfigError
from nasvit.results.objectives import objective
from nasvit.results.record import TrialRecord, latest
from nasvit.search.rebuilt import ARCH, TRIAL, create_study, frozen
from nasvit.search.study import Recorded, Space

RETRY_SECONDS = 30.0
END_SECONDS = 10.0
"""So long the end of a search waits for what is not written yet."""
ACCEPTED = ("an Optuna storage URL, such as sqlite:///watch.db, postgresql+psycopg://user:password@host/database or "
            "mysql+pymysql://user:password@host/database")
DRIVERS = {"postgresql": "psycopg[binary]", "mysql": "pymysql[rsa]", "mariadb": "pymysql[rsa]"}
"""What `pip install` gives each kind of database a driver, both in the extra `storage`."""

SECRET = re.compile("pass|pwd|secret|token|key", re.IGNORECASE)
"""Options of a URL whose values no message shows."""


def check_storage(url: str, *, name: str, objectives: Sequence[str], records: Sequence[TrialRecord] = ()) -> None:
    """Raises ConfigError for what a `Mirror` would refuse, before anything is measured. The storage gets its tables, and no study."""
    storage = _opened(url)
    try:
        study = optuna.load_study(study_name=name, storage=storage) if name in optuna.get_all_study_names(storage) else None
        there = {} if study is None else _entries(study)
    except Exception as error:  # drivers of databases raise what they like
        raise _unheld(url, name, error) from error
    finally:
        storage.remove_session()
        storage.engine.dispose()
    if study is not None:
        _check_own(study, there, objectives=objectives, known=latest(records))


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
            self._there = _entries(study)
        except Exception as error:  # drivers of databases raise what they like
            raise _unheld(self._url, self._name, error) from error
        _check_own(study, self._there, objectives=self._objectives, known=known)
        return study

    def _write(self) -> None:
        """The thread's life."""
        while (record := self._waiting.get()) is not None:
            while not self._entered(record):
                if self._ending.wait(RETRY_SECONDS):
                    return
            self._back()

    def _entered(self, record: TrialRecord) -> bool:
        try:
            if self.lost is not None:  # what was being written when it was lost may have arrived
                self._there = _entries(self._study)
            if (record.trial, record.rung) in self._there:
                return True
            asked = Recorded(record.params)
            self._space.suggest(asked)
            trial = frozen(record, self._objectives, distributions=asked.distributions)
            if any(number == record.trial for number, _ in self._there):
                self._superseded(record.trial)
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

    def _superseded(self, number: int) -> None:
        """What the storage has of this trial is from lower rungs: pruned. By SQL, because Optuna changes no finished trial."""
        trials, said = table("trials", column("trial_id"), column("study_id"), column("state")), table(
            "trial_user_attributes", column("trial_id"), column("key"), column("value_json"))
        of_trial = select(said.c.trial_id).where(said.c.key == TRIAL, said.c.value_json == str(number))
        study = self._storage.get_study_id_from_name(self._name)
        with self._storage.engine.begin() as connection:
            connection.execute(update(trials).where(trials.c.study_id == study, trials.c.trial_id.in_(of_trial))
                               .values(state=literal_column("'PRUNED'")))

    def _back(self) -> None:
        if self.lost is not None:
            self.lost = None
            self._told("the storage is back")

    def _words(self, error: Exception) -> str:
        return words(error, url=self._url)


def hidden(url: str) -> str:
    """The URL without its password, and without its options, of which one may be a password."""
    return make_url(url).set(query={}).render_as_string(hide_password=True)


def words(error: BaseException, *, url: str) -> str:
    """The error in a line, without what the URL holds of passwords. A database's own words, not what Optuna makes of them."""
    while error.__cause__ is not None and not isinstance(error, DBAPIError):
        error = error.__cause__
    text = str(error).strip() or "no reason given"
    line = f"{type(error).__name__}: {text.splitlines()[0]}"
    for secret in _secrets(url):
        line = line.replace(secret, "***")
    return line[:300]


def _secrets(url: str) -> list[str]:
    """What no message may show, as it is and as it stands in the URL; the longest first."""
    known = make_url(url)
    options = [value for name, values in known.normalized_query.items() for value in values if SECRET.search(name)]
    plain = [str(known.password)] if known.password else []
    return sorted({form for text in (*plain, *options) for form in (text, quote(text, safe=""), quote_plus(text)) if form}, key=len,
                  reverse=True)


def _unheld(url: str, name: str, error: Exception) -> ConfigError:
    return ConfigError(f"the storage {hidden(url)} cannot hold the study {name!r}: {words(error, url=url)}")


def _check_own(study: optuna.Study, there: Mapping[tuple[int, int], str], *, objectives: Sequence[str],
               known: Mapping[int, TrialRecord]) -> None:
    """Raises ConfigError where the study is not that of the run with these records. there: its entries."""
    name = study.study_name
    if there and not known:
        raise ConfigError(f"the storage has trials of a study {name!r} already; choose another --out, or delete that study")
    foreign = [n for (n, _), arch in there.items() if n in known and known[n].arch_id != arch]
    if foreign or [d.name.lower() for d in study.directions] != [objective(o).direction for o in objectives]:
        raise ConfigError(f"the study {name!r} of the storage is another run's; choose another --out, or delete that study")


def _entries(study: optuna.Study) -> dict[tuple[int, int], str]:
    """What the storage has: the network of each (trial, rung)."""
    return {(int(t.user_attrs[TRIAL]), int(t.user_attrs["rung"])): str(t.user_attrs[ARCH]) for t in study.get_trials(deepcopy=False)}


def _opened(url: str) -> optuna.storages.RDBStorage:
    try:
        given = make_url(url)
    except ArgumentError:
        raise ConfigError(f"--storage takes {ACCEPTED}") from None  # without the text: it may hold a password
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # a connection that the server or a firewall has closed meanwhile is made anew before it is used
            return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except ImportError as error:
        driver = DRIVERS.get(given.get_backend_name())
        what = (f"pip install '{driver}' (or nasvit's extra `storage`), and write the URL as in --storage's examples" if driver else
                "install the Python driver of this database")
        raise ConfigError(f"the storage {hidden(url)} cannot be opened, its Python driver is missing ({words(error, url=url)}): {what}; "
                          f"--storage takes {ACCEPTED}") from error
    except Exception as error:  # drivers of databases raise what they like
        raise ConfigError(f"the storage {hidden(url)} cannot be opened: {words(error, url=url)}; --storage takes {ACCEPTED}") from error
