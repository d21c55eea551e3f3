from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from nasvit.arch import Arch, Block, MixerSpec, Stage, Stem
from nasvit.errors import ConfigError, MeasurementError
from nasvit.finals import Subject, Trained
from nasvit.finals import export as exporting
from nasvit.finals.export import export, parse_runtime, run_file
from nasvit.models.build import build
from nasvit.runtimes import FileRuntime
from nasvit.runtimes.predict import PREDICTABLE, predict_script

LABELS = [f"class {n}" for n in range(10)]


def runtime(text: str) -> FileRuntime:
    made = parse_runtime(text)
    if made.missing() is not None:
        pytest.skip(str(made.missing()))
    return made


def arch(*, channels: int = 3, size: int = 32) -> Arch:
    """Every mixer of the search spaces, with a slow-fast segment."""
    def block(*names: MixerSpec, keep: float = 1.0) -> Block:
        return Block(mixers=names, mlp_dim=32, keep_ratio=keep)

    window = MixerSpec.of("window", window_size=4, shift=True, num_heads=2)
    fsla = MixerSpec.of("fsla", cluster_depth=1, overlap=0, num_heads=2)
    slide, catm, integration = MixerSpec.of("slide", kernel_size=3, num_heads=2), MixerSpec.of("catm"), MixerSpec.of("integration")
    return Arch(image_size=(size, size), in_channels=channels, num_classes=10, stem=Stem(kind="conv", stride=4),
                stages=(Stage(embed_dim=16, blocks=(block(slide), block(window, fsla), block(integration, catm))),
                        Stage(embed_dim=16, blocks=(block(MixerSpec.of("global", num_heads=2), keep=0.5),))))


def trained(network: Arch) -> Trained:
    module = build(network, seed=0)
    with torch.no_grad():  # no untrained head: the classes must differ
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    channels = network.in_channels
    about = {"name": "made", "image_size": list(network.image_size), "mean": [0.4, 0.5, 0.6][:channels], "std": [0.2, 0.25, 0.3][:channels],
             "class_names": LABELS}
    return Trained(module=module.eval(), subject=Subject.of_arch(network), metrics={"data": about, "test_accuracy": 0.9})


@pytest.mark.parametrize("name", PREDICTABLE)
def test_an_exported_file_computes_what_torch_computes_and_says_what_it_needs(name: str, tmp_path: Path) -> None:
    done = export(trained(arch()), runtime=runtime(name), folder=tmp_path / "out")
    assert done.parity.relative_error < exporting.TOLERANCE and done.parity.agreement == 1
    assert done.about["labels"] == LABELS and done.about["mean"] == [0.4, 0.5, 0.6] and done.about["image_size"] == [32, 32]
    if done.file.suffix == ".onnx":
        import onnx

        inside = {p.key: p.value for p in onnx.load(str(done.file)).metadata_props}
        assert json.loads(inside["nasvit"]) == done.about and json.loads(inside["labels"]) == LABELS
    else:
        assert json.loads(done.file.with_name(done.file.name + ".json").read_text()) == done.about


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PREDICTABLE)
def test_predict_py_says_of_an_image_file_what_torch_says(name: str, channels: int, tmp_path: Path) -> None:
    one = trained(arch(channels=channels))
    export(one, runtime=runtime(name), folder=tmp_path / "out")
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 255, (50, 40, 3), dtype=np.uint8))
    picture.save(tmp_path / "image.png")
    guarded = ("import sys; sys.modules.update(dict.fromkeys(['nasvit', 'timm', 'torch']));"
               "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')")
    said = subprocess.run([sys.executable, "-c", guarded, str(tmp_path / "out" / "predict.py"), str(tmp_path / "image.png")], cwd=tmp_path,
                          capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    found = [(float(share), label) for share, label in re.findall(r"([\d.]+)%  (.+)", said.stdout)]
    pixels = np.asarray(ImageOps.fit(picture.convert("L" if channels == 1 else "RGB"), (32, 32), method=Image.Resampling.BICUBIC))
    x = torch.from_numpy(pixels.reshape(32, 32, channels).copy()).permute(2, 0, 1)[None] / 255
    about = one.metrics["data"]
    x = (x - torch.tensor(about["mean"]).view(1, -1, 1, 1)) / torch.tensor(about["std"]).view(1, -1, 1, 1)
    with torch.no_grad():
        chances = one.module(x).softmax(dim=1)[0]
    top = chances.topk(5)
    assert [label for _, label in found] == [LABELS[i] for i in top.indices]
    assert [share for share, _ in found] == pytest.approx((100 * top.values).tolist(), abs=0.02)


def test_predict_py_is_short_and_needs_neither_torch_nor_nasvit() -> None:
    for name in PREDICTABLE:
        text = predict_script(name, file=Path("model.x"))
        assert len(text.splitlines()) < 40
        assert max(map(len, text.splitlines())) <= 140
        imports = set(re.findall(r"^(?:import|from) (\w+)", text, re.M))
        assert imports <= {"json", "sys", "pathlib", "numpy", "PIL", name}
        compile(text, name, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("name", exporting.DYNAMIC)
def test_a_dynamic_batch_takes_any_number_of_images(name: str, tmp_path: Path) -> None:
    one, chosen = trained(arch()), runtime(name)
    done = export(one, runtime=chosen, folder=tmp_path, dynamic_batch=True)
    assert done.parity.relative_error < exporting.TOLERANCE and done.about["batch"] == "any"
    batches = [torch.randn(count, 3, 32, 32) for count in (1, 2, 5)]
    with torch.no_grad():
        wanted = [one.module(images).numpy() for images in batches]
    for found, logits in zip(run_file(done.file, runtime=chosen, batches=[b.numpy() for b in batches]), wanted, strict=True):
        assert found.shape == logits.shape and np.abs(found - logits).max() < exporting.TOLERANCE * np.abs(logits).max()


def test_a_file_that_does_not_finish_in_its_runtime_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "RUN_TIMEOUT_S", 0.01)
    with pytest.raises(MeasurementError, match="did not finish"):
        run_file(tmp_path / "model.onnx", runtime=parse_runtime("onnxruntime"), batches=[np.zeros((1, 3, 8, 8), dtype=np.float32)])


def test_a_file_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = exporting.run_file
    monkeypatch.setattr(exporting, "run_file", lambda *a, **k: [out + 1 for out in plain(*a, **k)])
    with pytest.raises(MeasurementError, match="does not compute what torch computes"):
        export(trained(arch()), runtime=runtime("onnxruntime"), folder=tmp_path)


def test_a_broken_file_ends_in_one_message(tmp_path: Path) -> None:
    chosen = runtime("onnxruntime")
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(MeasurementError, match=r"onnxruntime cannot run .*model\.onnx"):
        run_file(tmp_path / "model.onnx", runtime=chosen, batches=[np.zeros((1, 3, 32, 32), dtype=np.float32)])


@pytest.mark.parametrize(("text", "said"), [("eager", "runs torch modules, not files"), ("onnxruntim", "did you mean 'onnxruntime'"),
                                            ("onnxruntime?precision=int3", "must be one of fp32, int8"),
                                            ("onnxruntime?x=1", "unknown setting")])
def test_runtimes_that_cannot_be_meant_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_runtime(text)


def test_metadata_of_a_search_checkpoint_says_so(tmp_path: Path) -> None:
    one = trained(arch())
    short: dict[str, Any] = {**one.metrics, "trained": "a short training of the search"}
    done = export(replace(one, metrics=short), runtime=runtime("onnxruntime"), folder=tmp_path)
    assert done.about["trained"] == "a short training of the search"


def test_predict_py_reads_sixteen_bits_as_the_training_does(tmp_path: Path) -> None:
    from nasvit.data.imagefolder import decode

    path = tmp_path / "deep.png"
    Image.fromarray(np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)).save(path)
    text = predict_script("onnxruntime", file=Path("model.onnx"))
    lines = text[text.index("with Image.open(image)") : text.index("x = (x - ")]
    scope = {"Image": Image, "ImageOps": ImageOps, "np": np, "image": str(path), "height": 32, "width": 32, "about": {"channels": 3}}
    exec(lines, scope)
    assert np.array_equal(np.rint(255 * scope["x"]), decode(path, (32, 32)))
