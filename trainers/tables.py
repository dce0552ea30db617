"""Tables of results, printed as wide as they need to be, whatever they are printed to."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def print_table(table: Table) -> None:
    """Prints a table as wide as it needs to be, whatever stdout is."""
    console = Console()
    Console(width=max(console.width, 70)).print(table)
