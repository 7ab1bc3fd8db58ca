"""``medad-serve``: one group, commands loaded when called, errors in one line."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import NoReturn

import click

import medad_serve
from medad_serve.errors import MedadError, one_line

LONGEST = 4000
"""Characters of an error that are shown: some list files or fields."""
COMMANDS = {
    "ablate": ("ablate", "ablate"),
    "archive": ("serving", "archive"),
    "bench": ("bench", "bench"),
    "crop-vertebrae": ("volumes", "crop_vertebrae"),
    "drift": ("drift", "drift"),
    "errormaps": ("volumes", "errormaps"),
    "evaluate": ("evaluation", "evaluate"),
    "export": ("training", "export"),
    "health": ("health", "health"),
    "info": ("info", "info"),
    "inspect": ("inspect", "inspect"),
    "java-home": ("serving", "java_home"),
    "phantoms": ("phantoms", "command"),
    "predict": ("predict", "predict"),
    "quickstart": ("quickstart", "quickstart"),
    "sagemaker": ("sagemaker", "sagemaker"),
    "serve": ("serving", "serve"),
    "sweep": ("sweep", "sweep"),
    "train": ("training", "train"),
    "tune": ("tune", "tune"),
    "visualize": ("visualize", "visualize"),
}
"""Module of this package and command in it: importing only the one called keeps ``predict`` free of torch."""


class LazyGroup(click.Group):
    """Imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name every command."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"medad_serve.cli.{module}"), attribute)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(medad_serve.__version__)
def cli(debug: bool) -> None:
    """Train, export and serve medical-imaging anomaly detectors."""


def main() -> None:
    """Run the command line: exit code 2 for usage, 1 for failure."""
    # torch's OpenMP threads spin while they wait: on a busy machine a training step then takes three times as
    # long. Read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        # Outside standalone mode click returns the code of ctx.exit() and None otherwise.
        sys.exit(cli(standalone_mode=False))
    except click.exceptions.Abort:
        click.echo("Stopped.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MedadError as error:
        if "--debug" in sys.argv:
            raise
        _fail(str(error))
    except KeyboardInterrupt:
        click.echo("Stopped.", err=True)
        sys.exit(130)
    except (OSError, MemoryError) as error:
        if "--debug" in sys.argv:
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        where = f" {error.filename}" if isinstance(error, OSError) and error.filename else ""
        _fail(f"{reason}{where}. Check space, rights and paths, or add --debug")
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        _fail(f"internal fault ({type(error).__name__}). Report it with what --debug shows")


def _fail(text: str) -> NoReturn:
    """Tell an error, which may quote names and fields that somebody else chose, and leave."""
    click.echo(f"Error: {one_line(text, LONGEST)}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
