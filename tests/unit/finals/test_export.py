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
from nasvit.runtimes import FileRuntime, base
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
    said = predict(tmp_path / "out", tmp_path / "image.png", without=("nasvit", "timm", "torch"))
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
        assert imports <= {"json", "sys", "pathlib", "numpy", "ai_edge_litert" if name == "litert" else name}
        compile(text, name, "exec")


def predict(folder: Path, *words: str | Path,
            without: tuple[str, ...] = ("nasvit", "PIL", "timm", "torch")) -> subprocess.CompletedProcess[str]:
    """predict.py of the folder, run where some packages are absent."""
    guarded = (f"import sys; sys.modules.update(dict.fromkeys({without!r})); import runpy; sys.argv = sys.argv[1:];"
               "runpy.run_path(sys.argv[0], run_name='__main__')")
    return subprocess.run([sys.executable, "-c", guarded, str(folder / "predict.py"), *map(str, words)], cwd=folder.parent,
                          capture_output=True, text=True, check=False)


def test_predict_py_takes_a_npy_image_with_numpy_and_the_runtime_alone_and_says_what_it_cannot_take(tmp_path: Path) -> None:
    one, folder = trained(arch()), tmp_path / "out"
    export(one, runtime=runtime("onnxruntime"), folder=folder)
    pixels = np.random.default_rng(3).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "image.npy", pixels)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    plain, picture = predict(folder, tmp_path / "image.npy"), predict(folder, tmp_path / "image.png", without=("torch",))
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout == picture.stdout and plain.stdout.count("class ") == 5
    np.save(tmp_path / "small.npy", pixels[:8])
    for words, says in (((), "usage: "), (("absent.png",), "usage: "), (("image.npy", "absent.onnx"), "usage: "),
                        (("small.npy",), r"uint8 \(8, 32, 3\); a .npy must be uint8 of \(H, W, C\) = \(32, 32, 3\)")):
        said = predict(folder, *words)
        assert said.returncode == 1 and re.search(says, said.stderr) and "Traceback" not in said.stderr and said.stderr.count("\n") == 1


def test_predict_py_of_litert_speaks_its_interpreter(tmp_path: Path) -> None:
    """The interpreter is played here: it answers with the means of the channels."""
    (tmp_path / "ai_edge_litert").mkdir()
    (tmp_path / "ai_edge_litert" / "interpreter.py").write_text(
        "import pathlib\nclass Interpreter:\n"
        "    def __init__(self, model_path): assert pathlib.Path(model_path).name == 'model.tflite'\n"
        "    def allocate_tensors(self): self.held = {}\n"
        "    def get_input_details(self): return [{'index': 4}]\n"
        "    def get_output_details(self): return [{'index': 7}]\n"
        "    def set_tensor(self, index, value): self.held[index] = value\n"
        "    def invoke(self): self.held[7] = self.held[4].mean(axis=(2, 3))\n"
        "    def get_tensor(self, index): return self.held[index]\n")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "predict.py").write_text(predict_script("litert", file=Path("model.tflite")))
    (folder / "model.tflite.json").write_text(json.dumps({"image_size": [2, 2], "channels": 3, "mean": [0, 0, 0], "std": [1, 1, 1],
                                                          "labels": ["red", "green", "blue"]}))
    np.save(tmp_path / "image.npy", np.full((2, 2, 3), (0, 255, 0), dtype=np.uint8))
    said = predict(folder, tmp_path / "image.npy")
    assert said.stdout.split() == ["57.61%", "green", "21.19%", "red", "21.19%", "blue"], said.stderr


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
    monkeypatch.setattr(base, "RUN_TIMEOUT_S", 0.01)
    with pytest.raises(MeasurementError, match="timed out"):
        run_file(tmp_path / "model.onnx", runtime=parse_runtime("onnxruntime"), batches=[np.zeros((1, 3, 8, 8), dtype=np.float32)])


def test_a_file_is_run_by_the_python_that_has_its_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "python"
    other.write_text(f"#!/bin/sh\necho asked >> {tmp_path / 'log'}\nexec {sys.executable} \"$@\"\n")
    other.chmod(0o755)
    chosen = runtime("onnxruntime")
    monkeypatch.setattr(type(chosen), "interpreter", str(other))
    export(trained(arch()), runtime=chosen, folder=tmp_path / "made")
    assert (tmp_path / "log").read_text() == "asked\n"


def test_a_file_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = exporting.run_file
    monkeypatch.setattr(exporting, "run_file", lambda *a, **k: [out + 1 for out in plain(*a, **k)])
    (tmp_path / "model.onnx").write_bytes(b"of an earlier export")
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(MeasurementError, match="does not compute what torch computes"):
            export(trained(arch()), runtime=runtime("onnxruntime"), folder=folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"], "what is wrong is not kept"
    assert (tmp_path / "model.onnx").read_bytes() == b"of an earlier export"


def test_a_dynamic_batch_that_cannot_be_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes a fixed batch here"):
        export(trained(arch()), runtime=parse_runtime("onnxruntime?precision=int8"), folder=tmp_path / "new", dynamic_batch=True)
    assert not (tmp_path / "new").exists()


def test_a_broken_file_ends_in_one_message(tmp_path: Path) -> None:
    chosen = runtime("onnxruntime")
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(MeasurementError, match=r"onnxruntime on model\.onnx: the process ended with 1"):
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


@pytest.mark.parametrize("turned", [1, 6])
def test_predict_py_reads_sixteen_bits_as_the_training_does(turned: int, tmp_path: Path) -> None:
    from nasvit.data.imagefolder import decode

    path, exif = tmp_path / "deep.png", Image.Exif()
    exif[0x0112] = turned  # orientation: as it is, or lying on its side
    Image.fromarray(np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)).save(path, exif=exif)
    assert np.array_equal(np.rint(255 * read(path)), decode(path, (32, 32)))


@pytest.mark.parametrize("turned", [1, 6])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_predict_py_reads_a_large_photograph_as_the_training_does(mode: str, turned: int, tmp_path: Path) -> None:
    """The training decodes a large JPEG at a fraction of its size: read whole, pixels of this one differ by 15 levels and more."""
    from nasvit.data.imagefolder import decode

    path, exif = tmp_path / "large.jpg", Image.Exif()
    exif[0x0112] = turned
    coarse = np.random.default_rng(0).integers(0, 255, (150, 200, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((800, 600), Image.Resampling.BICUBIC).convert(mode).save(path, quality=90, exif=exif)
    assert np.array_equal(np.rint(255 * read(path)), decode(path, (32, 32)))


def read(path: Path) -> Any:
    """The pixels (H, W, C), 0 to 1, that predict.py makes of an image file."""
    text = predict_script("onnxruntime", file=Path("model.onnx"))
    scope = {"np": np, "sys": sys, "image": str(path), "about": {"channels": 3, "image_size": (32, 32)}}
    exec(text[text.index("height, width =") : text.index("x = np.asc")], scope)
    return scope["x"]


@pytest.mark.parametrize(("name", "says"), [
    ("text.jpg", "cannot identify"), ("torn.png", "truncated"), ("text.npy", "pickle"), ("dark.png", "save it in 8 bits"),
    ("float.tif", "save it in 8 bits")])
def test_predict_py_says_in_one_message_what_the_training_would_have_left_out(name: str, says: str, tmp_path: Path) -> None:
    """A black picture of 12 bits got a class; a torn one a traceback."""
    grey = np.random.default_rng(0).integers(1, 255, (32, 32))
    for file, dtype in (("torn.png", np.uint8), ("dark.png", np.uint16), ("float.tif", np.float32)):
        Image.fromarray(grey.astype(dtype)).save(tmp_path / file)
    (tmp_path / "torn.png").write_bytes((tmp_path / "torn.png").read_bytes()[:500])
    for file in ("text.jpg", "text.npy"):
        (tmp_path / file).write_text("hello")
    with pytest.raises(SystemExit, match=rf"{re.escape(name)} cannot be used: .*{says}"):
        read(tmp_path / name)
