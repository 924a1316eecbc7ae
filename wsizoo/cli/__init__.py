"""The command line: one file per group of commands; each parses, calls and prints.

Commands are imported when they are asked for, so that `wsizoo list` stays quick.
"""

from __future__ import annotations

import difflib
import importlib
import signal
import sys

import click

from wsizoo.errors import WsizooError

COMMANDS = {
    "list": ("wsizoo.cli.zoo", "Models, encoders and other parts of the zoo."),
    "show": ("wsizoo.cli.zoo", "Everything that is known of one model."),
    "plugins": ("wsizoo.cli.zoo", "Installed plugins, and those in quarantine."),
    "doctor": ("wsizoo.cli.doctor", "What works on this machine, and what to type where not."),
    "demo": ("wsizoo.cli.demo", "The whole job on synthetic slides, with a report at the end."),
    "tissue": ("wsizoo.cli.tissue", "Outlines of the tissue of slides, to look at and to edit."),
    "extract": ("wsizoo.cli.slides", "Slides to feature files."),
    "predict": ("wsizoo.cli.slides", "A trained model on slides or feature files."),
    "embed": ("wsizoo.cli.slides", "Slide embeddings of slides or feature files."),
    "train": ("wsizoo.cli.training", "A model on a table of slides; measures with intervals."),
    "evaluate": ("wsizoo.cli.training", "A run or a model on another part or on other data."),
    "benchmark": ("wsizoo.cli.benchmark", "Models on one table of slides, compared."),
    "report": ("wsizoo.cli.training", "The page of a run, anew."),
    "diagnose": ("wsizoo.cli.diagnose", "What a model does inside: its attention, its selector."),
    "inspect": ("wsizoo.cli.features", "What a feature file of any tool, or a slide, is."),
    "convert": ("wsizoo.cli.features", "Feature files of one tool into those of another."),
    "convert weights": ("wsizoo.cli.weights", "Weights that other code published, and back."),
    "split": ("wsizoo.cli.splits", "Who trains, validates and tests: make it, and audit it."),
    "verify": ("wsizoo.cli.weights", "Check digests and replay golden outputs."),
    "pin": ("wsizoo.cli.weights", "Record commit and digest of published weights."),
    "push": ("wsizoo.cli.weights", "Publish a saved model, or a run's, on the Hub."),
    "check": ("wsizoo.cli.authors", "Hold a plugin to the conformance suite."),
    "new": ("wsizoo.cli.authors", "Start a plugin from the tutorial one."),
}


def joined(words: list[str]) -> list[str]:
    """What was typed, with the two words of a command such as `convert weights` as one."""
    two = " ".join(words[:2])
    return [two, *words[2:]] if two in COMMANDS else words


class _Commands(click.Group):
    """Imports a command's module on use; suggests the near name for an unknown one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        attribute = f"{name.replace(' ', '_')}_command"
        command = getattr(importlib.import_module(COMMANDS[name][0]), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        args = joined(args)
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"No command '{args[0]}'.{hint} See: wsizoo --help", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="wsizoo")
def cli() -> None:
    """A zoo of whole-slide models: encoder -> selector -> aggregator -> head.

    \b
    Start here:
      wsizoo demo     the whole job on synthetic slides, with a report
      wsizoo list     what is in the zoo
      wsizoo predict slide.svs -m abmil-demo -o out     a prediction, a heatmap
    """


def main() -> None:
    """Run the command line."""
    run(cli, "wsizoo")


def run(command: click.Command, prog_name: str) -> None:
    """Run a command and end the process.

    Exit code 0; 1 for an error of wsizoo, a slide that failed, or a reader of the output that has
    gone (click sees to that, silently); 2 for wrong usage; 130 when interrupted, by SIGTERM too:
    clusters send it before they kill.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = command(standalone_mode=False, prog_name=prog_name)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted. What was finished is kept; the same command goes on.", err=True)
        sys.exit(130)
    except WsizooError as error:
        click.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
