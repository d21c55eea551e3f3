"""What a report says in words and tables: plain values for the HTML template and for Markdown. Nothing here is escaped."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from nasvit.arch import Block
from nasvit.drawing import draw, mixer_colour
from nasvit.report.figures import ABSENT, SCALES, duration, number, percent, shown
from nasvit.report.plots import below_picture, headline
from nasvit.report.precision import columns as precision_columns
from nasvit.report.precision import precision_notes
from nasvit.report.prune_file import TEST_NOTE, is_pruning, mark, recovery_note, reference_points
from nasvit.report.shorthand import TIMES, mixer_rank, mixer_text
from nasvit.report.tables import Run, foreign, part
from nasvit.report.truth import Truth, truth_of, verdict
from nasvit.report.verified import Verified, verify
from nasvit.results.objectives import objective
from nasvit.results.record import TrialRecord, latest

Page = dict[str, Any]
_UNFINISHED = ("still", "interrupted")
FULL_NOTE = "train the pick in full and score it once on the test split"


def page(run: Run) -> Page:
    """Everything that the template shows, except the charts."""
    title, subtitle = headline(run)
    counts = run.trials["status"].value_counts()
    stopped = str(run.summary.get("stopped_because", "still"))
    cost, quality = (objective(name).label.partition(" (")[0] for name in run.axes)
    verified, truth = verify(run), truth_of(run)
    return {"title": title, "subtitle": subtitle, "name": run.path.resolve().name, "finished": not stopped.startswith(_UNFINISHED),
            "empty": not len(run.front), "tiles": _tiles(run), "front": front_rows(run), "choices": _choice_rows(run),
            "stages": _stage_count(run), "mixers": _mixers(run), "baselines": baseline_rows(run), "reasons": reason_rows(run),
            "truth": truth_rows(truth), "truth_words": verdict(run, truth), "truth_poor": truth is not None and bool(truth.poor),
            "truth_lead": truth_lead(truth), "verified": verified_rows(verified), "verified_words": verified_words(verified),
            "pruning": is_pruning(run), "notes": notes(run),
            "made": made_rows(run), "rivalry": _rivalry(run), "cost": cost, "quality": quality,
            "counts": {s: int(counts.get(s, 0)) for s in ("complete", "rejected", "failed")},
            "precise": list(precision_columns(run.env).values()),
            "keeps": bool((run.front["keep_ratio"] < 1).any()), "below": below_picture(run)}


def front_rows(run: Run) -> list[dict[str, Any]]:
    """The front as text, cheapest first, each with its drawing; counts in the unit of the column's largest, those of a pruning's dense
    model included."""
    rows, by_trial, marked = [], latest(run.records), mark(run)
    counts = pd.concat([run.front, reference_points(run)])
    largest = {name: float(counts[name].max()) for name in SCALES}
    for row in run.front.to_dict("records"):
        half = (row["ci_high_ms"] - row["ci_low_ms"]) / 2
        rows.append({
            "mark": marked.word if row["trial"] == marked.trial else "", "trial": row["trial"], "rung": row["rung"],
            "accuracy": percent(row["accuracy"]), "latency": number(row["latency_ms"], unit="ms"),
            "precise": [percent(row[name]) for name in precision_columns(run.env)],
            "interval": f"± {number(half, digits=2)}" if math.isfinite(half) else "",
            "noisy": _text(row["verdict"]) in ("noisy", "drifting"), "verdict": _text(row["verdict"]),
            "macs": shown("macs_g", row["macs_g"], beside=largest["macs_g"]),
            "params": shown("params_m", row["params_m"], beside=largest["params_m"]),
            "arch": _text(row["mixers"]), "widths": _text(row["widths"]), "arch_id": _text(row["arch_id"]),
            "colour": mixer_colour(_text(row["main_mixer"])), "drawing": "" if not by_trial[row["trial"]].has_arch
            else Markup(draw(by_trial[row["trial"]].network()))})  # it escapes its own text
    return rows


def baseline_rows(run: Run) -> list[dict[str, Any]]:
    """Each named network, and what the front offers instead."""
    rows = []
    for row in run.baselines.to_dict("records"):
        gain, ratio = row["front_accuracy"] - row["accuracy"], row["latency_ms"] / row["front_latency_ms"]
        same = not foreign(run, _text(row["fingerprint"]))
        better = f"{percent(row['front_accuracy'])} ({100 * gain:+.1f} points)"
        faster = f"{number(row['front_latency_ms'], unit='ms')} ({number(ratio, digits=2)}{TIMES} as fast)"
        rows.append({
            "label": _text(row["label"]) or _text(row["arch_id"]), "status": row["status"], "reason": _text(row["reason"]),
            "accuracy": percent(row["accuracy"]), "params": shown("params_m", row["params_m"]),
            "latency": number(row["latency_ms"], unit="ms") if same else "other device",
            "gain": better if same and math.isfinite(gain) else ABSENT, "speed": faster if same and math.isfinite(ratio) else ABSENT})
    return rows


def truth_rows(truth: Truth | None) -> list[dict[str, Any]]:
    """Each proxy's Kendall's tau with the longer training."""
    rows = []
    for each in truth.rankings if truth is not None else ():
        tau = each.tau
        rows.append({"name": each.name, "poor": each.poor, "networks": ABSENT if tau is None else number(tau.n),
                     "tau": ABSENT if tau is None else f"{tau.value:+.2f}",
                     "interval": ABSENT if tau is None else f"{tau.low:+.2f} to {tau.high:+.2f}"})
    return rows


def truth_lead(truth: Truth | None) -> str:
    """What was done to know it."""
    if truth is None:
        return ""
    return (f"{truth.networks} networks from the front and from behind it were trained anew for {truth.steps} steps in one cycle. "
            "Kendall's tau says how far a ranking agrees with theirs: 1 in every pair, 0 as by chance, -1 in none; with 90 % bootstrap "
            "intervals. Costs and zero-cost proxies may point either way.")


def verified_rows(verified: Verified) -> list[dict[str, Any]]:
    """What the search promised of each fully trained network, and what became of it."""
    rows = []
    for row in verified.table.to_dict("records"):
        change = row["latency_ms"] / row["search_latency_ms"] - 1
        drift = f"{100 * change:+.1f} %" if row["same_device"] and math.isfinite(change) else ABSENT
        mark = "fell off the front" if row["fell_off"] else "on the front" if row["on_search_front"] else str(row["origin"])
        rows.append({"label": str(row["label"]), "mark": mark, "fell_off": bool(row["fell_off"]), "proxy": percent(row["proxy_accuracy"]),
                     "test": percent(row["test_accuracy"]), "val": percent(row["val_accuracy"]),
                     "searched": number(row["search_latency_ms"], unit="ms"), "epochs": number(row["epochs"]),
                     "now": number(row["latency_ms"], unit="ms") if row["same_device"] or not math.isfinite(row["latency_ms"])
                     else "other device", "drift": drift, "predicted": _predicted(row),
                     "inside": "yes" if row["inside"] else "no" if row["promised"] else ABSENT})
    return rows


def _predicted(row: Mapping[Any, Any]) -> str:
    """`3.10 ms (2.80 to 3.40)`."""
    if not math.isfinite(row["predicted_ms"]):
        return ABSENT
    return f"{number(row['predicted_ms'], unit='ms')} ({number(row['predicted_low_ms'])} to {number(row['predicted_high_ms'])})"


def verified_words(verified: Verified) -> str:
    """One sentence on how far the search's ranking held."""
    table, tau = verified.table, verified.tau
    if not len(table):
        return ""
    tested = int((table["test_images"] > 0).sum())
    lead = f"{len(table)} network{'s were' if len(table) > 1 else ' was'} trained in full"
    if tested == len(table):
        lead += " and scored once on the test split."
    else:
        lead += (f", {tested or 'none'} of them scored on a test split: the data of the others had none, so that their final accuracy is "
                 "that on the validation images by which they were chosen.")
    if tau is None:
        held = (" Too few of those that the search trained equally long differ to say how far the short training ranks as the full one "
                "does (Kendall's tau needs four).")
    else:
        held = (f" Between the search's accuracy and the final one Kendall's tau is {tau.value:.2f} (90 % interval {tau.low:.2f} to "
                f"{tau.high:.2f}, {tau.n} networks, each beside those that the search trained as long).")
    fallen = int(table["fell_off"].sum())
    return lead + held + (f" {fallen} of the front fell off it: another is better in both accuracy and latency." if fallen else "")


def reason_rows(run: Run) -> list[dict[str, Any]]:
    """Why trials were rejected or failed; reasons that differ in their numbers only are counted together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for status, reason in run.trials.loc[run.trials["status"] != "complete", ["status", "reason"]].itertuples(index=False):
        text = _text(reason) or "no reason recorded"
        groups.setdefault((str(status), re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", text)), []).append(text)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] != "failed", -len(item[1])))
    return [{"status": status, "count": len(texts), "example": texts[0][:300]} for (status, _), texts in ordered[:20]]


def made_rows(run: Run) -> list[tuple[str, str]]:
    """How the run was made: name and value, where they are known."""
    env, made = run.env, {**run.experiment, **run.summary}
    data, space, host, device = (part(env, name) for name in ("data", "space", "host", "device"))
    kinds = (("train", "train"), ("val", "validation images"), ("classes", "classes"))
    counted = [f"{number(data[k])} {what}" for k, what in kinds if k in data]
    rungs, limits = made.get("rungs") or (), made.get("limits") or {}
    size = space.get("size")
    lines = [
        ("data", _joined(data.get("name") or made.get("data"), *counted, _size(data.get("image_size")))),
        ("search space", _joined(space.get("name") or made.get("space"), _networks(size))),
        ("device", _joined(made.get("device"), device.get("runtime"), device.get("gpu") or device.get("cpu") or host.get("cpu"),
                           _of(device, "threads", "thread(s)"))),
        ("device fingerprint", run.fingerprint),
        ("objectives", _joined(*(f"{n} ({objective(n).direction})" for n in run.objectives))),
        ("limits", _joined(*(f"{k} ≤ {float(f'{v:.4g}') if isinstance(v, float) else v}" for k, v in limits.items()))
         if isinstance(limits, Mapping) else ""),
        ("sampler, engine", _joined(made.get("sampler"), made.get("engine"), _of(made, "workers", "worker(s)"))),
        ("rungs", _joined(*(f"{i}: {steps} steps" for i, steps in enumerate(rungs, start=1))) if isinstance(rungs, (list, tuple)) else ""),
        ("a first network, for the rungs", _joined(*(f"{percent(value)} after {steps} steps" for steps, value in
                                                     part(part(env, "pilot"), "accuracy").items() if isinstance(value, (int, float))))),
        ("budget", _joined(made.get("budget"), f"stopped because: {made['stopped_because']}" if "stopped_because" in made else "")),
        ("zero-cost scores", _scores_text(part(run.summary, "scores"))),
        ("proxy truth", _truth_text(part(run.summary, "truth"))),
        ("seed", _joined(made.get("seed"))),
        ("wall time", _joined(_time(made, "wall_seconds"), _of(made, "sessions", "session(s)"))),
        ("training, measuring, waiting for a measurement",
         _joined(*(_time(made, key) for key in ("train_seconds", "measure_seconds", "wait_seconds")))),
        ("what a rejection cost", _rejection_text(run.records)),
        ("share outside all three", percent(made["overhead_share"]) if isinstance(made.get("overhead_share"), (int, float)) else ""),
        ("host", _joined(host.get("system"), _of(host, "cores", "cores"), _of(host, "memory_gb", "GB"))),
        ("left out of the space", _joined(*(f"{k}: {v}" for k, v in part(env, "excluded").items()))),
        ("drifted since the start", _joined(*env["drift"]) if isinstance(env.get("drift"), list) else ""),
        ("versions", _joined(*(f"{k} {env[k]}" for k in ("nasvit", "python", "torch", "optuna", "timm") if k in env)))]
    return [(name, value) for name, value in lines if value]


def _rejection_text(records: Sequence[TrialRecord]) -> str:
    """Seconds of a network that was over a limit, beside those of one that was trained to the highest rung so far; empty without either."""
    spent: dict[int, float] = {}
    for record in records:
        spent[record.trial] = spent.get(record.trial, 0.0) + record.seconds.get("train", 0.0) + record.seconds.get("measure", 0.0)
    last = latest(records).values()
    top = max((r.rung for r in last if r.status == "complete"), default=0)
    rejected = [spent[r.trial] for r in last if r.status == "rejected"]
    whole = [spent[r.trial] for r in last if r.status == "complete" and r.rung == top]
    if not rejected or sum(whole) <= 0:
        return ""
    each, full = sum(rejected) / len(rejected), sum(whole) / len(whole)
    return f"{duration(each)} on average of {len(rejected)}, {percent(each / full)} of a network trained to rung {top} ({duration(full)})"


def _scores_text(scores: Mapping[str, Any]) -> str:
    names = scores.get("names")
    if not isinstance(names, list) or not names:
        return ""
    return _joined(*names, f"{scores.get('scored')} architectures in {duration(scores.get('seconds'))}",
                   _of(scores, "degenerate", "degenerate"))


def _truth_text(truth: Mapping[str, Any]) -> str:
    if not truth.get("networks"):
        return ""
    return (f"{truth['networks']} networks at {truth.get('steps')} steps, {percent(truth.get('share'), digits=0)} of the search's training "
            f"steps, {duration(truth.get('train_seconds'))}")


def _wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of `count` images (Wilson's score interval: also right where all are classified alike)."""
    z2 = 1.96**2 / count
    middle, half = share + z2 / 2, math.sqrt(z2 * (share * (1 - share) + z2 / 4))
    return max((middle - half) / (1 + z2), 0.0), min((middle + half) / (1 + z2), 1.0)


def notes(run: Run) -> list[str]:
    """What a reader must know before trusting the figures."""
    lines = []
    rungs = run.summary.get("rungs") or run.experiment.get("rungs") or ()
    if isinstance(rungs, (list, tuple)) and rungs:
        lines.append(recovery_note(rungs) if is_pruning(run) else
                     "Accuracy is measured on the validation split after the training of the trial's highest rung "
                     f"({', '.join(map(str, rungs))} steps). It ranks networks; it is not what a full training reaches. A trial stopped at "
                     "a lower rung counts with the accuracy measured there, which can only understate it.")
    data = part(run.env, "data")
    told = data.get("notes")
    lines += [f"Of the data: {text}." for text in told] if isinstance(told, list) else []
    val = data.get("judged_by", data.get("val"))  # a prune search judges by a share of the validation images
    if isinstance(val, int) and val > 0 and len(run.front) and math.isfinite(run.front["accuracy"].max()):
        p = min(max(float(run.front["accuracy"].max()), 0.0), 1.0)
        low, high = _wilson(p, val)
        lines.append(f"{percent(p)} of {val} validation images stand for an accuracy between {percent(low)} and {percent(high)} (95 %), "
                     f"and the best of many is chosen on the same images: {TEST_NOTE if is_pruning(run) else FULL_NOTE}.")
    if run.front["ci_low_ms"].notna().any():
        lines.append("The interval of a latency is where the median of a later measurement on the same device is expected in at least "
                     "90 % of cases.")
    noisy = run.front[run.front["verdict"].isin(["noisy", "drifting"])]
    if len(noisy):
        picks = ", ".join(f"trial {t} ({v})" for t, v in zip(noisy["trial"], noisy["verdict"], strict=True))
        lines.append(f"Latencies on the front that could not be measured steadily: {picks}. Measure them again on an idle machine.")
    if len(run.objectives) > 2:
        lines.append(f"The front has {len(run.objectives)} objectives ({', '.join(run.objectives)}); a picture shows two of them, so a "
                     "point of the front may look dominated.")
    lines += precision_notes(run.path, run.front, records=run.records, env=run.env)
    lines += [f"{str(one['reason'])[:1].upper()}{str(one['reason'])[1:]}. A trial without that latency is on the front by the others."
              for one in part(run.summary, "gone").values() if isinstance(one, Mapping) and "reason" in one]
    prints = sorted({r.fingerprint for r in run.records if r.fingerprint and "latency_ms" in r.objectives})
    if len(prints) > 1:
        lines.append(f"The records hold latencies of {len(prints)} devices ({', '.join(prints)}), which cannot be compared: do not trust "
                     "this front.")
    return lines


# ---- parts ------------------------------------------------------------------------------------------------------------


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    """(label, figure, small print) of the top line."""
    if not len(run.front):
        return []
    cost, quality = run.axes
    rows = run.front.to_dict("records")
    sign = 1 if objective(quality).direction == "maximize" else -1
    pick = next(r for r in rows if r["knee"])
    top, low = max(rows, key=lambda r: sign * r[quality]), min(rows, key=lambda r: r[cost])
    high = max(r[cost] for r in rows)
    label = objective(cost).label.partition(" (")[0]
    return [("knee of the front", shown(quality, pick[quality]), f"at {shown(cost, pick[cost])}, trial {pick['trial']}"),
            ("most accurate" if quality == "accuracy" else f"best {objective(quality).label}", shown(quality, top[quality]),
             f"at {shown(cost, top[cost])}, trial {top['trial']}"),
            ("fastest" if cost == "latency_ms" else f"least {label}", shown(cost, low[cost]),
             f"{shown(quality, low[quality])}, trial {low['trial']}"),
            ("front", f"{len(rows)} networks" if len(rows) > 1 else "1 network",
             f"spanning {number(high / low[cost], digits=2)}{TIMES} in {label}" if low[cost] > 0 and len(rows) > 1 else "")]


def _choice_rows(run: Run) -> list[dict[str, Any]]:
    """Per front point: per stage its width and its blocks, each with mixers, colours and keep ratio."""
    by_trial, marked = latest(run.records), mark(run).trial
    cost, quality = run.axes
    rows = []
    for row in run.front.to_dict("records"):
        record = by_trial[row["trial"]]
        stages = [] if not record.has_arch else [
            {"width": s.embed_dim, "blocks": [{"keep": b.keep_ratio, "tip": _block_tip(b), "parts": [
                {"text": mixer_text(m), "colour": mixer_colour(m.name)} for m in b.mixers]} for b in s.blocks]}
            for s in record.network().stages]
        rows.append({"cost": shown(cost, row[cost]), "quality": shown(quality, row[quality]), "marked": row["trial"] == marked,
                     "stages": stages})
    return rows


def _block_tip(block: Block) -> str:
    mixers = " + ".join(" ".join([m.name, *(f"{k}={v}" for k, v in m.params)]) for m in block.mixers)
    return f"{mixers}; mlp_dim={block.mlp_dim}; keep_ratio={block.keep_ratio:g}"


def _stage_count(run: Run) -> int:
    return int(run.choices["stage"].max()) + 1 if len(run.choices) else 0


def _mixers(run: Run) -> list[tuple[str, str]]:
    members = set(run.front["trial"])
    archs = [r.network() for r in latest(run.records).values() if r.has_arch and r.trial in members]
    names = {m.name for a in archs for s in a.stages for b in s.blocks for m in b.mixers}
    return [(name, mixer_colour(name)) for name in sorted(names, key=mixer_rank)]


def _rivalry(run: Run) -> str:
    """One sentence on the random search of equal budget."""
    if run.random is None or not len(run.random.front) or not len(run.front) or not {"accuracy", "latency_ms"} <= set(run.objectives):
        return ""
    return (f"A random search of {len(run.random.trials)} trials in the same space reached "
            f"{percent(run.random.front['accuracy'].max())} at best; this search, with {len(run.trials)}, "
            f"{percent(run.front['accuracy'].max())}.")


def _joined(*parts: Any) -> str:
    return ", ".join(str(p) for p in parts if p not in (None, ""))


def _of(table: Mapping[str, Any], name: str, unit: str) -> str:
    return f"{table[name]} {unit}" if name in table else ""


def _time(table: Mapping[str, Any], name: str) -> str:
    return duration(table[name]) if name in table else ""


def _networks(size: Any) -> str:
    if not isinstance(size, (int, float)):
        return ""
    if isinstance(size, float) and not math.isfinite(size):
        return ""
    return f"{size:,.0f} networks" if size < 1e6 else f"about 10^{len(str(int(size))) - 1} networks"


def _size(size: Any) -> str:
    return f"{size[0]}{TIMES}{size[1]} px" if isinstance(size, (list, tuple)) and len(size) == 2 else ""


def _text(value: Any) -> str:
    return "" if value is None or value is pd.NA else str(value)
