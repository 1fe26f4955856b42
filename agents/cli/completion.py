"""Tab completion: `text-gym --tyro-write-completion bash PATH` writes what a shell reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from tyro.extras import SubcommandApp

from agents.cli.commands import COMMANDS
from agents.cli.flags import Comparing, Flat, Training


def complete(words: Sequence[str]) -> None:
    """Print or write the completion of all commands; hyper-parameters are not among it."""
    app = SubcommandApp()

    def train(asked: Annotated[Training, Flat]) -> None:
        """Complete the flags of train."""

    def compare(asked: Annotated[Comparing, Flat]) -> None:
        """Complete the flags of compare."""

    functions = {**COMMANDS, "train": train, "compare": compare}
    for name, function in functions.items():
        app.command(name=name)(function)
    app.cli(prog="text-gym", args=list(words))
