"""A run for notebooks: `nasvit.load(run)`. Its tables need no torch; `model` brings it in."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from nasvit.arch import Arch
from nasvit.errors import ConfigError
from nasvit.report import Run, load
from nasvit.report.comparison import Comparison, compare
from nasvit.report.embed import svg_of
from nasvit.report.picks import pick
from nasvit.report.plots import headline, picture
from nasvit.report.verified import verify
from nasvit.results.record import TrialRecord

if TYPE_CHECKING:
    from torch import nn


_SHOWN = ("trial", "knee", "accuracy", "latency_ms", "macs_g", "params_m", "rung", "mixers", "arch_id")


class OpenRun:
    """A run directory: its tables as pandas frames, its networks as Archs and as modules. Read when it is made."""

    def __init__(self, path: Path | str) -> None:
        self.run: Run = load(path)

    def __repr__(self) -> str:
        return f"nasvit.load({str(self.path)!r}): {len(self.trials)} trials, {len(self.run.front)} on the front"

    def _repr_html_(self) -> str:
        title, subtitle = headline(self.run)
        front = self.front[list(_SHOWN)].to_html(index=False, float_format=lambda value: f"{value:.4g}", na_rep="")
        return f"<div><b>{escape(title)}</b><br>{escape(subtitle)}.{self._picture()}{front}</div>"

    def _picture(self) -> str:
        spec = {**picture(self.run), "width": 560, "height": 320}
        spec.pop("title", None)
        return f"<div>{svg_of(spec)}</div>"

    @property
    def path(self) -> Path:
        return self.run.path

    @property
    def trials(self) -> pd.DataFrame:
        """One row per trial, at its highest rung."""
        return self.run.trials

    @property
    def front(self) -> pd.DataFrame:
        """The non-dominated trials, cheapest first, with a `knee` flag; a frame shows itself in a notebook."""
        return self.run.front

    @property
    def baselines(self) -> pd.DataFrame:
        """Named networks under the search's protocol."""
        return self.run.baselines

    @property
    def finals(self) -> pd.DataFrame:
        """One row per full training: what the search promised, and what became of it."""
        return verify(self.run).table

    def best(self, *, max_latency_ms: float = math.inf, device: str = "") -> TrialRecord:
        """The most accurate trial within a latency, on the run's first device or the one of this name; of a search `.network()` is its
        Arch.

        Raises RunError where there is none, ConfigError for a device that the run did not measure on."""
        return self.run.best(max_latency_ms=max_latency_ms, device=device)

    def record(self, what: str = "knee") -> TrialRecord:
        """The trial of a pick: knee, best, max-latency:8ms, trial:12, an arch id. Raises ConfigError where it means several or none."""
        found = pick(self.run, what)
        if len(found) != 1:
            raise ConfigError(f"the pick {what!r} means {len(found)} networks; give one, such as {found[0].arch_id}")
        return found[0]

    def arch(self, what: str = "knee") -> Arch:
        """The Arch of a pick; in a notebook it draws itself. Of a pruning its Plan's, under an id of its own, where a network of an Arch
        was pruned. Raises RunError for what is left of a model of timm, which a Plan alone can say."""
        record = self.record(what)
        if record.arch is not None and not record.has_arch:
            from nasvit.pruning.dense import arch_left
            from nasvit.pruning.plan import Plan

            found = arch_left(Plan.from_dict(record.arch))
            if found is not None:
                return found
        return record.network()

    def model(self, what: str = "knee", *, features_only: bool = False) -> nn.Module:
        """The network of a pick with its weights, in eval mode: trained in full where `nasvit train` did, else as the search left it.

        (B, in_channels, H, W) -> logits (B, num_classes); with features_only `nasvit.models.Features`: -> one map
        (B, channels, H / reduction, W / reduction) for each scale, the finest first, described by its `feature_info`.
        Raises RunError where its weights are gone or the data is another, CheckpointError where weights are damaged or do not fit,
        ConfigError as `record` does, and with features_only for what is left of a model of timm.
        """
        from nasvit.finals.searched import load_best
        from nasvit.models import Features, Network

        found = load_best(self.run.path, self.record(what), self.run.experiment, self.run.env).module
        if not features_only:
            return found
        if not isinstance(found, Network):  # a Plan of one of timm's own models
            raise ConfigError(f"the pick {what!r} of {self.path} is a {type(found).__name__}, cut from a model of timm, and gives no "
                              "maps of its scales; leave features_only away")
        return Features(found).eval()

    def compare(self, *others: OpenRun | Path | str) -> Comparison:
        """This run beside others: in a notebook the fronts in one picture and the table; `.table` is the frame.

        Raises ConfigError without another run, and for runs of other data, another device or fewer than two objectives in common.
        """
        return compare([self.run, *(other.run if isinstance(other, OpenRun) else load(other) for other in others)])
