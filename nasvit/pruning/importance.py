"""How much each unit of each group matters to the dense model: computed once, kept beside the run.

Criteria: "taylor", the first-order change of the loss when the unit's weights go to zero (Molchanov et al. 2019, arXiv 1906.10771,
per group: the squared sum of weight times gradient, added over the tensors the unit stands in and over the calibration batches);
"magnitude", the squared norm of its weights in units of the mean of its tensor; "attention", heads by the mean of the largest attention
of each query (the confidence of Voita et al. 2019, arXiv 1905.09418), everything else by taylor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from nasvit.errors import ConfigError, first_of
from nasvit.pruning.dense import Dense
from nasvit.pruning.families import FAMILIES
from nasvit.pruning.families.base import Axis
from nasvit.pruning.slicing import group_sizes

CRITERIA = ("taylor", "magnitude", "attention")


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """Group -> one score for each unit, higher is kept; `key` names the dense weights, images and criterion it was computed from."""

    criterion: str
    key: str
    scores: dict[str, Tensor]


def key_of(dense: Dense, images: Tensor, labels: Tensor | None, *, criterion: str) -> str:
    """16 hexadecimal digits over everything the scores depend on."""
    digest = hashlib.sha256(f"{criterion}:{dense.plan.id}".encode())
    for name, value in sorted(dense.state.items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    for tensor in (images, labels):
        if tensor is not None:
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def importance(dense: Dense, images: Tensor, labels: Tensor | None = None, *, criterion: str = "taylor", batch_size: int = 16,
               directory: str | Path | None = None) -> Importance:
    """The scores on calibration images (M, in, H, W), normalised as the dense model takes them.

    labels (M,): classes; without them the loss is that of the dense model's own predictions. directory: where scores are kept as
    importance-KEY.safetensors and taken from where they are there already. The dense model stays as it is. Raises ConfigError for
    labels that do not go with the images or the model, and where a score is not a finite number.
    """
    if criterion not in CRITERIA:
        raise ConfigError(f"criterion must be one of {', '.join(CRITERIA)}, not {criterion!r}")
    if images.dim() != 4 or not len(images):
        raise ConfigError(f"calibration images must be (M, channels, H, W) with M from 1, not {tuple(images.shape)}")
    if labels is not None:
        _check_labels(dense, images, labels)
    key = key_of(dense, images, labels, criterion=criterion)
    path = None if directory is None else Path(directory) / f"importance-{key}.safetensors"
    if path is not None and path.is_file():
        return _read(path, criterion=criterion, key=key)
    batches = [(images[i : i + batch_size], None if labels is None else labels[i : i + batch_size])
               for i in range(0, len(images), batch_size)]
    scores = _magnitude(dense) if criterion == "magnitude" else _taylor(dense, batches)
    if criterion == "attention":
        scores |= _confidence(dense, [x for x, _ in batches])
    _add_heads(dense, scores)
    if odd := [name for name, score in scores.items() if not bool(score.isfinite().all())]:
        raise ConfigError(f"the importance of {first_of(odd, most=4)} is not finite: the calibration "
                          "images or the dense model's weights hold what is no number, or its outputs overflow; nothing can be ranked so")
    result = Importance(criterion=criterion, key=key, scores=scores)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".tmp")
        save_file({n: v.contiguous() for n, v in scores.items()}, part, metadata={"key": key, "criterion": criterion})
        part.replace(path)
    return result


def _check_labels(dense: Dense, images: Tensor, labels: Tensor) -> None:
    classes = int(getattr(dense.module, "num_classes", 0))
    if labels.shape != images.shape[:1]:
        raise ConfigError(f"labels must be one class for each of the {len(images)} images, not of shape {tuple(labels.shape)}")
    if classes and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ConfigError(f"labels from {int(labels.min())} to {int(labels.max())} are not possible; accepted: 0 to {classes - 1}")


def _read(path: Path, *, criterion: str, key: str) -> Importance:
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
        scores = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); delete it and it is computed again") from None
    if about.get("key") != key:
        raise ConfigError(f"{path} was computed from something else; delete it and it is computed again")
    return Importance(criterion=criterion, key=key, scores=scores)


def _units(value: Tensor, axis: Axis, dim: int, sizes: dict[str, int]) -> list[tuple[str, Tensor]]:
    """For each group along one axis: (units, everything else of them) of a tensor."""
    moved, parts, offset = value.movedim(dim, 0), [], 0
    for group in axis or ():
        parts.append((group, moved[offset : offset + sizes[group]].reshape(sizes[group], -1)))
        offset += sizes[group]
    return parts


def _add(scores: dict[str, Tensor], group: str, value: Tensor) -> None:
    scores[group] = scores[group] + value if group in scores else value


def _taylor(dense: Dense, batches: Sequence[tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
    family, source, sizes = FAMILIES[dense.plan.source.family], dense.plan.source, group_sizes(dense.plan)
    module, scores = dense.module, dict[str, Tensor]()
    parameters = [(n, p) for n, p in module.named_parameters()]
    flags = [p.requires_grad for _, p in parameters]
    first = parameters[0][1]
    try:
        for _, p in parameters:
            p.requires_grad_(True)
        for images, labels in batches:
            with torch.inference_mode(False), torch.enable_grad():  # whatever the caller is in
                loss = _loss(module(images.to(first.device, first.dtype)), labels)
                gradients = torch.autograd.grad(loss, [p for _, p in parameters], allow_unused=True)
            for (name, parameter), gradient in zip(parameters, gradients, strict=True):
                if gradient is None:
                    continue
                product = (parameter.detach() * gradient).double().cpu()
                for dim, axis in enumerate(family.axes(source, name)):
                    for group, units in _units(product, axis, dim, sizes):
                        _add(scores, group, units.sum(dim=1).square() / len(batches))
    finally:
        for (_, p), flag in zip(parameters, flags, strict=True):
            p.requires_grad_(flag)
    return scores


def _add_heads(dense: Dense, scores: dict[str, Tensor]) -> None:
    """"heads.I" where no criterion gave it: the sum of the head's channels; in a network of an Arch the mixers' sum, in equal shares."""
    for i, block in enumerate(dense.layout.blocks):
        parts = [scores[g].view(block.heads, -1).sum(dim=1) for g in (f"qk.{i}", f"v.{i}") if g in scores]
        inner = [v.sum() for g, v in scores.items() if g.startswith(f"inner.{i}.")]
        if parts:
            scores.setdefault(f"heads.{i}", sum(parts[1:], parts[0]))
        elif inner:
            scores.setdefault(f"heads.{i}", (sum(inner[1:], inner[0]) / block.heads).expand(block.heads).contiguous())


def _loss(logits: Tensor, labels: Tensor | None) -> Tensor:
    labels = logits.argmax(dim=1) if labels is None else labels.to(logits.device)
    return F.cross_entropy(logits, labels)


def _magnitude(dense: Dense) -> dict[str, Tensor]:
    family, source, sizes = FAMILIES[dense.plan.source.family], dense.plan.source, group_sizes(dense.plan)
    scores: dict[str, Tensor] = {}
    for name, parameter in dense.module.named_parameters():
        value = parameter.detach().double().cpu()
        for dim, axis in enumerate(family.axes(source, name)):
            for group, units in _units(value, axis, dim, sizes):
                norms = units.square().mean(dim=1)
                _add(scores, group, norms / norms.mean().clamp(min=1e-30))
    return scores


def _confidence(dense: Dense, batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """"heads.I" of every block: the mean of each query's largest attention. The observers stand on our own module, and go again."""
    family, source = FAMILIES[dense.plan.source.family], dense.plan.source
    scores: dict[str, Tensor] = {}
    first = next(dense.module.parameters())
    hooks = []
    for path, module in dense.module.named_modules():
        if not hasattr(module, "confidence"):
            continue
        last = f"{path}.proj.weight" if f"{path}.proj.weight" in dense.state else f"{path}.proj.linear.weight"
        values = (family.axes(source, last)[1] or ("",))[0]  # "v.I": the attention's own block

        def observe(attention: Any, inputs: tuple[Tensor, ...], group: str = values.replace("v.", "heads.")) -> None:
            _add(scores, group, attention.confidence(inputs[0]).double().cpu())

        hooks.append(module.register_forward_pre_hook(observe))
    try:
        with torch.no_grad():
            for images in batches:
                dense.module(images.to(first.device, first.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return {group: score / len(batches) for group, score in scores.items()}
