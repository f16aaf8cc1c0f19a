"""Formats rows as a text table for logs and the terminal."""

from collections.abc import Sequence

from tabulate import tabulate


def format_table(rows: Sequence[Sequence[object]]) -> str:
    """Returns a plain text table whose columns line up, with wide characters counted as two.

    Args:
        rows: The header, then the other rows. Cells are written with `str`, so numbers must be rounded already.

    Example: `format_table([("name", "battles"), ("en", "12")])` is "name    battles\\nen      12".
    """
    header, *body = [[str(cell) for cell in row] for row in rows]
    # disable_numparse: tabulate would format numbers again, "0.50" as 0.5.
    return tabulate(body, header, tablefmt="plain", disable_numparse=True)
