"""A container's mounts: performed as its Create asks, and undone."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyshim.api.task_pb2 import Mount
from pyshim.runtime import idmap, mounts
from tests.integration.containerd import BOUND_S, mounts_below

LAYERS = 120


@pytest.fixture
def rootfs(tmp_path: Path) -> Iterator[Path]:
    """Where to mount; nothing is mounted there afterwards."""
    folder = tmp_path / "bundle/rootfs"
    folder.parent.mkdir()
    yield folder
    mounts.unmount_all(str(folder))
    assert mounts_below(tmp_path) == []


def folder_with(path: Path, name: str, text: str = "text") -> Path:
    """A folder with one file."""
    path.mkdir(parents=True)
    (path / name).write_text(text)
    return path


def bound(source: Path, *options: str, target: str = "") -> Mount:
    return Mount(type="bind", source=str(source), target=target, options=["rbind", *options])


def overlay(tmp_path: Path, layers: list[Path], *options: str) -> Mount:
    """An overlay of ``layers``, with folders of its own to write to."""
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    lower = "lowerdir=" + ":".join(map(str, layers))
    rest = [f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work", *options]
    return Mount(type="overlay", source="overlay", options=[lower, *rest])


def test_a_bind_that_is_read_only(tmp_path: Path, rootfs: Path) -> None:
    source = folder_with(tmp_path / "source", "file")
    mounts.mount_all([bound(source, "ro", "nosuid")], str(rootfs))
    assert (rootfs / "file").read_text() == "text"
    with pytest.raises(OSError, match="Read-only"):
        (rootfs / "other").touch()
    mounts.unmount_all(str(rootfs))
    assert list(rootfs.iterdir()) == []


def test_the_last_word_of_the_options_counts(tmp_path: Path, rootfs: Path) -> None:
    options = [
        "ro",
        "rw",
        "noexec",
        "exec",
        "strictatime",
        "nostrictatime",
        "norelatime",
        "size=8k",
    ]
    mounts.mount_all([Mount(type="tmpfs", source="tmpfs", options=options)], str(rootfs))
    (rootfs / "file").touch()
    (line,) = (
        row for row in Path("/proc/self/mounts").read_text().splitlines() if str(rootfs) in row
    )
    assert {"rw", "size=8k"} <= set(line.split()[3].split(","))
    assert not {"ro", "noexec", "strictatime"} & set(line.split()[3].split(","))


def test_several_mounts_one_in_the_other(tmp_path: Path, rootfs: Path) -> None:
    outer = folder_with(tmp_path / "outer", "file")
    (outer / "data").mkdir()
    inner = folder_with(tmp_path / "inner", "deep")
    mounts.mount_all([bound(outer), bound(inner, target="/data")], str(rootfs))
    assert (rootfs / "data/deep").exists()
    mounts.unmount_all(str(rootfs))
    assert mounts_below(tmp_path) == []


def test_mounts_are_found_by_another_name_of_the_bundle(tmp_path: Path, rootfs: Path) -> None:
    source = folder_with(tmp_path / "source", "file")
    inner = rootfs / "inner"
    inner.mkdir(parents=True)
    mounts.mount_all([bound(source, target="/inner")], str(rootfs))
    link = tmp_path / "link"
    link.symlink_to(rootfs.parent)
    mounts.unmount_all(f"{link}/../bundle/rootfs")
    assert mounts_below(tmp_path) == []


def test_a_target_does_not_lead_out(tmp_path: Path, rootfs: Path) -> None:
    source = folder_with(tmp_path / "source", "file")
    (rootfs / "up").mkdir(parents=True)
    mounts.mount_all([bound(source, target="../../up")], str(rootfs))
    assert (rootfs / "up/file").exists()
    mounts.unmount_all(str(rootfs))
    assert mounts_below(tmp_path) == []


@pytest.mark.parametrize("link", ["{outside}", "../../../../{outside}", "other/../{outside}"])
def test_a_symlink_of_the_image_does_not_lead_out(tmp_path: Path, rootfs: Path, link: str) -> None:
    outside = folder_with(tmp_path / "outside", "file")
    image = tmp_path / "image"
    inner = Path(f"{image}{outside}")
    inner.mkdir(parents=True)
    (image / "data").symlink_to(link.format(outside=outside))
    source = folder_with(tmp_path / "source", "mounted")
    mounts.mount_all([bound(image), bound(source, target="data")], str(rootfs))
    assert not (outside / "mounted").exists()
    assert Path(f"{rootfs}{outside}/mounted").exists()
    mounts.unmount_all(str(rootfs))
    assert mounts_below(tmp_path) == []


def test_symlinks_in_a_circle(tmp_path: Path, rootfs: Path) -> None:
    image = folder_with(tmp_path / "image", "file")
    (image / "a").symlink_to("b")
    (image / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        mounts.mount_all([bound(image), bound(image, target="a")], str(rootfs))
    assert mounts_below(tmp_path) == []


def test_a_mount_that_fails_undoes_those_before(tmp_path: Path, rootfs: Path) -> None:
    source = folder_with(tmp_path / "source", "file")
    with pytest.raises(OSError, match="nothing"):
        mounts.mount_all([bound(source), bound(tmp_path / "nothing")], str(rootfs))
    assert mounts_below(tmp_path) == []


def test_a_mount_that_hangs_is_left_and_undone(
    tmp_path: Path, rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a server that does not answer, and then does after all."""
    source = folder_with(tmp_path / "source", "file")
    answered = threading.Event()
    real = mounts._libc

    def mount(*arguments: object) -> int:
        assert answered.wait(BOUND_S)
        result: int = real.mount(*arguments)
        return result

    hanging = SimpleNamespace(mount=mount, umount2=real.umount2, unshare=real.unshare)
    monkeypatch.setattr(mounts, "_libc", hanging)
    monkeypatch.setattr(mounts, "MOUNT_TIMEOUT_S", 0.1)
    before = set(threading.enumerate())
    with pytest.raises(TimeoutError, match=f"mount bind {source}"):
        mounts.mount_all([bound(source)], str(rootfs))
    (hung,) = set(threading.enumerate()) - before
    answered.set()
    hung.join(BOUND_S)
    assert not hung.is_alive()
    assert mounts_below(tmp_path) == []


def test_a_mount_for_which_there_is_no_process_fails(
    tmp_path: Path, rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder_with(tmp_path / "source", "file")

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(BlockingIOError, match="Resource temporarily unavailable"):
        mounts.mount_all([bound(source)], str(rootfs))
    assert mounts_below(tmp_path) == []


def test_an_overlay_whose_options_exceed_a_page(tmp_path: Path, rootfs: Path) -> None:
    base = tmp_path / "snapshots"
    layers = [folder_with(base / f"{n}/fs", f"file{n}") for n in range(LAYERS)]
    mount = overlay(tmp_path, layers)
    assert len(",".join(mount.options)) > mounts.MAX_DATA_BYTES
    before = os.getcwd()
    mounts.mount_all([mount], str(rootfs))
    assert {f"file{n}" for n in range(LAYERS)} <= set(os.listdir(rootfs))
    assert os.getcwd() == before
    (rootfs / "new").write_text("written")
    assert (tmp_path / "upper/new").read_text() == "written"


def test_options_that_no_shortening_helps_are_refused(tmp_path: Path, rootfs: Path) -> None:
    layers = [tmp_path / f"{'x' * 200}{n}" for n in range(30)]
    with pytest.raises(OSError, match="use fewer layers"):
        mounts.mount_all([overlay(tmp_path, layers)], str(rootfs))
    assert mounts_below(tmp_path) == []


@pytest.mark.parametrize("option", [(), ("ro",)])
def test_a_file_as_a_loop_device(tmp_path: Path, rootfs: Path, option: tuple[str, ...]) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(1024 * 1024)
    subprocess.run(["mkfs.ext4", "-q", image], check=True, timeout=BOUND_S)
    mount = Mount(type="ext4", source=str(image), options=["loop", *option])
    mounts.mount_all([mount], str(rootfs))
    assert (rootfs / "lost+found").is_dir()
    mounts.unmount_all(str(rootfs))
    used = [p.read_text() for p in Path("/sys/block").glob("loop*/loop/backing_file")]
    assert f"{image}\n" not in used


MAPS = ("uidmap=0:100000:65536", "gidmap=0:200000:65536")


def test_a_bind_with_shifted_owners(tmp_path: Path, rootfs: Path) -> None:
    source = folder_with(tmp_path / "source", "file")
    mounts.mount_all([bound(source, "ro", *MAPS)], str(rootfs))
    found = (rootfs / "file").stat()
    assert (found.st_uid, found.st_gid) == (100000, 200000)
    with pytest.raises(OSError, match="Read-only"):
        (rootfs / "file").write_text("x")


def test_layers_that_a_killed_service_has_left_are_taken_down(tmp_path: Path, rootfs: Path) -> None:
    """Whoever removes the bundle would remove what is in them."""
    layer = folder_with(tmp_path / "layer", "file")
    left = rootfs.parent / idmap.LAYERS / "0"
    left.mkdir(parents=True)
    with idmap.user_namespace(dict(each.split("=") for each in MAPS), "") as space:
        idmap.bind(str(layer), str(left), space)
    assert mounts_below(tmp_path) == [str(left)]
    mounts.unmount_all(str(rootfs))
    assert mounts_below(tmp_path) == []
    assert not left.parent.exists()
    assert (layer / "file").exists()


def test_a_symlink_in_the_place_of_the_layers_is_not_followed(tmp_path: Path, rootfs: Path) -> None:
    other = tmp_path / "other"
    (other / "empty").mkdir(parents=True)
    (rootfs.parent / idmap.LAYERS).symlink_to(other)
    mounts.unmount_all(str(rootfs))
    assert (other / "empty").is_dir()


def test_an_overlay_with_shifted_layers(tmp_path: Path, rootfs: Path) -> None:
    layers = [folder_with(tmp_path / f"layer{n}", f"file{n}") for n in range(3)]
    mounts.mount_all([overlay(tmp_path, layers, *MAPS)], str(rootfs))
    owners = {(rootfs / f"file{n}").stat().st_uid for n in range(3)}
    assert owners == {100000}
    assert os.listdir(rootfs.parent) == ["rootfs"]
    assert mounts_below(tmp_path) == [str(rootfs)]


@pytest.mark.parametrize("maps", [("uidmap=0:1:1",), ("uidmap=0:1", "gidmap=0:1:1")])
def test_maps_that_are_none(tmp_path: Path, rootfs: Path, maps: tuple[str, ...]) -> None:
    source = folder_with(tmp_path / "source", "file")
    with pytest.raises(OSError, match=r"gidmap=; give both|no id mapping"):
        mounts.mount_all([bound(source, *maps)], str(rootfs))
