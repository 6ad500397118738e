"""Writes docs/reference-cli.md and docs/reference-python.md from the code: `make docs`.

Their text is that of help and docstrings: correct it there. A test compares the files with what this would write.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

import walytis_vault
from walytis_vault import AsyncClient, Client, Node, VaultError
from walytis_vault.async_client import AsyncSubscription
from walytis_vault.bus import messages, rows
from walytis_vault.cli.app import application
from walytis_vault.client import Subscription
from walytis_vault.domain.errors import ERRORS_BY_CODE

FOLDER = Path(__file__).parent
NOTE = "<!-- Written by docs/make_reference.py from the code: change it there, then run `make docs`. -->\n"
COMMON = ("home", "json", "help")


def cli() -> str:
    """The command line's reference."""
    group = application()
    parts = [
        f"# Command line\n\n{NOTE}",
        "`--home DIR`, `--json` and `--help` may stand before or after any command. Errors go to stderr as one line;"
        " exit code 1 is a failure, 2 wrong usage. A first session is in the [README](../README.md).\n",
        "".join(f"- [{name}](#{_anchor(name)}): {_short(command)}\n" for name, command in _commands(group)),
    ]
    parts += [_command(name, command) for name, command in _commands(group)]
    return "\n".join(parts)


def _commands(group: click.Group, before: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if isinstance(command, click.Group):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield before + name, command


def _command(name: str, command: click.Command) -> str:
    # As under the group: click keeps the help option that it made first, whichever context that was for.
    context = click.Context(
        command,
        info_name=f"walytis-vault {name}",
        max_content_width=10_000,
        terminal_width=10_000,
        help_option_names=["-h", "--help"],
    )
    usage = " ".join(command.get_usage(context).removeprefix("Usage: ").split())
    text = [f"## {name}\n", f"```\n{usage}\n```\n", inspect.cleandoc(command.help or "") + "\n"]
    options = [_option(p, context) for p in command.get_params(context) if isinstance(p, click.Option)]
    lines = [line for line in options if line]
    if lines:
        text.append("| option | |\n|---|---|\n" + "".join(lines))
    return "\n".join(text)


def _option(option: click.Option, context: click.Context) -> str:
    if option.name in COMMON or option.hidden:
        return ""
    record = option.get_help_record(context)
    if record is None:
        return ""
    names, text = (" ".join(part.split()).replace("|", "\\|") for part in record)
    return f"| `{names}` | {text} |\n"


def _short(command: click.Command) -> str:
    return " ".join(inspect.cleandoc(command.help or "").split("\n\n")[0].split())


def _anchor(name: str) -> str:
    return name.replace(" ", "-")


def python() -> str:
    """The Python interface's reference."""
    parts = [
        f"# Python\n\n{NOTE}",
        "`from walytis_vault import Node, Client, AsyncClient, VaultError`, and the errors below. `AsyncClient` has the"
        " verbs of `Client`, awaitable; `subscribe` and `rows` are for `async for`. Rows of views are frozen structs"
        " whose fields are in [views.md](views.md).\n",
        _class(Node),
        _class(Client),
        _class(Subscription),
        _only_async(),
    ]
    structs = [s for s in vars(messages).values() if _is_struct(s, messages.__name__)]
    parts.append("## What is given back\n")
    parts += [_struct(s) for s in [*structs, rows.RowPage]]
    parts.append("## Errors\n\nAll are subclasses of `VaultError`. The code is what travels over the bus.\n")
    codes = {error: code for code, error in ERRORS_BY_CODE.items()}
    lines = []
    for name in walytis_vault.__all__:
        error = getattr(walytis_vault, name)
        if inspect.isclass(error) and issubclass(error, VaultError):
            lines.append(f"| `{name}` | {codes.get(error, '')} | {_paragraph(error)} |\n")
    parts.append("| error | code | |\n|---|---|---|\n" + "".join(lines))
    return "\n".join(parts)


def _is_struct(thing: object, module: str) -> bool:
    inside = getattr(thing, "__module__", "") == module
    return inside and isinstance(thing, type) and issubclass(thing, msgspec.Struct) and thing.__name__ != "RequestKey"


def _class(cls: type) -> str:
    text = [f"## {cls.__name__}\n", f"```\n{cls.__name__}{_signature(cls.__init__)}\n```\n", _doc(cls)]
    for name, member in vars(cls).items():
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            text.append(f"### {cls.__name__}.{name}\n\n{_doc(member)}")
        elif callable(member) or isinstance(member, classmethod | staticmethod):
            function: Any = getattr(cls, name)
            text.append(f"### {cls.__name__}.{name}\n\n```\n{name}{_signature(function)}\n```\n\n{_doc(function)}")
    return "\n".join(text)


def _only_async() -> str:
    """What the two clients do not have in common."""
    ours = {n for n, m in vars(AsyncClient).items() if callable(m) and not n.startswith("_")}
    theirs = {n for n, m in vars(Client).items() if callable(m) and not n.startswith("_")}
    different = ", ".join(f"`{n}`" for n in sorted(ours ^ theirs)) or "none"
    closing = ", ".join(f"`{n}`" for n in vars(AsyncSubscription) if not n.startswith("_"))
    return (
        f"## AsyncClient\n\n{_doc(AsyncClient)}\nVerbs that only one of the two has: {different}."
        f" A subscription has {closing}.\n"
    )


class _Plain:
    """An annotation that shows as it was written."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        """Without quotes."""
        return self.text


def _signature(function: Any) -> str:
    signature = inspect.signature(function)

    def plain(annotation: Any) -> Any:
        return _Plain(annotation.strip("'")) if isinstance(annotation, str) else annotation

    parameters = [p.replace(annotation=plain(p.annotation)) for p in signature.parameters.values() if p.name != "self"]
    shown = signature.replace(parameters=parameters, return_annotation=plain(signature.return_annotation))
    return str(shown)


def _struct(struct: type[msgspec.Struct]) -> str:
    fields = ", ".join(f"`{f.name}`" for f in msgspec.structs.fields(struct))
    return f"### {struct.__name__}\n\n{_doc(struct)}\nFields: {fields}.\n"


def _paragraph(thing: Any) -> str:
    return " ".join(inspect.cleandoc(thing.__doc__ or "").split("\n\n")[0].split())


def _doc(thing: Any) -> str:
    """A docstring as Markdown: sections as bold words, their entries as a list."""
    lines = inspect.cleandoc(thing.__doc__ or "").split("\n")
    found: list[str] = []
    section = False
    for line in lines:
        if re.fullmatch(r"(Args|Returns|Raises|Yields|Attributes):", line):
            section = True
            found += ["", f"**{line[:-1]}**", ""]
        elif section and line.startswith("    ") and not line.startswith("     "):
            name, colon, rest = line.strip().partition(": ")
            listed = colon and re.fullmatch(r"[\w, *]+", name)
            found.append(f"- `{name}`: {rest}" if listed else f"- {line.strip()}")
        elif section and line.startswith("     "):
            found[-1] += f" {line.strip()}"
        else:
            section = section and not line
            found.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(found)).strip() + "\n"


FILES = {"reference-cli.md": cli, "reference-python.md": python}


def main() -> None:
    """Write both."""
    for name, make in FILES.items():
        (FOLDER / name).write_text(make())
        print(f"docs/{name}")


if __name__ == "__main__":
    main()
