"""The content of comparison.json, which holds all that a run's report is made of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

Content = dict[str, Any]  # as JSON has it; `compression.runs.results.keep` says under which keys

COMPARISON_FILE = "comparison.json"
KEYS_SINCE_0_1 = {"stairs": "step_labels", "climbed": "after_each_step"}  # key of version 0.1 -> today's


def read_content(folder: Path) -> Content:
    """Read `folder/comparison.json`, whatever version of the lab wrote it."""
    return upgrade_content(json.loads((folder / COMPARISON_FILE).read_text(encoding="utf-8")))


def upgrade_content(content: Content) -> Content:
    """Rename the keys that version 0.1 used to today's, in a copy; content of today stays as it is."""
    return {KEYS_SINCE_0_1.get(key, key): value for key, value in content.items()}
