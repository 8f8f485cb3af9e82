"""Model cards: what a checkpoint was trained on, how well it does, and how to make it again.

The card is a mapping kept in the checkpoint's `model.json`; `model_card` renders it, so that the
text beside the weights cannot drift from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import AleatorError
from core.report import Table, write_text

_REQUIRED = ("data", "split", "seed", "hardware", "minutes", "parameters", "command")
_FACTS = {
    "data": "Data",
    "split": "Split",
    "seed": "Seed",
    "parameters": "Parameters",
    "minutes": "Minutes to train",
    "hardware": "Hardware",
    "date": "Date",
    "licence": "Licence",
}


def model_card(card: Mapping[str, Any]) -> str:
    """Render a card as Markdown.

    Args:
        card: `title`, `summary`, `data`, `split`, `seed`, `hardware`, `minutes` (to train),
            `parameters` (their number), `command`; optionally `scores` (rows, or a `Table` as
            a mapping), `limits` (text), `date`, `licence`; further entries are listed as facts.

    Raises:
        AleatorError: a required entry is missing.
    """
    lacking = [key for key in _REQUIRED if card.get(key) in (None, "")]
    if lacking:
        raise AleatorError(f"the model card lacks {', '.join(lacking)}; fill in what made it")
    known = {"title", "summary", "command", "scores", "limits"}
    order = [*_FACTS, *(key for key in card if key not in _FACTS and key not in known)]
    facts = [
        {"": _FACTS.get(key, key.replace("_", " ").capitalize()), " ": _fact(key, card[key])}
        for key in order
        if card.get(key) is not None
    ]
    parts = [f"# {card.get('title', 'Model')}\n"]
    if card.get("summary"):
        parts.append(f"{card['summary']}\n")
    parts.append(Table(facts, {"": "", " ": ""}).markdown())
    if card.get("scores"):
        parts.append(f"## Scores\n\n{_scores(card['scores'])}")
    if card.get("limits"):
        parts.append(f"## Limits\n\n{card['limits']}\n")
    parts.append(f"## Made by\n\n```sh\n{card['command']}\n```\n")
    return "\n".join(parts)


def write_card(path: Path | str, card: Mapping[str, Any]) -> None:
    """Write a rendered card (say, `card.md` beside the weights), atomically."""
    write_text(path, model_card(card))


def _fact(key: str, value: Any) -> str:
    """Text of a fact; mappings and lists are spelled out."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_fact(name, entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_fact(key, entry) for entry in value)
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if key == "parameters" else str(value)


def _scores(scores: Any) -> str:
    if isinstance(scores, Mapping) and "rows" in scores:
        return Table(**scores).markdown()
    rows = [scores] if isinstance(scores, Mapping) else list(scores)
    keys = dict.fromkeys(key for row in rows for key in row)
    return Table(rows, {key: key for key in keys}).markdown()
