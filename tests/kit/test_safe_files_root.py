"""Paths cannot leave their root, whatever they are made of and whoever swaps folders meanwhile."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing as mp
import os
import socket
import threading
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightshift_kit.errors import NotRegularFile, PathEscape, StorageIo, StorageUnsupported
from nightshift_kit.safe_files import Root, check_relative
from tests.support.syscall_faults import fail_calls, in_child


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    (tmp_path / "root" / "cfg").mkdir(parents=True)
    (tmp_path / "root" / "cfg" / "a.json").write_bytes(b"inside")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a.json").write_bytes(b"SECRET")
    with Root(tmp_path / "root") as opened:
        yield opened


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "/",
        "/etc/passwd",
        "../secret/a.json",
        "cfg/../../secret/a.json",
        "cfg/../cfg/a.json",
        "cfg//a.json",
        "./cfg/a.json",
        "cfg/",
        "cfg/a.json\0",
        "cfg/\0",
        "a\nb",
        "a\x7fb",
        "cfg\\a.json",
        "..\\secret",
        "\ud800.json",
        "\uff0e\uff0e/secret/a.json",
        "\uff0e\uff0e\uff0fsecret",
        "\u2025/secret/a.json",
        "\u2024\u2024/x",
        "a\u2026json",
        "cfg\u2215a.json",
        "cfg\u2044a.json",
        "cfg\u29f8a.json",
        "cfg\uff3ca.json",
        "x" * 256,
        "x/" * 600 + "x",
    ],
)
def test_paths_that_are_none_are_refused(root: Root, path: str) -> None:
    for use in (root.open, root.read, root.exists):
        with pytest.raises(PathEscape):
            use(path)


@pytest.mark.parametrize(
    "path", ["a", "cfg/a.json", "wärme.json", "日本/語.json", ".hidden", "a..b", "...", "ﬁx.json"]
)
def test_paths_that_mean_one_thing_pass(path: str) -> None:
    assert check_relative(path) == path


@given(st.text(max_size=30))
def test_what_passes_stays_beneath(path: str) -> None:
    try:
        check_relative(path)
    except PathEscape:
        return
    assert os.path.normpath(f"/root/{path}") == f"/root/{path}"


def test_reading_and_listing(root: Root) -> None:
    assert root.read("cfg/a.json") == b"inside"
    assert root.exists("cfg/a.json")
    assert not root.exists("cfg/b.json")
    assert not root.exists("nowhere/b.json")
    assert root.listdir() == ["cfg"]
    assert root.listdir("cfg") == ["a.json"]
    assert list(root.files()) == ["cfg/a.json"]
    with pytest.raises(FileNotFoundError):
        root.read("cfg/b.json")
    with pytest.raises(FileNotFoundError):
        root.listdir("nowhere")
    with pytest.raises(NotRegularFile):
        root.listdir("cfg/a.json")


def test_links_are_refused_wherever_they_stand(root: Root, tmp_path: Path) -> None:
    (root.path / "out").symlink_to(tmp_path / "secret")
    (root.path / "in").symlink_to("cfg")
    (root.path / "cfg" / "link.json").symlink_to("a.json")
    (root.path / "magic").symlink_to("/proc/self/root")
    for path in ("out/a.json", "in/a.json", "cfg/link.json", "magic/etc/passwd"):
        with pytest.raises(PathEscape):
            root.read(path)
        with pytest.raises(PathEscape):
            root.exists(path)
        with pytest.raises(PathEscape):
            root.open(path, os.O_WRONLY | os.O_CREAT)
    with pytest.raises(PathEscape):
        root.listdir("out")
    assert list(root.files()) == ["cfg/a.json"]


def test_a_hard_link_is_refused_and_not_emptied(root: Root, tmp_path: Path) -> None:
    os.link(tmp_path / "secret" / "a.json", root.path / "cfg" / "hard.json")
    for flags in (os.O_RDONLY, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_CREAT | os.O_TRUNC):
        with pytest.raises(PathEscape, match="hard link"):
            root.open("cfg/hard.json", flags)
    assert (tmp_path / "secret" / "a.json").read_bytes() == b"SECRET"


def test_what_is_no_regular_file_is_refused_without_waiting(root: Root) -> None:
    os.mkfifo(root.path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root.path / "socket"))
        for path in ("fifo", "socket", "cfg"):
            for flags in (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY | os.O_CREAT):
                with pytest.raises(NotRegularFile):
                    root.open(path, flags)
            with pytest.raises(NotRegularFile):
                root.exists(path)


def test_devices_are_refused() -> None:
    with Root("/dev") as dev, pytest.raises(NotRegularFile):
        dev.read("null")


def test_a_file_larger_than_allowed_is_refused(root: Root) -> None:
    with pytest.raises(NotRegularFile, match="larger"):
        root.read("cfg/a.json", limit_bytes=5)
    assert root.read("cfg/a.json", limit_bytes=6) == b"inside"


def test_creating_truncating_and_refusing_to_create(root: Root) -> None:
    handle = root.open("cfg/new.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(handle, b"12345")
    os.close(handle)
    assert (root.path / "cfg" / "new.json").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        root.open("cfg/new.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    handle = root.open("cfg/new.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.close(handle)
    assert root.read("cfg/new.json") == b""
    with pytest.raises(FileNotFoundError):
        root.open("cfg/other.json", os.O_WRONLY)


def test_folders_are_made_beneath_only(root: Root, tmp_path: Path) -> None:
    os.close(root.open_folder("a/b/c", make=True))
    assert (root.path / "a" / "b" / "c").is_dir()
    (root.path / "out").symlink_to(tmp_path / "secret")
    with pytest.raises(PathEscape):
        root.open_folder("out/new", make=True)
    assert sorted(p.name for p in (tmp_path / "secret").iterdir()) == ["a.json"]


def test_a_moved_root_is_noticed(root: Root, tmp_path: Path) -> None:
    root.require_in_place()
    root.path.rename(tmp_path / "elsewhere")
    with pytest.raises(StorageIo, match="gone"):
        root.require_in_place()
    (tmp_path / "root").mkdir()
    with pytest.raises(StorageIo, match="replaced"):
        root.require_in_place()


def test_a_closed_root_gives_nothing(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.close()
    root.close()
    with pytest.raises(StorageIo):
        root.read("a")


def test_a_root_that_is_not_there_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(StorageIo, match="ENOENT"):
        Root(tmp_path / "nowhere")


def _without_openat2(path: str) -> str:
    fail_calls(("openat2",), errno.ENOSYS)
    try:
        Root(path)
    except StorageUnsupported as error:
        return str(error)
    return ""


def test_a_kernel_without_openat2_is_told_so(tmp_path: Path) -> None:
    assert "Linux 5.6" in in_child(_without_openat2, str(tmp_path))


def _swap(one: str, other: str, stop: Event) -> None:
    libc = ctypes.CDLL(None)
    paths = os.fsencode(one), os.fsencode(other)
    while not stop.is_set():
        for _ in range(1000):
            libc.renameat2(-100, paths[0], -100, paths[1], 2)


def race(root: Root, tmp_path: Path, tries: int) -> tuple[int, int, int]:
    """Read while another process swaps the folder with a link to the secret: (escapes, good, refused)."""
    (root.path / "evil").symlink_to(tmp_path / "secret")
    context = mp.get_context("spawn")
    stop = context.Event()
    swapper = context.Process(target=_swap, args=(str(root.path / "cfg"), str(root.path / "evil"), stop))
    swapper.start()
    escapes = good = refused = 0
    try:
        while tries or not (good and refused):
            tries = max(0, tries - 1)
            try:
                content = root.read("cfg/a.json")
            except PathEscape:
                refused += 1
            else:
                escapes += content == b"SECRET"
                good += content == b"inside"
    finally:
        stop.set()
        swapper.join(30)
    return escapes, good, refused


def test_no_race_is_lost_against_a_swapped_link(root: Root, tmp_path: Path) -> None:
    escapes, good, refused = race(root, tmp_path, 20_000)
    assert escapes == 0
    assert good
    assert refused


@pytest.mark.slow
def test_no_race_is_lost_in_the_long_run(root: Root, tmp_path: Path) -> None:
    assert race(root, tmp_path, 500_000)[0] == 0


def test_writing_never_lands_outside_while_links_are_swapped(root: Root, tmp_path: Path) -> None:
    (root.path / "evil").symlink_to(tmp_path / "secret")
    context = mp.get_context("spawn")
    stop = context.Event()
    swapper = context.Process(target=_swap, args=(str(root.path / "cfg"), str(root.path / "evil"), stop))
    swapper.start()
    written = 0
    try:
        for i in range(5000):
            try:
                handle = root.open(f"cfg/n{i % 7}.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            except PathEscape:
                continue
            os.write(handle, b"mine")
            os.close(handle)
            written += 1
    finally:
        stop.set()
        swapper.join(30)
    assert written
    assert [p.name for p in (tmp_path / "secret").iterdir()] == ["a.json"]
    assert (tmp_path / "secret" / "a.json").read_bytes() == b"SECRET"


def test_threads_share_a_root(root: Root) -> None:
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(root.read("cfg/a.json"))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"inside"] * 20
