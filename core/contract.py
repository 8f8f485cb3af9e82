"""Which family knows which verb: read off models that are built for the purpose.

The contract has six verbs. Every family has `loss` and `sample`; the others are there or raise one
error that says what to use instead. Nothing is listed by hand: a family is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import AleatorError
from core.model import GenerativeModel
from core.posterior import methods
from core.registry import FAMILIES, build

VERBS = ("loss", "sample", "log_prob", "denoise", "encode", "posterior")
NEEDED: dict[str, dict[str, Any]] = {
    "hybrid": {"flow": {"family": "real_nvp"}, "classes": 3},
}
"""What a family's config cannot do without, beyond family and event_shape."""
EVENTS: dict[str, tuple[int, ...]] = {"vector": (8,), "image": (1, 8, 8)}


@dataclass(frozen=True)
class Row:
    """What one family can do.

    Attributes:
        family: its word in a config.
        kind: of events, "vector" or "image".
        verbs: verb -> whether it is there.
        reason: why the family cannot be built for such events; empty if it can.
    """

    family: str
    kind: str
    verbs: Mapping[str, bool]
    reason: str = ""


def supports(model: GenerativeModel, verb: str) -> bool:
    """Whether a model has a verb.

    Raises:
        AleatorError: unknown verb.
    """
    if verb not in VERBS:
        raise AleatorError(f"unknown verb {verb!r}; known: {', '.join(VERBS)}")
    if verb in model.unsupported:
        return False
    if verb == "posterior":
        return bool(methods(model))
    if verb == "log_prob":
        return type(model).log_prob is not GenerativeModel.log_prob
    return hasattr(model, verb)


def matrix(families: Sequence[str] | None = None) -> list[Row]:
    """Ask every family of the registry, for vectors and for images.

    Args:
        families: which; all if None.

    Raises:
        AleatorError: an unknown family.
    """
    rows = []
    for family in families or sorted(FAMILIES):
        if family not in FAMILIES:
            known = ", ".join(sorted(FAMILIES))
            raise AleatorError(f"unknown family {family!r}; known: {known}")
        for kind, event in EVENTS.items():
            more = NEEDED.get(family, {})
            try:
                model = build({"family": family, "event_shape": event, **more})
            except AleatorError as error:
                rows.append(Row(family, kind, dict.fromkeys(VERBS, False), str(error)))
                continue
            rows.append(Row(family, kind, {verb: supports(model, verb) for verb in VERBS}))
    return rows


def table(rows: Sequence[Row]) -> str:
    """The matrix in Markdown; ✓ has it, – has not."""
    lines = [f"| family | events | {' | '.join(VERBS)} |", "|---" * (2 + len(VERBS)) + "|"]
    for row in rows:
        cells = ["✓" if row.verbs[verb] else "–" for verb in VERBS]
        lines.append(f"| {row.family} | {row.kind} | {' | '.join(cells)} |")
    found = sum(sum(row.verbs.values()) for row in rows)
    families = len({row.family for row in rows if any(row.verbs.values())})
    lines.append("")
    lines.append(f"{families} families, {found} of {len(rows) * len(VERBS)} cells.")
    lines += [f"{row.family} on {row.kind}s: {row.reason}" for row in rows if row.reason]
    return "\n".join(lines)
