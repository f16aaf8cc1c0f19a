"""Rows as a text table, for logs and the terminal."""

from collections.abc import Sequence

from tabulate import tabulate


def format_table(rows: Sequence[Sequence[object]]) -> str:
    """A plain text table: two spaces between columns, wide characters counted as two.

    Args:
        rows: Cells, the header first; written with `str`, so numbers come already rounded.

    Example: `format_table([("name", "battles"), ("en", "12")])` is "name    battles\\nen      12".
    """
    header, *body = [[str(cell) for cell in row] for row in rows]
    return tabulate(body, header, tablefmt="plain", disable_numparse=True)
