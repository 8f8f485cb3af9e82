"""The tables that the commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apps.anomaly_driving.bootstrap import Difference
from apps.anomaly_driving.calibrate import Threshold
from core.report import Best, Table

COLUMNS = {
    "score": "score",
    "ap": "AP %",
    "interval": "90 % interval",
    "fpr95": "FPR95 %",
    "auroc": "AuROC %",
    "siou": "sIoU %",
    "ppv": "PPV %",
    "mean_f1": "mean F1 %",
    "f1": "F1 oracle %",
    "frozen_f1": "F1 frozen %",
    "closed_miou": "closed mIoU %",
    "open_miou": "open mIoU %",
    "images_per_second": "images/s",
}
BEST: dict[str, Best] = {
    key: "max" for key in COLUMNS if key not in ("score", "interval", "closed_miou")
}
BEST["fpr95"] = "min"


def score_table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Metrics of each score, in per cent; columns that nothing has are left out."""
    shown = []
    for row in rows:
        entry = {key: row.get(key) for key in COLUMNS}
        for key in COLUMNS:
            if key not in ("score", "interval", "images_per_second") and entry[key] is not None:
                entry[key] = 100 * row[key]
        if "ap_low" in row:
            entry["interval"] = f"{100 * row['ap_low']:.1f} – {100 * row['ap_high']:.1f}"
        shown.append(entry)
    columns = {
        key: heading
        for key, heading in COLUMNS.items()
        if any(entry[key] is not None for entry in shown)
    }
    formats = dict.fromkeys(columns, ".2f")
    return Table(shown, columns, formats, {k: v for k, v in BEST.items() if k in columns}, title)


def difference_table(found: Mapping[str, Difference], against: str, frames: int) -> Table:
    """What each score's AP is above that of one of them, with paired intervals."""
    rows = [
        {
            "score": name,
            "difference": 100 * entry.value,
            "interval": f"{100 * entry.low:+.1f} – {100 * entry.high:+.1f}",
            "above": 100 * entry.above,
        }
        for name, entry in found.items()
    ]
    columns = {
        "score": "score",
        "difference": f"AP - AP of {against}, points",
        "interval": "90 % paired interval",
        "above": "above zero, % of draws",
    }
    return Table(
        rows,
        columns,
        {"difference": "+.2f", "above": ".1f"},
        title=f"Paired bootstrap over {frames} frames",
    )


def threshold_table(found: Mapping[str, Threshold], frames: int) -> Table:
    """Thresholds of the scores and what rates to expect of them."""
    rows = []
    for name, entry in found.items():
        row = {"score": name, "value": entry.value, "realised": 100 * entry.realised}
        if entry.frame_low is not None and entry.frame_high is not None:
            row["frame"] = f"{100 * entry.frame_low:.2f} – {100 * entry.frame_high:.2f}"
        if entry.drive_low is not None and entry.drive_high is not None:
            row["drive"] = f"{100 * entry.drive_low:.2f} – {100 * entry.drive_high:.2f}"
        rows.append(row)
    first = next(iter(found.values()))
    wanted = "best F1" if first.wanted is None else f"{first.target.upper()} {first.wanted:g}"
    return Table(
        rows,
        {
            "score": "score",
            "value": "threshold",
            "realised": "realised here %",
            "frame": f"next frame, {100 * first.level:g} % interval",
            "drive": "as many new frames",
        },
        {"value": ".4g", "realised": ".3f"},
        title=f"{wanted} on {frames} frames",
    )
