"""What a report says of a pruned model: dense against pruned, the recovery curve, and the sibling test. Reads prune.json."""

from __future__ import annotations

from typing import Any

from nasvit.report.figures import number, percent, shown
from nasvit.report.prune_file import facts_of, is_pruning
from nasvit.report.tables import Run

RECOVERY_WORDS = ("Recovery: accuracy of the chosen plan after so many steps of fine-tuning with the dense model as teacher, on the images "
                  "by which the plans were judged.")


def pruned_section(run: Run) -> dict[str, Any] | None:
    """Rows and words of the section, None for a run that pruned nothing. Raises RunError for a damaged prune.json."""
    if not is_pruning(run):
        return None
    with facts_of(run) as facts:
        dense = {"what": f"dense {facts['model']}", **_figures(facts["dense"], dense=facts["dense"])}
        rows, curve, words, tiles = [dense], [], "", []
        if "pruned" in facts:
            rows += [{"what": "pruned", **_figures(facts["pruned"], dense=facts["dense"])},
                     *(_sibling(row, dense=facts["dense"]) for row in facts["siblings"])]
            curve = [{"steps": point["steps"], "share": percent(point.get("share_of_dense")),
                      "accuracy": percent(point["accuracy"], digits=2)} for point in facts["recovery"]]
            words, tiles = _words(facts), _tiles(facts)
        return {"tiles": tiles, "rows": rows, "curve": curve, "words": words, "training": _begun(facts.get("dense_training", "")),
                "verdict": _begun(facts.get("verdict", {}).get("text", "")), "dominated": facts.get("verdict", {}).get("dominated"),
                "curve_words": RECOVERY_WORDS, "checks": _checks(facts)}


def _begun(text: str) -> str:
    """The text as a sentence begins, its percentages as the report writes them; a name within it stays as it is written."""
    return (text[:1].upper() + text[1:]).replace("%", " %")


def _tiles(facts: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(label, figure, small print) of the top line: the result, before the front that it was chosen from."""
    dense, pruned, target = facts["dense"], facts["pruned"], facts["target_ms"]
    was, now = dense["latency"]["median_ms"], pruned["latency"]["median_ms"]
    left = "no target was set" if target is None else f"{percent(pruned['of_target'], digits=0)} of the target, {number(target, unit='ms')}"
    tested = pruned.get("test_accuracy")
    test = "no test images" if tested is None else f"{percent(tested, digits=2)} on the test images"
    return [("pruned model, validation", percent(pruned["accuracy"], digits=2), test),
            ("pruned model, latency", number(now, unit="ms"), left),
            ("dense model", percent(dense["accuracy"], digits=2), f"at {number(was, unit='ms')}"),
            ("faster than the dense model" if was >= now else "of the dense model's speed", f"{was / now:.2f}x",
             f"MACs {shown('macs_g', dense['macs_g'])} to {_counted('macs_g', pruned, dense=dense)}")]


def _figures(facts: dict[str, Any], *, dense: dict[str, Any]) -> dict[str, str]:
    latency = facts["latency"]
    return {"accuracy": percent(facts["accuracy"], digits=2), "latency": number(latency["median_ms"], unit="ms"),
            "interval": _interval(latency), "macs": _counted("macs_g", facts, dense=dense),
            "params": _counted("params_m", facts, dense=dense)}


def _counted(name: str, facts: dict[str, Any], *, dense: dict[str, Any]) -> str:
    """In the unit that the dense model's has, or a column would have two."""
    return number(None) if facts.get(name) is None else shown(name, facts[name], beside=dense[name])


def _sibling(row: dict[str, Any], *, dense: dict[str, Any]) -> dict[str, str]:
    interval = f"not measured: {row['why']}" if "why" in row else _interval(row)
    return {"what": row["name"], "accuracy": percent(row["accuracy"], digits=2), "latency": number(row["latency_ms"], unit="ms"),
            "interval": interval, "macs": _counted("macs_g", row, dense=dense), "params": _counted("params_m", row, dense=dense)}


def _interval(latency: dict[str, float]) -> str:
    return f"{number(latency['ci_low_ms'])} to {number(latency['ci_high_ms'])} ms"


def _words(facts: dict[str, Any]) -> str:
    dense, pruned, target = facts["dense"], facts["pruned"], facts["target_ms"]
    share = "" if target is None else f", {percent(pruned['of_target'], digits=0)} of the target of {number(target, unit='ms')}"
    loss = 100 * (pruned["accuracy"] - dense["accuracy"])
    tested = "" if pruned.get("test_accuracy") is None else (f" On the {number(pruned['test_images'])} test images, at which nothing else "
                                                              f"looked, it has {percent(pruned['test_accuracy'], digits=2)}.")
    other = precision_words(facts)
    return (f"Remeasured at the end, the pruned model is {speed_words(facts)}{share}, at {loss:+.1f} points of accuracy.{tested}"
            + (f" {other}." if other else ""))


def speed_words(facts: dict[str, Any]) -> str:
    """`1.67x faster than the dense model`, or in as many words that it is slower, from what prune.json holds."""
    ratio = facts["dense"]["latency"]["median_ms"] / facts["pruned"]["latency"]["median_ms"]
    if f"{ratio:.2f}" == "1.00":
        return "as fast as the dense model"
    return f"{ratio:.2f}x faster than the dense model" if ratio > 1 else f"{1 / ratio:.2f}x slower than the dense model"


def precision_words(facts: dict[str, Any]) -> str:
    """What the form that was measured scores where it is not float32, without a full stop; empty where it is."""
    export = facts.get("written", {}).get("export", {})
    found = export.get("accuracy")
    if found is None:
        return ""
    return (f"In {export['runtime']} with {export['settings']['precision']}, the form whose latency was measured, it has "
            f"{percent(found['runtime'], digits=2)} on the {number(found['images'])} validation images, and "
            f"{percent(found['eager'], digits=2)} in fp32; {percent(found['same'])} of them fall into the same class")


def _checks(facts: dict[str, Any]) -> str:
    """What the run has proved of the network that it wrote."""
    text, written = f"Keeping everything gives the dense model to {facts['identity']:.1e}.", facts.get("written", {})
    if "fused_dense" not in written:
        return text
    return (f"{text} Fused and written-out attention of the pruned model agree to {written['fused']:.1e}, the dense model's to "
            f"{written['fused_dense']:.1e}.")
