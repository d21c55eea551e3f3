"""Peak memory of networks small enough to add up by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nasvit.devices import open_device
from nasvit.devices.memory import peak_bytes


class TwoLayers(nn.Module):
    """linear(100 -> 1000), linear(1000 -> 10), each activation dropped as soon as it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(100, 1000, bias=False), nn.Linear(1000, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).view(-1, 1000))


def test_two_layers_need_parameters_input_hidden_and_output() -> None:
    parameters, image, hidden, output = 100_000 + 10_000, 8 * 100, 8 * 1000, 8 * 10
    module = TwoLayers().eval()
    assert peak_bytes(module, torch.zeros(8, 100)) == 4 * (parameters + image + hidden + output)
    assert open_device("cpu").peak_memory_mb(module, input_shape=(8, 100)) == 4 * (parameters + image + hidden + output) / 1e6


def test_an_activation_that_is_no_longer_needed_is_not_in_the_peak() -> None:
    chain = nn.Sequential(*(nn.ReLU() for _ in range(10)))
    assert peak_bytes(chain, torch.zeros(1, 1000)) == 4 * 1000 * 3  # the caller's image, one input, one output


def test_shared_parameters_and_views_count_once() -> None:
    module = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Flatten(), nn.Linear(10, 10, bias=False))
    module[2].weight = module[0].weight
    assert peak_bytes(module, torch.zeros(1, 10)) == 4 * (100 + 10 + 10 + 10)


def test_the_figure_is_the_same_every_time() -> None:
    module = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    assert len({peak_bytes(module, torch.zeros(1, 12, 16)) for _ in range(3)}) == 1


@pytest.mark.parametrize("files", [{"memory.max": "8000000000", "memory.current": "7980000000",
                                    "memory.stat": "anon 1\ninactive_file 5000000000"},
                                   {"memory/memory.limit_in_bytes": "8000000000", "memory/memory.usage_in_bytes": "7980000000",
                                    "memory/memory.stat": "total_inactive_file 5000000000"}])
def test_files_in_a_containers_cache_are_no_used_memory(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from nasvit.devices import machine

    monkeypatch.setattr(machine, "read", lambda path: files.get(path.removeprefix("/sys/fs/cgroup/")))
    assert machine.available_mb() == pytest.approx(5020.0)
