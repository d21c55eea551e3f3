from __future__ import annotations

import pytest

from nasvit.commands.space_probe import probe
from nasvit.errors import ConfigError
from nasvit.models.space_check import check_space
from nasvit.space import SearchSpace, shipped

TEXT = """\
name: small
image_size: {min: 16, max: 16, default: 16}
stem: {kind: conv, stride: 2}
stages:
  - embed_dim: 8
    depth: 1
    mixers: {choice: [catm, window]}
    mlp_ratio: 1.0
mixers:
  window: {window_size: 4, shift: false, head_dim: 8}
"""


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_spaces_fit_the_mixers(name: str) -> None:
    check_space(SearchSpace.load(name))


@pytest.mark.parametrize(("old", "new", "line", "says"), [
    ("catm, window]", "catm, window, swirl]", 7, "unknown mixer 'swirl'"),
    ("window_size: 4, ", "window_size: 4, kernel_size: 3, ", 10, "unknown parameter 'kernel_size'"),
    ("mixers:\n  window", "mixers:\n  catm: {head_dim: 8}\n  window", 10, "unknown parameter 'head_dim'"),
    ("mixers:\n  window", "mixers:\n  catm: {qkv_bias: {choice: ['yes', 'no']}}\n  window", 10, "qkv_bias 'yes' is not possible"),
    ("[catm, window]}\n    mlp_ratio: 1.0", "[catm, window, global]}\n    mlp_ratio: 1.0\n    global: {num_heads: 1, score_share: 1}", 9,
     "score_share 1 is not possible; accepted: a float"),
    ("[catm, window]}\n    mlp_ratio: 1.0", "[catm, window, fsla]}\n    mlp_ratio: 1.0\n"
     "    fsla: {num_heads: 2, cluster_depth: 1, overlap: 0, qk_scale: {choice: [0.5, 1.0]}}", 9,
     "(embed_dim 8): mixer fsla: qk_scale 0.5 is not possible"),
    (", head_dim: 8", "", 7, "needs num_heads (accepted: head_dim, num_heads, shift, window_size)"),
])
def test_what_the_mixers_do_not_accept_is_named_with_file_and_line(old: str, new: str, line: int, says: str) -> None:
    assert old in TEXT
    space = SearchSpace.from_yaml(TEXT.replace(old, new), name="s.yaml")
    with pytest.raises(ConfigError) as error:
        check_space(space)
    assert str(error.value).startswith(f"s.yaml:{line}: ") and says in str(error.value)


def test_a_probe_counts_and_runs_every_sample_and_tells_a_failure() -> None:
    found = list(probe(SearchSpace.from_yaml(TEXT), samples=3, seed=0))
    assert all(p.error is None and p.macs > 0 and p.params > 0 for p in found) and len(found) == 3
    text = TEXT.replace("window_size: 4, ", "window_size: 4, kernel_size: 3, ").replace("[catm, window]", "[window]")
    broken = SearchSpace.from_yaml(text)
    assert all("kernel_size" in str(p.error) for p in probe(broken, samples=2, seed=0))
