"""Zero-cost proxies: numbers of an untrained network that may say something of its accuracy, each from one pass over a few images.

They are features with a learned sign, never a ranking: on published accuracies the same proxy correlates with +0.9 in one space and -0.5
in another. How each is adapted to networks of convolutions, attention, batch norms and no class token stands in its docstring and
in docs/proxies.md. Scores that span orders of magnitude are decimal logarithms, at least FLOOR.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nasvit.arch import Arch
from nasvit.cost import count
from nasvit.data import DataSet
from nasvit.data.augment import Normaliser
from nasvit.errors import MeasurementError
from nasvit.models.build import build
from nasvit.proxies.probe import Probe
from nasvit.registry import Registry, function

IMAGES = 32
"""Images of a score."""
FLOOR = -30.0
"""The logarithm of nothing: a score at FLOOR is degenerate."""

ZERO_COST: Registry[Callable[[Probe], float]] = Registry("zero-cost proxy", group="nasvit.proxies", check=function)
"""Name to a function of a Probe; the score is comparable between networks of one space, data set and image size alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroCost:
    """values: name to score. seconds: name to what it took; a pass that several share is charged to the first."""

    values: dict[str, float]
    seconds: dict[str, float]

    @property
    def degenerate(self) -> bool:
        """Whether some score is at FLOOR: nothing flows through the network, forwards or backwards."""
        return any(value <= FLOOR for value in self.values.values())


def score_all(arch: Arch, *, images: Tensor, labels: Tensor, seed: int) -> dict[str, float]:
    """Every registered proxy of the network that `build(arch, seed=seed)` gives; the same for the same arguments.

    images: (B, C, H, W) normalised, B at least 8; labels: (B,). Raises MeasurementError where a score is not finite.
    """
    return score_arch(arch, images=images, labels=labels, seed=seed, names=ZERO_COST.names()).values


def score_arch(arch: Arch, *, images: Tensor, labels: Tensor, seed: int, names: Sequence[str]) -> ZeroCost:
    """`score_module` of the network of an Arch."""
    return score_module(build(arch, seed=seed), images=images, labels=labels, seed=seed, names=names)


def score_module(module: nn.Module, *, images: Tensor, labels: Tensor, seed: int, names: Sequence[str]) -> ZeroCost:
    """The named proxies of a network, which is left as it was: weights, batch norm statistics, mode, gradients.

    Raises ConfigError for an unknown name, MeasurementError where a score is not finite.
    """
    measures = {name: ZERO_COST[name] for name in names}
    probe, values, seconds = Probe(module, images=images, labels=labels, seed=seed), {}, {}
    with torch.random.fork_rng(devices=[]):
        for name, measure in measures.items():
            begun = time.perf_counter()
            values[name] = float(measure(probe))
            seconds[name] = time.perf_counter() - begun
            if not math.isfinite(values[name]):
                raise MeasurementError(f"the zero-cost proxy {name} is {values[name]} for this network: its signals overflow or vanish")
    return ZeroCost(values=values, seconds=seconds)


def probe_images(data: DataSet, *, seed: int, count: int = IMAGES) -> tuple[Tensor, Tensor]:
    """(images, labels) of a proxy: training images drawn by the seed, normalised, not augmented."""
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:count]
    normalise = Normaliser.of(data.mean, data.std, device="cpu")
    return normalise(data.train.images[chosen]).contiguous(), data.train.labels[chosen]


def _log(value: Tensor | float) -> float:
    number = float(value)
    return max(FLOOR, math.log10(number)) if number > 0 else FLOOR if number == 0 else math.nan


@ZERO_COST.register("params")
def params(probe: Probe) -> float:
    """Logarithm of the number of parameters."""
    return _log(sum(p.numel() for p in probe.module.parameters()))


@ZERO_COST.register("macs")
def macs(probe: Probe) -> float:
    """Logarithm of the multiply-adds of one image, counted as everywhere here (nasvit.cost)."""
    return _log(count(probe.module, input_shape=(1, *probe.images.shape[1:])).macs)


@ZERO_COST.register("snip")
def snip(probe: Probe) -> float:
    """SNIP (Lee et al., arXiv 1810.02340): logarithm of the sum of |gradient x weight|.

    All parameters count, gates, position tables and norms included; the loss is the training's, without label smoothing.
    """
    return _log(sum((weight * gradients.mean(0)).abs().sum() for weight, gradients in probe.gradients.values()))


@ZERO_COST.register("grad_norm")
def grad_norm(probe: Probe) -> float:
    """Gradient norm (Abdelfattah et al., arXiv 2101.08134): logarithm of the summed Euclidean norms of the layers' gradients."""
    return _log(sum(gradients.mean(0).norm() for _, gradients in probe.gradients.values()))


@ZERO_COST.register("zico")
def zico(probe: Probe) -> float:
    """ZiCo (Li et al., arXiv 2301.11300): sum over layers of log(sum of mean / deviation of |gradient| over batches).

    Layers are convolutions and linear maps, attention's projections included. Weights whose gradient does not vary are left out.
    """
    total, layers = 0.0, 0
    for _, gradients in probe.layers.values():
        size = gradients.abs()
        mean, deviation = size.mean(0), size.std(0)
        ratio = (mean / deviation)[deviation > 0].sum()
        if ratio > 0:
            total, layers = total + float(ratio.log()), layers + 1
    return total if layers else FLOOR


@ZERO_COST.register("synflow")
def synflow(probe: Probe) -> float:
    """SynFlow (Tanaka et al., arXiv 2006.05467): logarithm of the sum of |weight x gradient| of a linearised pass.

    Batch and layer norms only scale in that pass, by a constant; softmax, gates and activations stay as they are.
    """
    return _log(sum((part.weight * part.gradient).abs().sum() for part in probe.linearised))


@ZERO_COST.register("dss")
def dss(probe: Probe) -> float:
    """DSS of TF-TAS (Zhou et al., arXiv 2203.12217): synaptic diversity of attention plus saliency of the rest, as a logarithm.

    Diversity, the product of the nuclear norms of weight and gradient, is taken of every linear map inside a token mixer; saliency,
    |weight x gradient|, of everything else: MLPs, convolutions, slide kernels, downsampling, head. Both from SynFlow's pass.
    """
    total = torch.zeros((), dtype=torch.float64)
    for part in probe.linearised:
        if not (part.gradient.isfinite().all() and part.weight.isfinite().all()):
            return math.nan
        if part.mixes:
            total += torch.linalg.svdvals(part.weight).sum() * torch.linalg.svdvals(part.gradient).sum()
        else:
            total += (part.weight * part.gradient).abs().sum()
    return _log(total)


@ZERO_COST.register("naswot")
def naswot(probe: Probe) -> float:
    """NASWOT (Mellor et al., arXiv 2006.04647): log determinant of how many activation units agree between images.

    A unit is on where its pre-activation is above 0, for ReLU, GELU, hardswish and SiLU alike; softmax and sigmoid gates have no units.
    """
    agreement, units = probe.agreement
    if not units:
        return FLOOR
    ridge = 1e-6 * units * torch.eye(len(agreement), dtype=torch.float64)  # two images of one code leave the matrix singular
    return float(torch.linalg.slogdet(agreement + ridge).logabsdet)


@ZERO_COST.register("az_expressivity")
def az_expressivity(probe: Probe) -> float:
    """Expressivity of AZ-NAS (Lee & Ham, arXiv 2403.19232): sum over blocks of the entropy of the features' principal components.

    Features are a block's output tokens, images and positions together, for normal noise as input.
    """
    return sum(_isotropy(out.detach()) for _, out in probe.blocks)


def _isotropy(features: Tensor) -> float:
    flat = features.reshape(-1, features.shape[-1]).double()
    variances = torch.linalg.eigvalsh(torch.cov(flat.T).reshape(flat.shape[1], flat.shape[1])).clamp(min=0)
    if not variances.sum() > 0:
        return 0.0
    shares = variances / variances.sum()
    return float(-torch.special.xlogy(shares, shares).sum())


@ZERO_COST.register("az_trainability")
def az_trainability(probe: Probe) -> float:
    """Trainability of AZ-NAS (Lee & Ham, arXiv 2403.19232): mean over blocks of 2 - s - 1/s, s the spectral norm of the Jacobian.

    The Jacobian is the paper's estimate by random signs, over the tokens of all images. Stems and downsampling are left out: a block
    keeps the shape of its tokens, so nothing needs to be rearranged.
    """
    values = []
    for x, out in probe.blocks:
        signs = probe.signs(like=out)
        back = torch.autograd.grad(out, x, signs, retain_graph=True)[0]
        width = out.shape[-1]
        jacobian = back.reshape(-1, width).T @ signs.reshape(-1, width) / (out.numel() // width)
        spectral = float(torch.linalg.matrix_norm(jacobian.double(), ord=2))
        values.append(2 - spectral - 1 / (spectral + 1e-6))
    return sum(values) / len(values)
