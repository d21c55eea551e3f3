"""Frames as files that a spreadsheet opens: no cell that it would run."""

from __future__ import annotations

from typing import Any

import pandas as pd

FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What makes a cell a formula, and its wide forms."""
BLANKS = " \t\r\n\u200b\ufeff"


def plain_cells(table: pd.DataFrame) -> pd.DataFrame:
    """Text cells that a spreadsheet would run as a formula get a leading apostrophe; blanks before the sign do not hide it.

    A text stays on its line: some readers take what follows a carriage return for a new row.
    """
    def plain(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        text = value.replace("\r", " ").replace("\n", " ")
        return f"'{text}" if text.lstrip(BLANKS).startswith(FORMULA) or text.startswith("\t") else text

    return table.assign(**{name: table[name].map(plain) for name in table.columns if isinstance(table[name].dtype, pd.StringDtype)})
