"""The commands of fastdiff engine, listed as in commands.py."""

from typing import Annotated

import typer

engine = typer.Typer(no_args_is_help=True, help="Plans that were built on this machine.")


@engine.command("list")
def engine_list(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Every plan in the cache: key, size, when it was made and last used."""
    from fastdiff.cli.engine import print_list

    print_list(json=as_json)


@engine.command("clear")
def engine_clear(
    older_than: Annotated[
        float | None,
        typer.Option(help="Only those last used so long ago.  [default: all]", metavar="DAYS"),
    ] = None,
) -> None:
    """Remove plans from the cache; those that a process has in use stay."""
    from fastdiff.cli.engine import clear

    clear(older_than)
