"""Every command that a document shows outside its sessions is run too, on a real node, as its plan says.

A document's sessions (blocks of `console`) are run by test_cli_docs.py. A line of a plan is a command as the document
shows it, then `=>` (also in a line of its own) and what is run in its place. `+` adds what the document says in words;
` - ` and a reason: it is not run here. What a document shows and its plan does not have, or the reverse, fails.
"""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.command_line import Serving, as_json, publish, run
from support.documents import BLOCK, DOCUMENTS, PROGRAM, ROOT, in_blocks, in_spans, spans
from support.peer_nodes import eventually
from walytis_vault import Client

PLANS = {
    "SECURITY.md": """
        init --removal founder
    """,
    "docs/bundle-format.md": """
        export FILE => export {folder}/bundle
        verify FILE => verify {folder}/bundle
        verify --digest => verify {folder}/bundle --digest {digest}
        verify --root => verify {folder}/bundle --root {root}
    """,
    "docs/bus-protocol.md": """
        serve --listen => serve --listen tcp://127.0.0.1:0
        + status
    """,
    "docs/concepts.md": """
        serve
        ls --revises ID => ls --revises {content}
        ls --conflict
        + ls --as-of 3
        + replay
        + retry
        + audit
    """,
    "docs/forgetting.md": """
        forget ID… => forget {content} {content}
        + drop {content} --force
        drop ID… => drop --force {content}
        + passphrase --new-passphrase-file {old}
        lock
        + drop --force {content_before}
        + unlock --passphrase-file {old}
        + passphrase --passphrase-file {old} --to-key-file
    """,
    "docs/operations.md": """
        init --removal any
        init --network => init --network loopback
        init --views postgresql://ann@db.example/vault - needs PostgreSQL: test_postgres_node.py
        serve --views postgresql://ann@db.example/vault - needs PostgreSQL: test_postgres_node.py
        serve --views sqlite
        serve --log-format json
        serve --log-format json --log-level info
        serve --metrics 127.0.0.1:9464 => serve --metrics 127.0.0.1:0
        serve --network => serve --network loopback
        serve --fetch all --fetch-limit 64M
        serve --fetch all --fetch-space 20G
        serve --fetch on-request
        serve --fetch small
        status --json
        status
        --help
        + passphrase --new-passphrase-file {old}
        passphrase --passphrase-file OLD --new-passphrase-file NEW
            => passphrase --passphrase-file {old} --new-passphrase-file {new}
        lock
        unlock --passphrase-file FILE => unlock --passphrase-file {new}
        + passphrase --passphrase-file {new} --to-key-file
        drop ID… => drop {content} --force
        invite --device
        invite --list
        invite --revoke ID => invite --revoke {invitation}
        remove DID --reason TEXT - several nodes: below
        remove DID --device - several nodes: below
        audit
        replay
        backup /media/stick/vault --passphrase-file secret.txt => backup {folder}/stick --passphrase-file {new}
        import-offchain SOURCE --key key.json --dry-run - a real store takes long to make: test_import_offchain.py
        import-offchain SOURCE --key key.json - as above
        --home ~/vault-again restore /media/stick/vault --passphrase-file secret.txt
            => --home {folder}/again restore {folder}/stick --passphrase-file {new}
        restore --alone => --home {folder}/alone restore {folder}/stick --passphrase-file {new} --alone
        serve
    """,
    "docs/views.md": """
        ls
        ls --as-of 120 => ls --as-of 3
        + ls --as-of 2h
        + ls --as-of 2026-01-31T12:00:00Z
        + ls --limit 50
        replay VIEW --until … => replay catalogue --until 3
        query VIEW [FILTER=VALUE]... => query timeline type=content-published/1
    """,
}  # fmt: skip
ELSEWHERE = {
    "CHANGELOG.md": "names options, all of which other documents show",
    "README.md": "its two members: below; the rest is a session",
    "docs/first-session.md": "a session",
    "docs/how-to-write-a-projection.md": "its package is installed, and its commands run, by test_view_package.py",
}
PYTHON = {
    "docs/views.md": {
        'client.query("catalogue", limit=50, label="invoice", state="available")': "",
        'client.query("catalogue", as_of=120)': 'client.query("catalogue", as_of=3)',
        'client.page("catalogue", limit=50, cursor=…)': 'client.page("catalogue", limit=50, cursor=cursor)',
    },
    "docs/operations.md": {
        'Client(home, key="watcher")': "",
        "Node.create(home, views=URL)": "- needs PostgreSQL: test_postgres_node.py",
        "Node.open(home, views=URL)": "- needs PostgreSQL: test_postgres_node.py",
        "Node.open(home, fetch=…, fetch_limit=…, fetch_space=…)": "- takes the node's place: test_fetching.py",
    },
    "docs/how-to-write-a-projection.md": {
        'client.query("activity")': "- test_view_package.py",
        'client.subscribe("activity")': "- test_view_package.py",
    },
}
"""Calls in spans and blocks, and what stands for their placeholders."""
OTHER_LINES = {
    "make demo": "test_cli_nodes.py and test_peers.py run what it runs",
    "make test": "it would run itself",
    "pip install 'walytis-vault[postgres]'": "from an index of packages; test_wheel.py installs",
    "systemctl --user enable --now walytis-vault": "needs systemd with a user's session",
    "journalctl --user -u walytis-vault": "needs systemd with a user's session",
}
"""Lines of blocks that are commands of other programs, and why they are not run here."""
PROGRAMS = ("make", "pip", "python", "python3", "apt", "systemctl", "journalctl", "git", "docker", "curl")


class Step:
    """One line of a plan."""

    def __init__(self, line: str) -> None:
        """Take the line apart."""
        self.is_shown = not line.startswith("+ ")
        command, _, reason = line.removeprefix("+ ").partition(" - ")
        self.command, _, really = command.partition(" => ")
        self.really = really or self.command
        self.left_out = bool(reason)


def plan(document: str) -> list[Step]:
    """The steps of a document."""
    return [Step(line.strip()) for line in re.sub(r"\n *=>", " =>", PLANS[document].strip()).splitlines()]


def outside_sessions(document: str) -> set[str]:
    """The commands that a document shows, without the program and comments, but for those in its sessions."""
    commands = {*in_blocks(document, ("", "ini", "text")), *in_spans(document)}
    return {re.sub(r"\s+#.*$", "", command).removeprefix(f"{PROGRAM} ") for command in commands}


def lines_of(document: str) -> set[str]:
    """All lines of its blocks."""
    return {line for _, block in BLOCK.findall((ROOT / document).read_text()) for line in block.splitlines()}


def calls_of(document: str) -> set[str]:
    """The calls in Python that stand alone, in spans and in lines of blocks."""
    pattern = re.compile(r"(client\.\w+|Client|Node\.\w+)\(.+\)")
    return {text for text in (*spans(document), *lines_of(document)) if pattern.fullmatch(text)}


class Vault:
    """One home, served by one node at a time, and what stands for placeholders."""

    def __init__(self, folder: Path) -> None:
        """Make the vault; serve it."""
        self.folder = folder
        self.home = folder / "home"
        self.node: Serving | None = None
        self._content = ""
        self._numbers = itertools.count()
        for name in ("old", "new"):
            (folder / name).write_text(f"the {name} passphrase\n")
        run(self.home, "init")
        self.serve()

    def serve(self, *words: str) -> None:
        """Serve with these options, in place of the node that runs."""
        self.stop()
        self.node = Serving(self.home, *words)
        self.node.wait_ready()

    def stop(self) -> None:
        """End the node, which must end well."""
        if self.node is not None:
            node, self.node = self.node, None
            try:
                assert node.stop()[0] == 0
            finally:
                node.end()

    def __getitem__(self, placeholder: str) -> Any:
        """What stands for a placeholder."""
        if placeholder == "content":
            self._content = publish(self.home, b"a content", "--name", "a name")
        made: dict[str, Callable[[], Any]] = {
            "content": lambda: self._content,
            "content_before": lambda: self._content,
            "folder": lambda: self.folder,
            "old": lambda: self.folder / "old",
            "new": lambda: self.folder / "new",
            "invitation": lambda: as_json(self.home, "invite", "--list")[0]["invitation_id"],
            "digest": lambda: self._verified("digest"),
            "root": lambda: self._verified("root"),
        }
        return made[placeholder]()

    def _verified(self, field: str) -> Any:
        return as_json(self.home, "verify", str(self.folder / "bundle"))[field]

    def do(self, command: str) -> None:
        """Run one command, which must succeed."""
        words = [word.format_map(self) for word in shlex.split(command)]
        if words[0] == "serve":
            self.serve(*words[1:])
        elif words[0] == "init":
            run(self.folder / f"made-{next(self._numbers)}", *words)
        elif words[0] == "--home":
            self.stop()  # one vault is served once on a machine
            run(Path(words[1]), *words[2:])
            assert (Path(words[1]) / "vault.json").exists()
        else:
            run(self.home, *words)


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vault]:
    """One for all documents."""
    made = Vault(tmp_path_factory.mktemp("documents"))
    yield made
    made.stop()


@pytest.mark.parametrize(
    "document", [pytest.param(d, marks=pytest.mark.long) if PLANS[d].count("serve") > 2 else d for d in PLANS]
)
def test_the_commands_of_a_document_do_what_they_are_shown_for(document: str, vault: Vault) -> None:
    """Each command outside of sessions is run, in the order of the plan, and succeeds."""
    steps = plan(document)
    assert {s.command for s in steps if s.is_shown} == outside_sessions(document)
    for step in steps:
        if not step.left_out:
            vault.do(step.really)
    if vault.node is None:
        vault.serve()


def test_nothing_is_shown_that_is_not_accounted_for() -> None:
    """What stands in no plan is run elsewhere, or cannot be run here: commands, calls in Python, other programs."""
    assert {d for d in DOCUMENTS if outside_sessions(d)} <= {*PLANS, *ELSEWHERE}
    documents = {*DOCUMENTS} - {"CHANGELOG.md"}
    assert {d: calls for d in documents if (calls := calls_of(d))} == {d: set(calls) for d, calls in PYTHON.items()}
    others = {line for d in DOCUMENTS for line in lines_of(d) if line.split(" ")[0] in PROGRAMS}
    assert {line.partition("  ")[0] for line in others} == set(OTHER_LINES)


def test_the_digest_of_a_bundle_is_that_of_its_lines(vault: Vault) -> None:
    """What the format's document shows for a shell gives the digest that `verify` says."""
    (shown,) = [s for s in spans("docs/bundle-format.md") if "sha256sum" in s]
    run(vault.home, "export", str(vault.folder / "bundle"))
    command = shown.replace("FILE", str(vault.folder / "bundle"))
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.split()[0] == vault["digest"]


@pytest.mark.parametrize("document", PYTHON)
def test_the_calls_of_a_document_are_made(document: str, vault: Vault) -> None:
    """Each call in Python that stands alone."""
    if "watcher" in str(PYTHON[document]):
        run(vault.home, "client", "add", "watcher", "--verbs", "read")
    with Client(vault.home) as client:
        names = {"client": client, "Client": Client, "home": vault.home}
        names["cursor"] = client.page("catalogue", limit=1).cursor
        for call, really in PYTHON[document].items():
            if not really.startswith("- "):
                eval(really or call, names)


@pytest.mark.long
def test_the_members_of_the_readme(tmp_path: Path) -> None:
    """The README's commands of two members, line by line on two real nodes; then a device that goes alone."""
    (block,) = [text for kind, text in BLOCK.findall((ROOT / "README.md").read_text()) if not kind and "ada$" in text]
    homes = {name: tmp_path / name for name in ("ada", "bob", "phone")}
    nodes: dict[str, Serving] = {}

    def serve(who: str) -> None:
        nodes[who] = Serving(homes[who])
        nodes[who].wait_ready()

    try:
        run(homes["ada"], "init")
        serve("ada")
        content = publish(homes["ada"], b"Dear Bob")
        real = {"5d9f3c1ab2e84c7d9e0f6a7b8c9d0e1f": content}
        for line in block.splitlines():
            who, _, commands = re.sub(r"\s+#.*$", "", line).partition("$ ")
            for command in commands.split(" && "):
                words = [real.get(word, word) for word in shlex.split(command)[1:]]
                if words == ["serve"]:
                    serve(who)
                    continue
                if "-o" in words:
                    words[-1] = str(tmp_path / words[-1])
                if words[0] == "get":
                    eventually(lambda: as_json(homes["bob"], "status")["peers"], "the nodes are connected")
                if words[0] == "consent":
                    eventually(lambda: as_json(homes["bob"], "ballots"), "the proposal is known")
                done = run(homes[who], *words).stdout.decode().split()
                if words[0] == "invite":
                    real["CODE"] = done[0]
                elif words[0] == "forget":
                    assert done[-1] == "open"
                    real["1c0e7d5f4b3a29181716151413121110"] = done[0]
                elif words[0] == "consent":
                    assert done[-1] == "carried"
                elif words[0] == "get":
                    real["did:walytisidentities:…"] = as_json(homes["bob"], "status")["did"]
        assert (tmp_path / "letter.txt").read_bytes() == b"Dear Bob"
        assert [m["state"] for m in as_json(homes["ada"], "members", "--state", "all")] == ["member", "removed"]
        code = run(homes["ada"], "invite", "--device").stdout.decode().split()[0]
        run(homes["phone"], "join", code)
        serve("phone")
        did = as_json(homes["ada"], "status")["did"]
        run(homes["phone"], "remove", did, "--device")
        (row,) = [m for m in as_json(homes["phone"], "members") if m["did"] == did]
        assert [d["state"] == "removed" for d in row["devices"]].count(True) == 1
    finally:
        for node in nodes.values():
            node.end()
