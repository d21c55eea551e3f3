"""FSLA by hand: what the clusters are, which keys they see, and where the gradient goes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from nasvit.errors import ArchError, ConfigError
from nasvit.models.mixers.fsla import FSLAMixer, ascending, cluster_attention, cluster_order, key_lists


def mixer(dim: int = 16, *, grid: tuple[int, int] = (8, 8), heads: int = 2, depth: int = 2, overlap: int = 4,
          qk_scale: Any = None, head_dim: int | None = None) -> FSLAMixer:
    return FSLAMixer(dim, resolution=grid, num_heads=heads, cluster_depth=depth, overlap=overlap, head_dim=head_dim,
                     qk_scale=qk_scale).eval()


def blobs(*centres: tuple[float, ...], per_blob: int, shuffled: bool = True) -> tuple[Tensor, Tensor]:
    """Tokens around well separated directions, (N, d), and the blob of each token."""
    label = torch.arange(len(centres)).repeat_interleave(per_blob)
    if shuffled:
        label = label[torch.randperm(len(label))]
    points = torch.tensor(centres)[label]
    return points + 0.01 * torch.randn_like(points), label


def naive(q: Tensor, k: Tensor, v: Tensor, key_sets: list[set[int]], members: list[list[int]], scale: float) -> Tensor:
    """Attention of one head, (N, d), query by query over an explicit set of keys."""
    out = torch.empty_like(v)
    for tokens, keys in zip(members, key_sets, strict=True):
        chosen = sorted(keys)
        for t in tokens:
            out[t] = torch.softmax(k[chosen] @ q[t] * scale, dim=0) @ v[chosen]
    return out


@pytest.mark.parametrize("assign", ["soft", "hard"])
@pytest.mark.parametrize(("tokens", "depth"), [(64, 0), (64, 3), (48, 4), (70, 1), (8, 3)])
def test_order_is_a_permutation_of_each_leading_index(tokens: int, depth: int, assign: str) -> None:
    order = cluster_order(torch.randn(3, 2, tokens, 5), depth=depth, assign=assign)
    assert order.shape == (3, 2, tokens)
    assert torch.equal(order.sort(dim=-1).values, torch.arange(tokens).expand(3, 2, tokens))


@pytest.mark.parametrize("assign", ["soft", "hard"])
def test_two_blobs_become_the_two_clusters(assign: str) -> None:
    q, label = blobs((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), per_blob=8)
    pieces = label[cluster_order(q, depth=1, assign=assign)].view(2, 8)
    assert (pieces == pieces[:, :1]).all()


def test_four_blobs_become_four_clusters_two_by_two() -> None:
    q, label = blobs((1.0, 0.0, 0.3, 0.0), (1.0, 0.0, -0.3, 0.0), (0.0, 1.0, 0.0, 0.3), (0.0, 1.0, 0.0, -0.3), per_blob=8, shuffled=False)
    pieces = label[cluster_order(q, depth=2)].view(4, 8)
    assert (pieces == pieces[:, :1]).all()
    assert {frozenset(pieces[:2, 0].tolist()), frozenset(pieces[2:, 0].tolist())} == {frozenset({0, 1}), frozenset({2, 3})}


@pytest.mark.parametrize("assign", ["soft", "hard"])
@pytest.mark.parametrize("iterations", [0, 1, 2, 3])
def test_the_first_child_holds_the_tokens_nearer_to_the_second_half(iterations: int, assign: str) -> None:
    q, label = blobs((1.0, 0.0), (0.0, 1.0), per_blob=6, shuffled=False)  # first half of the list: blob 0
    assert label[cluster_order(q, depth=1, iterations=iterations, assign=assign)].tolist() == [1] * 6 + [0] * 6


def test_clusters_ignore_the_length_of_a_query_in_the_final_cut() -> None:
    q = torch.randn(4, 32, 6, dtype=torch.float64)
    assert torch.equal(cluster_order(q, depth=2), cluster_order(q * 7, depth=2))


def test_a_zero_query_does_not_spoil_the_clusters_of_the_others() -> None:
    q, label = blobs((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), per_blob=8)
    zero = int((label == 1).nonzero()[0])
    q[zero] = 0  # as near to either side: it stays with the seven others of its blob
    pieces = label[cluster_order(q, depth=1)].view(2, 8)
    assert (pieces == pieces[:, :1]).all()


def test_images_and_heads_are_clustered_on_their_own() -> None:
    q = torch.randn(3, 2, 32, 8)
    together = cluster_order(q, depth=3)
    for image in range(3):
        for head in range(2):
            assert torch.equal(together[image, head], cluster_order(q[image, head], depth=3))
    assert not torch.equal(together[0, 0], together[0, 1])


def test_key_lists_add_the_neighbours_at_the_cut() -> None:
    order = torch.tensor([7, 2, 5, 0, 3, 6, 1, 4])  # siblings 7 2 | 5 0 and 3 6 | 1 4
    assert key_lists(order, depth=2, overlap=0).tolist() == [[7, 2], [5, 0], [3, 6], [1, 4]]
    assert key_lists(order, depth=2, overlap=1).tolist() == [[7, 2, 5], [2, 5, 0], [3, 6, 1], [6, 1, 4]]
    assert key_lists(order, depth=2, overlap=2).tolist() == [[7, 2, 5, 0]] * 2 + [[3, 6, 1, 4]] * 2
    assert key_lists(order, depth=0, overlap=0).tolist() == [order.tolist()]


@pytest.mark.parametrize(("depth", "overlap"), [(1, 0), (2, 3), (3, 4)])
def test_attention_equals_a_loop_over_explicit_key_sets(depth: int, overlap: int) -> None:
    q, k, v = torch.randn(3, 2, 2, 32, 4, dtype=torch.float64).unbind()
    order = cluster_order(q, depth=depth)
    out = cluster_attention(q, k, v, order, depth=depth, overlap=overlap, scale=0.7)
    size = 32 >> depth
    for image in range(2):
        for head in range(2):
            listed = order[image, head].tolist()
            members = [listed[i:i + size] for i in range(0, 32, size)]
            near = [members[i + 1][:overlap] if i % 2 == 0 else members[i - 1][size - overlap:] for i in range(len(members))]
            keys = [{*own, *added} for own, added in zip(members, near, strict=True)]
            expected = naive(q[image, head], k[image, head], v[image, head], keys, members, 0.7)
            torch.testing.assert_close(out[image, head], expected)


@pytest.mark.parametrize("grid", [(8, 8), (4, 6), (5, 7)])
def test_depth_zero_is_plain_attention_plus_lepe(grid: tuple[int, int]) -> None:
    module, x = mixer(grid=grid, depth=0, overlap=0).double(), torch.randn(2, *grid, 16, dtype=torch.float64)
    q, k, v = module.qkv(x).flatten(1, 2).chunk(3, dim=-1)
    heads = [torch.softmax(a @ b.transpose(1, 2) / math.sqrt(8), dim=-1) @ c
             for a, b, c in zip(q.split(8, -1), k.split(8, -1), v.split(8, -1), strict=True)]
    image = v.transpose(1, 2).reshape(2, 16, *grid)
    lepe = F.conv2d(image, module.lepe.weight, module.lepe.bias, padding=1, groups=16).flatten(2).transpose(1, 2)
    torch.testing.assert_close(module(x), module.proj(torch.cat(heads, dim=-1) + lepe).view(x.shape))


@pytest.mark.parametrize("qk_scale", [None, 1.0])
@pytest.mark.parametrize(("grid", "depth", "overlap"), [((8, 8), 3, 5), ((4, 6), 2, 0), ((6, 2), 1, 6), ((5, 7), 0, 0)])
def test_the_mixer_is_attention_inside_clusters_of_its_queries_plus_lepe(grid: tuple[int, int], depth: int, overlap: int,
                                                                       qk_scale: float | None) -> None:
    module = mixer(grid=grid, depth=depth, overlap=overlap, qk_scale=qk_scale).double()
    x = torch.randn(3, *grid, 16, dtype=torch.float64)
    q, k, v = (t.unflatten(2, (2, 8)).transpose(1, 2) for t in module.qkv(x).flatten(1, 2).chunk(3, dim=-1))
    mixed = cluster_attention(q, k, v, cluster_order(q, depth=depth), depth=depth, overlap=overlap, scale=qk_scale)
    lepe = module.lepe(v.transpose(2, 3).reshape(3, 16, *grid)).flatten(2).transpose(1, 2)
    expected = module.proj(mixed.transpose(1, 2).flatten(2) + lepe).view(x.shape)
    torch.testing.assert_close(module(x), expected)


def test_the_scale_multiplies_the_logits() -> None:
    plain, scaled, x = mixer(), mixer(qk_scale=1.0), torch.randn(1, 8, 8, 16)
    state = plain.state_dict()
    scaled.load_state_dict(state)
    assert not torch.allclose(scaled(x), plain(x))
    for part in ("weight", "bias"):  # keys shorter by as much, and queries the same, so that the clusters are too
        state[f"qkv.{part}"] = torch.cat([state[f"qkv.{part}"][:16], state[f"qkv.{part}"][16:32] * 8**-0.5, state[f"qkv.{part}"][32:]])
    scaled.load_state_dict(state)
    torch.testing.assert_close(scaled(x), plain(x))


@pytest.mark.parametrize("qk_scale", [0.0, -1.0, 1, True, math.inf, math.nan, "1.0", 8**-0.5])
def test_a_scale_that_is_impossible_or_the_default_is_refused(qk_scale: Any) -> None:
    with pytest.raises(ArchError, match="qk_scale"):
        mixer(qk_scale=qk_scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ascending_sorts_each_row_of_any_float_type(dtype: torch.dtype) -> None:
    keys = torch.randn(7, 50).to(dtype)
    order = ascending(keys)
    assert torch.equal(keys.gather(1, order), keys.sort(dim=1).values)
    assert torch.equal(order.sort(dim=1).values, torch.arange(50).expand(7, 50))
    assert torch.equal(ascending(torch.zeros(2, 9)).sort(dim=1).values, torch.arange(9).expand(2, 9))


def test_clusters_of_equal_tokens_are_a_permutation_still() -> None:
    order = cluster_order(torch.ones(2, 64, 4), depth=3)
    assert torch.equal(order.sort(dim=-1).values, torch.arange(64).expand(2, 64))


def test_autocast_to_bfloat16_works() -> None:
    module, x = mixer(), torch.randn(2, 8, 8, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(x)
    out.float().sum().backward()
    assert out.isfinite().all() and x.grad is not None and x.grad.isfinite().all()


def test_overlap_as_large_as_the_cluster_at_depth_one_is_plain_attention() -> None:
    plain, cut = mixer(depth=0, overlap=0).double(), mixer(depth=1, overlap=32).double()
    cut.load_state_dict(plain.state_dict())
    x = torch.randn(2, 8, 8, 16, dtype=torch.float64)
    torch.testing.assert_close(cut(x), plain(x))


@pytest.mark.parametrize("depth", [0, 2])
def test_images_of_a_batch_do_not_mix(depth: int) -> None:
    module, x = mixer(depth=depth, overlap=4 if depth else 0), torch.randn(3, 8, 8, 16)
    changed = x.clone()
    changed[1] = torch.randn(8, 8, 16)
    before, after = module(x), module(changed)
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]])
    assert not torch.allclose(after[1], before[1])


def test_gradient_reaches_queries_keys_and_values_but_not_through_the_order() -> None:
    q, k, v = (torch.randn(1, 2, 16, 4, requires_grad=True) for _ in range(3))
    order = cluster_order(q, depth=2)
    assert not order.is_floating_point() and not order.requires_grad
    cluster_attention(q, k, v, order, depth=2, overlap=2).square().sum().backward()
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        assert tensor.grad is not None and tensor.grad.abs().amin(dim=-1).gt(0).all(), name


def test_gradient_equals_that_of_a_masked_attention() -> None:
    inputs = torch.randn(3, 1, 1, 16, 4, dtype=torch.float64)
    order = cluster_order(inputs[0], depth=2)
    mask = torch.zeros(16, 16, dtype=torch.bool)
    for own, keys in zip(order.view(4, 4), key_lists(order, depth=2, overlap=2).view(4, 6), strict=True):
        mask[own.unsqueeze(1), keys] = True
    grads = []
    for form in (lambda q, k, v: cluster_attention(q, k, v, order, depth=2, overlap=2),
                 lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)):
        leaf = inputs.clone().requires_grad_(True)
        form(*leaf.unbind()).pow(3).sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_impossible_parameters_are_refused() -> None:
    with pytest.raises(ArchError, match="cluster_depth"):
        mixer(grid=(6, 6), depth=3, overlap=0)
    with pytest.raises(ArchError, match="overlap"):
        mixer(depth=2, overlap=17)
    with pytest.raises(ArchError, match="overlap"):
        mixer(depth=0, overlap=1)
    with pytest.raises(ArchError, match="num_heads"):
        mixer(heads=3)
    with pytest.raises(ArchError, match="36 tokens"):
        cluster_order(torch.randn(36, 4), depth=3)
    with pytest.raises(ConfigError, match="soft"):
        cluster_order(torch.randn(8, 4), depth=1, assign="sotf")


class Products(TorchDispatchMode):
    """Adds up the multiply-adds of every matrix product, convolution and attention that runs."""

    macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm"):
            left, right = args[-2:]
            self.macs += left.numel() * right.shape[-1]
        elif name == "convolution":
            self.macs += out.numel() * args[1][0].numel()
        elif name.startswith("_scaled_dot_product"):
            self.macs += args[0].numel() * args[1].shape[-2] * 2
        return out


@pytest.mark.parametrize(("depth", "overlap"), [(0, 0), (2, 4), (3, 0)])
@pytest.mark.parametrize("head_dim", [None, 5])
def test_macs_are_the_sum_over_the_matrix_products(depth: int, overlap: int, head_dim: int | None) -> None:
    module = mixer(24, grid=(4, 10) if depth == 3 else (8, 8), heads=3, depth=depth, overlap=overlap, head_dim=head_dim)
    with torch.no_grad(), Products() as products:
        module(torch.randn(1, *module.resolution, 24))
    assert products.macs == module.macs()


def test_exported_onnx_agrees(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    module, x = mixer(depth=2, overlap=4), torch.randn(2, 8, 8, 16)
    file = tmp_path / "fsla.onnx"
    torch.onnx.export(module, (x,), str(file), dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    expected = module(x).detach()
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_half_precision_queries_are_clustered_as_exactly_as_they_are() -> None:
    q = torch.randn(2, 3, 256, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(cluster_order(q, depth=4), cluster_order(q.float(), depth=4))
