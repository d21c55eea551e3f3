"""Charts inside a page that makes no request: specifications as data that no browser executes, and the two scripts that draw them, named
by their hash in the page's policy."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from typing import Any

import altair as alt
import vl_convert
from markupsafe import Markup

VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_START = """
const specs = JSON.parse(document.getElementById("specs").textContent);
const drawn = new Set();
function draw(name) {
  if (drawn.has(name)) return;
  drawn.add(name);
  const narrow = window.matchMedia("(max-width: 640px)").matches;
  if (narrow) Object.assign(specs[name].config.legend, {orient: "bottom", columns: 3});
  vegaEmbed("#" + name, specs[name], {ast: true, renderer: "svg", downloadFileName: name,
    actions: {export: true, source: false, compiled: false, editor: false}}).catch(error => {
      document.getElementById(name).textContent = "This chart could not be drawn: " + error.message; });
}
for (const button of document.querySelectorAll("button[data-chart]")) button.addEventListener("click", () => {
  for (const other of document.querySelectorAll("button[data-chart]")) {
    other.setAttribute("aria-pressed", String(other === button));
    document.getElementById(other.dataset.chart).hidden = other !== button;
  }
  draw(button.dataset.chart);
});
for (const name of Object.keys(specs)) if (!document.getElementById(name).hidden) draw(name);
"""


def page_scripts(specs: dict[str, Any]) -> dict[str, Markup]:
    """What a template needs for charts by the id of their place: specs, library, start, and script_hashes for the policy."""
    library, start = (_script(text) for text in (_bundle(), _START))
    return {"specs": _data_block(specs), "library": Markup(library), "start": Markup(start),
            "script_hashes": Markup(" ".join(_hash(s) for s in (library, start)))}


def svg_of(spec: dict[str, Any]) -> str:
    """A chart as one SVG element."""
    return str(vl_convert.vegalite_to_svg(_legible(spec), vl_version=VEGA_LITE))


def png_of(spec: dict[str, Any]) -> bytes:
    """A chart as a picture of twice its size."""
    return bytes(vl_convert.vegalite_to_png(_legible(spec), vl_version=VEGA_LITE, scale=2))


def _legible(value: Any) -> Any:
    """The value with every sign replaced that no XML text may hold: a zero byte ends the process of vl-convert 1.9."""
    if isinstance(value, str):
        return _NOT_XML.sub("\ufffd", value)
    if isinstance(value, dict):
        return {key: _legible(one) for key, one in value.items()}
    return [_legible(one) for one in value] if isinstance(value, list | tuple) else value


def _data_block(value: Any) -> Markup:
    """JSON for a `<script type="application/json">`: no character in it can end the block."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE))


def _script(text: str) -> str:
    """A script as it may stand inline: its text cannot close its element, and line ends are those the browser hashes."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
