"""Publishing several files, or a folder of them, with one command.

What is named is looked at before anything is published; then several are under way at a time, so that small ones share
one wait for disk and chain. Results come in the order in which the files were named.
"""

from __future__ import annotations

import mimetypes
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from walytis_vault.domain.errors import MisuseError

if TYPE_CHECKING:
    from walytis_vault.bus.messages import Published
    from walytis_vault.client import Client

AT_A_TIME: Final = 8
Done = Callable[[Path, "Published"], None]


def regular_file(file: str) -> Path:
    """The path of one file. Raises MisuseError: a directory, or nothing there."""
    path = Path(file)
    if path.is_dir():
        raise MisuseError(f"{file} is a directory: publish -r takes the files in it")
    if not path.exists():
        raise MisuseError(f"{file}: there is no such file")
    return path


def named_files(given: Sequence[str], *, recursive: bool) -> list[tuple[str, Path]]:
    """What to call each file, and its path; of a folder every regular file below it, named from the folder on, sorted.

    Links in a folder are left alone: they may lead out of it.

    Raises:
        MisuseError: a folder without `recursive`, one without files, one that cannot be read, or nothing there.
    """
    found: list[tuple[str, Path]] = []
    for file in given:
        path = Path(file)
        if not (recursive and path.is_dir()):
            found.append((path.name, regular_file(file)))
            continue
        base = path.resolve()
        below = [(f"{base.name}/{one.relative_to(base)}", one) for one in _below(base)]
        if not below:
            raise MisuseError(f"{file}: there is no file in this directory")
        found += sorted(below)
    return found


def _below(folder: Path) -> Iterator[Path]:
    def refuse(e: OSError) -> None:
        raise MisuseError(f"{e.filename}: cannot be read ({e.strerror})")

    for place, _, names in os.walk(folder, onerror=refuse):
        for name in names:
            path = Path(place) / name
            if stat.S_ISREG(_mode(path)):
                yield path


def _mode(path: Path) -> int:
    try:
        return path.lstat().st_mode
    except OSError as e:
        raise MisuseError(f"{path}: cannot be read ({e.strerror})") from e


def _size(path: Path) -> int:
    """Bytes, for the progress bar; a file that is gone meanwhile is told of when its turn comes."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


class _Bytes:
    """Bytes of all files together, from the threads that send them, for one progress bar."""

    def __init__(self, total: int, watch: Callable[[int, int | None], None] | None) -> None:
        self._total, self._watch = total, watch
        self._done = 0
        self._lock = threading.Lock()

    def of_one(self) -> Callable[[int, int | None], None] | None:
        """The callback for one file."""
        if self._watch is None:
            return None
        before = [0]

        def note(done: int, _total: int | None) -> None:
            with self._lock:
                self._done += done - before[0]
                before[0] = done
                assert self._watch is not None
                self._watch(self._done, self._total)

        return note


def publish_all(
    client: Client,
    files: Sequence[tuple[str, Path]],
    said: dict[str, Any],
    done: Done,
    watch: Callable[[int, int | None], None] | None,
) -> None:
    """Publish files; `done` is told of each, in their order, with what became of it.

    When one fails no further one is begun, `done` is still told of those that were published, and the error is raised.
    """
    counter = _Bytes(sum(_size(path) for _, path in files), watch)

    def one(name: str, path: Path) -> Published:
        media_type = said["media_type"] or mimetypes.guess_type(path.name)[0]
        return client.publish(path, progress=counter.of_one(), **{**said, "name": name, "media_type": media_type})

    with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="publish") as pool:
        under_way = [(path, pool.submit(one, name, path)) for name, path in files]
        try:
            while under_way:
                path, future = under_way[0]
                done(path, future.result())
                del under_way[0]
        except Exception:
            pool.shutdown(cancel_futures=True)
            _tell_of_the_rest(under_way, done)
            raise
        except BaseException:  # Ctrl-C: what is being sent is given up
            pool.shutdown(wait=False, cancel_futures=True)
            client.close()
            raise


def _tell_of_the_rest(under_way: Sequence[tuple[Path, Future[Published]]], done: Done) -> None:
    for path, future in under_way:
        if not future.cancelled() and future.exception() is None:
            done(path, future.result())
