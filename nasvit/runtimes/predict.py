"""The predict.py that goes with an exported file: it needs numpy and the runtime, and neither torch nor nasvit.

A picture is read by pillow; an image in a .npy file needs nothing more.
"""

from __future__ import annotations

from pathlib import Path

_HEAD = '''"""Classify an image: python predict.py IMAGE [MODEL]. Needs numpy, {package} and, but for .npy, pillow. Written by nasvit."""
import json
import sys
from pathlib import Path
import numpy as np
{imports}

if len(sys.argv) not in (2, 3) or not all(Path(name).is_file() for name in sys.argv[1:]):
    sys.exit("usage: python predict.py IMAGE [MODEL]; two files that are there, IMAGE a .npy of (H, W, C) uint8 or, with pillow, a picture")
image, model = (*sys.argv[1:], str(Path(__file__).with_name("{file}")))[:2]
{open}
height, width = about["image_size"]
try:
    if image.endswith(".npy"):
        x = np.load(image)
        if x.dtype != np.uint8 or x.shape != (height, width, about["channels"]):
            raise ValueError(f"is {{x.dtype}} {{x.shape}}; a .npy must be uint8 of (H, W, C) = {{(height, width, about['channels'])}}")
    else:
        from PIL import Image, ImageOps
        picture = Image.open(image)
        picture.draft("RGB", (2 * max(height, width),) * 2)  # a large JPEG at a fraction of its size, as in the training
        picture = ImageOps.exif_transpose(picture)
        if picture.mode[0] in "IF":  # 16 bits of grey, which Pillow would clip to white
            x = np.asarray(picture).clip(0, 65535)
            if picture.mode == "F" or 0 < x.max() < 4096:  # black in 8 bits
                raise ValueError(f"has pixels of {{picture.mode}}, none over {{x.max()}}; save it in 8 bits")
            picture = Image.fromarray((x >> 8).astype(np.uint8))
        x = ImageOps.fit(picture.convert("L" if about["channels"] == 1 else "RGB"), (width, height), method=Image.Resampling.BICUBIC)
except Exception as error:  # Pillow's decoders raise any
    sys.exit(f"{{image}} cannot be used: {{error}}")
x = np.asarray(x, dtype=np.float32).reshape(height, width, about["channels"]) / 255
x = np.ascontiguousarray(((x - np.float32(about["mean"])) / np.float32(about["std"])).transpose(2, 0, 1)[None])  # (1, C, H, W)
{run}
chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
print(*(f"{{chances[index]:7.2%}}  {{about['labels'][index]}}" for index in np.argsort(-chances)[:5]), sep="\\n")
'''

_SIDECAR = 'about = json.loads(Path(model + ".json").read_text(encoding="utf-8"))'

# runtime: (package, imports, how it is opened, how it runs x)
_PARTS = {
    "onnxruntime": ("onnxruntime", "import onnxruntime as ort",
                    'session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])\n'
                    'about = json.loads(session.get_modelmeta().custom_metadata_map["nasvit"])',
                    "logits = session.run(None, {session.get_inputs()[0].name: x})[0][0]"),
    "openvino": ("openvino", "import openvino as ov",
                 'compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})\n' + _SIDECAR,
                 "logits = compiled(x)[0][0]"),
    "litert": ("ai-edge-litert", "from ai_edge_litert.interpreter import Interpreter",
               "interpreter = Interpreter(model_path=model)\ninterpreter.allocate_tensors()\n" + _SIDECAR,
               'interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)\ninterpreter.invoke()\n'
               'logits = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0]'),
}
PREDICTABLE = tuple(sorted(_PARTS))


def predict_script(runtime: str, *, file: Path) -> str:
    """The text of predict.py for a file of this runtime, one of PREDICTABLE."""
    package, imports, opening, run = _PARTS[runtime]
    return _HEAD.format(package=package, imports=imports, file=file.name, open=opening, run=run)
