"""Every command that a document shows is one that the command line has, with the options and choices that it has.

What the commands do is shown by running them (tests/integration/test_cli_docs.py, test_docs_run.py); this is quick, and
takes all.
"""

from __future__ import annotations

import shlex

import click
import pytest

from support.documents import APPLICATION, DOCUMENTS, PROGRAM, shown

END = {"|", ">", "<", ";", "&&", "&", "\\|"}
VALUE = "VALUE"
"""Stands for what a document leaves open."""


def read(command: str) -> None:
    """Take a command apart as the program does. Raises click.UsageError for what the program does not know."""
    words = []
    for word in shlex.split(command, comments=True)[1:]:
        if word in END or word.startswith((">", "|", "2>")):
            break
        words.append(word.strip("[],.…") or VALUE)
    if words and words[-1].startswith("--"):
        words.append(VALUE)  # named without its value
    current: click.Command = APPLICATION
    context: click.Context | None = None
    while True:
        # With its parent and settings: a command remembers the help option that it is first given.
        context = click.Context(current, parent=context, info_name=current.name, **current.context_settings)
        given, words, _ = current.make_parser(context).parse_args(list(words))
        for option in current.params:
            value = given.get(option.name or "")
            if isinstance(option.type, click.Choice) and isinstance(value, str) and not value.isupper():
                option.type.convert(value, option, context)
        if not isinstance(current, click.Group) or not words:
            return
        name, *words = words
        if name == VALUE:
            return
        chosen = current.commands.get(name)
        if chosen is None:
            raise click.UsageError(f"no command {name!r}")
        current = chosen


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_in_the_documents_is_one(document: str) -> None:
    """A command, option or choice that the program does not have must not be shown."""
    wrong = []
    for command in shown(document):
        try:
            read(command)
        except (click.UsageError, ValueError) as error:
            wrong.append(f"{command}: {error}")
    assert wrong == []


def test_the_documents_show_most_of_the_commands() -> None:
    """So it is seen when the search for commands finds none any more."""
    found = {c.split()[1] for document in DOCUMENTS for c in shown(document) if len(c.split()) > 1}
    assert len(found & set(APPLICATION.commands)) >= 25


@pytest.mark.parametrize(
    "command",
    ["nonsense", "ls --nonsense", "client nonsense", "client add x --verb read", "serve --fetch some"],
)
def test_wrong_commands_are_found(command: str) -> None:
    """The control: what is not there is told."""
    with pytest.raises(click.UsageError):
        read(f"{PROGRAM} {command}")
