from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nasvit.errors import ConfigError
from nasvit.runtimes import FileRuntime, make_runtime
from nasvit.runtimes.accuracy import quantised_accuracy
from nasvit.runtimes.parity import difference, outputs_of
from tests.unit.runtimes.fakes import Faulty


class Echo(nn.Module):
    """The class of an image is the place of its largest pixel."""

    def forward(self, image: Tensor) -> Tensor:
        return image.flatten(1)


def test_accuracy_of_both_sides_and_the_share_of_equal_classes() -> None:
    images = torch.eye(4).view(4, 1, 2, 2)
    labels = torch.tensor([0, 1, 2, 0])  # eager is right on the first three
    calls = iter(range(4))

    def last_class_first(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (outputs[0].roll(1, dims=1),) if next(calls) in (2, 3) else outputs

    found = quantised_accuracy(Echo(), runtime=Faulty(change=last_class_first), images=images, labels=labels)
    assert (found.eager, found.runtime, found.same, found.images) == (0.75, 0.75, 0.5, 4)


def test_images_without_labels_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 images and 1 labels"):
        quantised_accuracy(Echo(), runtime=Faulty(), images=torch.zeros(2, 1, 2, 2), labels=torch.zeros(1))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_int8_is_close_to_float32_but_not_the_same_and_its_file_is_smaller(name: str, tmp_path: Path,
                                                                           capfd: pytest.CaptureFixture[str]) -> None:
    plain, small = make_runtime(name), make_runtime(name, precision="int8")
    for runtime in (plain, small):
        if runtime.missing() is not None:
            pytest.skip(str(runtime.missing()))
        assert isinstance(runtime, FileRuntime)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 256), nn.GELU(), nn.Linear(256, 64)).eval()
    image = torch.randn(1, 3, 8, 8)
    with torch.inference_mode():
        truth = module(image).numpy()
    errors = [difference(outputs_of(module, runtime=runtime, images=[image], threads=1)[0][0], truth) for runtime in (plain, small)]
    assert errors[0] <= 1e-5 < errors[1] <= 0.1
    sizes = []
    for runtime in (plain, small):
        path = runtime.export(module, image, tmp_path / runtime.setting("precision") / "model")
        sizes.append(sum(file.stat().st_size for file in path.parent.iterdir()))
    assert sizes[1] < 0.5 * sizes[0]
    assert not capfd.readouterr().out  # which belongs to the commands: --json prints one object


def test_int8_weights_leave_room_for_processors_that_add_in_16_bits(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = make_runtime("onnxruntime", precision="int8")
    if runtime.missing() is not None:
        pytest.skip(str(runtime.missing()))
    assert isinstance(runtime, FileRuntime)
    path = runtime.export(nn.Sequential(nn.Flatten(), nn.Linear(192, 64)).eval(), torch.randn(1, 3, 8, 8), tmp_path / "model")
    weights = [onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.INT8]
    largest = max(int(abs(w.astype(int)).max()) for w in weights if w.size > 64)
    assert 2 * 255 * largest < 2**15 and largest >= 60
