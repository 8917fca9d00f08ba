"""Two hosts on one machine: network namespaces with an address each and a cable between them."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Host:
    """A network namespace.

    Attributes:
        name: The namespace's.
        address: Its address on the cable.
        interface: Its end of the cable.
    """

    name: str
    address: str
    interface: str

    def start(
        self, *command: str, output: Path, environment: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[bytes]":
        """Start a program on the host; what it says on both streams goes to a file."""
        variables = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            # What Gloo would take instead is where the host's name leads to, which is not in this namespace.
            "GLOO_SOCKET_IFNAME": self.interface,
            **(environment or {}),
        }
        with output.open("wb") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=variables,
                start_new_session=True,
            )

    def unplug(self) -> None:
        """Take the host off the network, as if it had lost its power: nobody is told."""
        _ip("-n", self.name, "link", "set", self.interface, "down")


def why_no_hosts() -> str | None:
    """Why there can be none on this machine; None if there can."""
    name = f"agiledpo{os.getpid()}"
    try:
        _ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        return f"network namespaces need root and `ip` (iproute2): {reason}"
    _ip("netns", "del", name)
    return None


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Make two hosts, and take them down with all that runs on them."""
    number = os.getpid()
    one = Host(f"agiledpo{number}a", "10.231.7.1", f"ad{number}a")
    two = Host(f"agiledpo{number}b", "10.231.7.2", f"ad{number}b")
    made = []
    try:
        for host in (one, two):
            _ip("netns", "add", host.name)
            made.append(host)
        _ip(
            "link", "add", one.interface, "netns", one.name,
            "type", "veth", "peer", "name", two.interface, "netns", two.name,
        )  # fmt: skip
        for host in (one, two):
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.interface)
            _ip("-n", host.name, "link", "set", host.interface, "up")
            _ip("-n", host.name, "link", "set", "lo", "up")
        yield one, two
    finally:
        for host in made:
            for process in _ip("netns", "pids", host.name).split():
                subprocess.run(["kill", "-9", process], check=False, capture_output=True)
            _ip("netns", "del", host.name)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
