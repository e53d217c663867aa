"""Writes the corpus of the fuzzers anew, as ``python -m tests.fuzz.record``.

What the monitor and the launcher are told comes from real traffic: a zygote whose sockets take
notes serves some containers.  The rest are examples of what people write.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.build import CORPUS, TARGETS
from tests.integration.containerd import BOUND_S, eventually, make_rootfs, scripts
from tests.integration.fifos import Reader
from tests.integration.shim import Host

NOTES = "PYSHIM_TEST_NOTES"  # where the zygote and its children write
HEAR = b"\4"  # an operation of harness/monitor_channel.c
STATE = b"\2\0"  # the type of that message
STATE_BYTES = 64
SHORTEST_BYTES = 16  # a HELLO alone says nothing new
V2 = b"\r\n\r\n\0\r\nQUIT\n"


def commands(*told: bytes, kinds: bytes = b"") -> bytes:
    """What harness/relay_control.c reads: the first command has descriptors of these kinds."""
    first, *others = told
    made = bytes([len(kinds)]) + kinds + struct.pack("<H", len(first)) + first
    return made + b"".join(b"\0" + struct.pack("<H", len(each)) + each for each in others)


EXAMPLES = {
    "relay_header": [
        b"PROXY TCP4 192.0.2.1 198.51.100.2 40000 443\r\nGET /",
        b"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n",
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
        V2 + b"\x20\x00\x00\x00",
        V2 + b"\x21\x11\x00\x0c" + bytes([192, 0, 2, 1, 198, 51, 100, 2, 156, 64, 1, 187]),
        V2 + b"\x21\x21\x00\x24" + bytes(range(36)),
        V2 + b"\x21\x11\x00\x14" + bytes(12) + b"\x04\x00\x05hello",
        V2 + b"\x21\x31\x00\xd8" + bytes(216),
    ],
    "relay_settings": [
        b"\0-proto\0udp\0-host-ip\0::\0-host-port=53\0--container-ip\x00172.17.0.2"
        b"\0-container-port\x0053\0-use-listen-fd=true",
        b"\1PORTPROXY_CONNECT_TIMEOUT=500ms\0PORTPROXY_ACCESS=!192.0.2.0/24,2001:db8::/32,all"
        b"\0PORTPROXY_BACKENDS=10.0.0.1:80,[fd00::1]:81\0PORTPROXY_BALANCE=least",
        b'\2[defaults]\nidle_timeout = "5m" # all\n[[mapping]]\nproto = "tcp"\nhost_port = 80\n'
        b'proxy_in = ["10.0.0.0/8"]\nproxy_out = "v2"\nmax_connections = 10k\n',
        b"\3# one\ntcp 0.0.0.0 8000-8003 172.17.0.2 80-83 reset=propagate log=journald\n"
        b"udp :: 53 fd00::2 53 udp_timeout=10s fd=5\n",
    ],
    "relay_control": [
        commands(
            b"hello 1",
            b"add tcp 127.0.0.1 8000-8003 10.0.0.2 80-83 partial=true idle_timeout=1h label=web",
            b"start 1",
            b"update 1 tcp 127.0.0.1 8000-8003 10.0.0.3 80 backends=10.0.0.4:80 balance=least",
            b"backend 1 1 down",
            b"list 0",
            b"connections 0",
            b"remove 1 500",
        ),
        commands(
            b"add udp :: 53 fd00::2 53 fd=0 udp_timeout=5s access=10.0.0.0/8,!all",
            b"start 1",
            b"closes 10",
            b"kill 7",
            b"drain 0",
            kinds=b"\2",
        ),
        commands(
            b"add tcp 0.0.0.0 0 /run/app.sock 0 listen_netns=0 backend_netns=1",
            b"add tcp 0.0.0.0 1-9 @app 0 max_per_client=3 proxy_in=::1 congestion=reno",
            b"list 0",
            b"remove 2",
            kinds=b"\5\5",
        ),
        commands(
            b"add tcp 127.0.0.1 0 10.0.0.2 80 shared=0",
            b"add tcp 127.0.0.1 80-81 10.0.0.2 80",
            b"share 1",
            b"share 2",
            b"start 2",
            b"share 2",
            b"update 1 tcp 127.0.0.1 0 10.0.0.3 80 shared=0",
            b"remove 2 0",
            kinds=b"\0",
        ),
    ],
    "pyinit_options": [
        b"\7tini\0-vvg\0-e\x00143:0\0-p\0SIGTERM\0--\0sh\0TINI_SUBREAPER=\0TINI_VERBOSITY=3",
        b"\5dumb-init\0--rewrite\x0015:0\0-c\0sh\0DUMB_INIT_DEBUG=1\0PATH=/bin",
        b"\3catatonit\0-g\0sh\0CATATONIT_DEBUG=1",
        b"\2pause\0-x",
        b"\4pyinit\0--as=native\0-s\0sh\0PYINIT_OPTS=--stop=10s:KILL --grace 1m --env=A=b "
        b"--user=1:2,3 --delay=USR1:5ms --absorb=RTMIN+1,INT --log=json --timeout=1.5s",
        b"\5init\0--child-pdeath=9\0--wait=last\0--chdir=/tmp\0sh\0PYINIT_AS=tini",
    ],
    "launcher_interpreter": [b"\1/run/pyshim          /usr/bin/python3\nmore", b"\0\n", b"\0"],
}

ZYGOTE = f"""
import array, os, socket, stat, struct, sys
from pyshim.zygote import address, server
from pyshim.service import link
sys.executable = sys.argv[1]
notes = os.environ[{NOTES!r}]
def content(fd):
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return os.pread(fd, 65535, 0)
    return b""
def note(kind, data, fds):
    with open(f"{{notes}}/{{kind}}-{{os.getpid()}}", "ab") as file:
        file.write(struct.pack("<II", len(fds), len(data)) + data)
        for fd in fds:
            held = content(fd)
            file.write(struct.pack("<II", os.fstat(fd).st_mode, len(held)) + held)
sent = link.Link._sent
def noted(self, data, rights):
    note("monitor", data, [fd for _, _, fds in rights for fd in fds])
    return sent(self, data, rights)
link.Link._sent = noted
send, send_fds = socket.socket.send, socket.send_fds
def say(self, data, *rest):
    note("launcher", data, [])
    return send(self, data, *rest)
def say_fds(sock, parts, fds, *rest):
    note("launcher", b"".join(parts), fds)
    return send_fds(sock, parts, fds, *rest)
socket.socket.send, socket.send_fds = say, say_fds
sys.exit(server.run(address.socket_path(sys.argv[1]), detach=False))
"""


def main() -> int:
    """Replaces the corpus of every target."""
    shutil.rmtree(CORPUS, ignore_errors=True)
    for target in TARGETS:
        target.corpus.mkdir(parents=True)
    for name, inputs in EXAMPLES.items():
        for number, data in enumerate(inputs):
            (CORPUS / name / f"example-{number}").write_bytes(data)
    with tempfile.TemporaryDirectory(prefix="pyshim-record-") as folder:
        home = Path(folder)
        make_rootfs(home / "rootfs")
        (home / "notes").mkdir()
        (home / "h").mkdir()
        use(home)
        keep(home / "notes")
    return 0


def use(home: Path) -> None:
    """Containers of several kinds, served by a zygote that takes notes."""
    host = Host(home / "h", home / "rootfs")
    python = str(scripts().absolute() / "python3")
    host.env["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
    env = {**host.env, NOTES: str(home / "notes")}
    zygote = subprocess.Popen([sys.executable, "-I", "-c", ZYGOTE, python], env=env)
    try:
        eventually(lambda: list(host.runtime.glob("*.sock")), "the zygote listens")
        container = host.container("/bin/sh", "-c", "echo said; read line; exit 3")
        os.mkfifo(home / "in")
        readers = [Reader(home / "out"), Reader(home / "err")]
        container.create(stdin=home / "in", stdout=home / "out", stderr=home / "err")
        container.start()
        container.run("exec", "/bin/true")
        eventually(lambda: not host.services(), "the service has parked")
        (home / "in").write_bytes(b"x\n")
        container.wait()
        container.finish()
        for reader in readers:
            reader.all()
        with contextlib.suppress(Exception):
            host.container("/bin/true").create(runtime=Path("/no/such/runtime"))
    finally:
        zygote.terminate()
        zygote.wait(BOUND_S)
        host.end()


def keep(notes: Path) -> None:
    """Makes an input of what each process has said."""
    for target, kind in (("monitor_channel", "monitor"), ("launcher_answer", "launcher")):
        limit = next(t.max_bytes for t in TARGETS if t.name == target)
        for number, path in enumerate(sorted(notes.glob(f"{kind}-*"))):
            parts = [encode(kind, *each) for each in datagrams(path.read_bytes())]
            data = b"\0" if kind == "monitor" else b""
            for part in parts:
                if len(data) + len(part) <= limit:
                    data += part
            if len(data) > SHORTEST_BYTES:
                (CORPUS / target / f"recorded-{number}").write_bytes(data)


def datagrams(text: bytes) -> list[tuple[bytes, list[tuple[int, bytes]]]]:
    """What was noted: each datagram with the mode and content of its descriptors."""
    found = []
    at = 0
    while at < len(text):
        count, size = struct.unpack_from("<II", text, at)
        at += 8
        data = text[at : at + size]
        at += size
        fds = []
        for _ in range(count):
            mode, size = struct.unpack_from("<II", text, at)
            fds.append((mode, text[at + 8 : at + 8 + size]))
            at += 8 + size
        found.append((data, fds))
    return found


def encode(kind: str, data: bytes, fds: list[tuple[int, bytes]]) -> bytes:
    """A datagram in the form that the harness reads."""
    fds = [(mode, without_our_folders(content)) for mode, content in fds]
    if kind == "monitor" and data[4:6] == STATE:
        fds = [(mode, content[:STATE_BYTES]) for mode, content in fds]  # nobody reads it there
    size = struct.pack("<H", len(data)) + data
    if kind == "launcher":
        fds = fds[:4]
        return bytes([len(fds)]) + b"".join(memfd(1, content) for _, content in fds) + size
    fds = fds[:6]
    kinds = b"".join(memfd(11, content) if content else described(mode) for mode, content in fds)
    return bytes([len(fds) << 4 | 15]) + kinds + size + HEAR


def without_our_folders(content: bytes) -> bytes:
    """The corpus does not tell where it was made."""
    return content.replace(os.fsencode(scripts().absolute()), b"/opt/pyshim/bin")


def memfd(kind: int, content: bytes) -> bytes:
    """A descriptor that is a file in memory."""
    return bytes([kind]) + struct.pack("<H", len(content)) + content


def described(mode: int) -> bytes:
    """Another one, by its type."""
    if stat.S_ISFIFO(mode):
        return b"\0"
    return b"\2" if stat.S_ISSOCK(mode) else b"\4"


if __name__ == "__main__":
    sys.exit(main())
