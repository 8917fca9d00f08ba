"""TCP connections whose breaking means that the process or the host at the other end is gone.

The kernel, not Python, keeps them alive: a process that computes for minutes without letting any other of its threads
run is not taken for dead, and one that is killed is known to be at once.
"""

import json
import os
import socket
import sys
import weakref
from typing import Any

# What a child that was forked has to let go of: while it held a copy, nobody could see that its parent is dead.
_open: "weakref.WeakSet[socket.socket]" = weakref.WeakSet()


def _let_go() -> None:
    for link in list(_open):
        if (descriptor := link.detach()) >= 0:
            os.close(descriptor)


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_let_go)


def listen() -> socket.socket:
    """A socket that listens on a free port of all interfaces."""
    if socket.has_dualstack_ipv6():
        listening = socket.create_server(("", 0), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
    else:
        listening = socket.create_server(("", 0), backlog=1024)
    _open.add(listening)
    return listening


def connect(host: str, port: int, patience: float) -> socket.socket:
    """Connect to who listens there.

    Args:
        host: Its name or address.
        port: Its port.
        patience: Seconds after which the connection is given up; a host that is gone later is noticed in two thirds
            of that.

    Raises:
        OSError: There is no way there.
    """
    link = socket.create_connection((host, port), timeout=patience)
    link.settimeout(None)
    keep_alive(link, patience)
    return link


def keep_alive(link: socket.socket, patience: float) -> None:
    """Have the kernel ask the other end every few seconds whether it is there, and break the link if it is not."""
    _open.add(link)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    pause = max(1, round(patience / 10))
    if sys.platform == "darwin":
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPALIVE, pause)
    else:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, pause)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, pause)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)
    if sys.platform == "linux":  # the same for what was sent and is not confirmed, which TCP repeats for a quarter hour
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000 * pause)


def say(link: socket.socket, message: dict[str, Any]) -> bool:
    """Send a message of plain values; False if the link is broken."""
    try:
        link.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        return False
    return True


class Ear:
    """Hears the messages of one link, one at a time.

    Args:
        link: The link.
    """

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self._rest = b""

    def hear(self) -> list[dict[str, Any]] | None:
        """Wait for something to come and return the messages that it completes.

        Returns:
            The messages; None when the link has ended, or when what came is none of ours.
        """
        try:
            received = self.link.recv(1 << 16)
            if not received:
                return None
            *lines, self._rest = (self._rest + received).split(b"\n")
            messages = [json.loads(line) for line in lines]
        except (OSError, ValueError):
            return None
        return messages if all(isinstance(message, dict) for message in messages) else None
