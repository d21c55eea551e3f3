"""Latency before measuring: a table of blocks solved from measured networks, with an honest interval. Never the final number."""

from nasvit.latency.model import LatencyModel as LatencyModel
from nasvit.latency.model import Prediction as Prediction
