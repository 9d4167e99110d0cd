"""Listening sockets, and the limit of open files that connections need."""

from __future__ import annotations

import contextlib
import errno
import os
import socket

from synap.server.settings import ServerConfig


def listen(config: ServerConfig) -> list[socket.socket]:
    """Listen on all addresses of the host, on one port. Raises `OSError`."""
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError:  # no name: a label is empty or too long
        raise socket.gaierror(socket.EAI_NONAME, "not the name of a host") from None
    addresses = list(dict.fromkeys((family, address[:2]) for family, _, _, _, address in found))
    sockets: list[socket.socket] = []
    port = config.port
    try:
        for family, (host, _) in addresses:
            try:
                opened = socket.socket(family, socket.SOCK_STREAM)
            except OSError:
                continue  # this machine has no IPv6
            sockets.append(opened)
            if os.name == "posix":
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            _notice_dead_peers(opened)
            try:
                opened.bind((host, port))
            except OSError as error:
                if len(sockets) > 1 and error.errno == errno.EADDRNOTAVAIL:
                    sockets.pop().close()
                    continue
                raise
            port = opened.getsockname()[1]
            opened.listen(4096)
            opened.setblocking(False)
        if not sockets:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    except OSError:
        for opened in sockets:
            opened.close()
        raise
    return sockets


def _notice_dead_peers(opened: socket.socket) -> None:
    """Turn TCP keepalive on; connections inherit it from the listening socket."""
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def raise_file_limit(connections: int) -> int:
    """Raise the limit of open files for so many connections; returns the number of connections that fit."""
    try:
        import resource
    except ImportError:
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 128
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return max(16, min(connections, soft - 128))
    return connections


def why_not_listening(config: ServerConfig, error: OSError) -> str:
    place = f"{config.host}:{config.port}"
    if error.errno == errno.EADDRINUSE:
        return f"port {config.port} is in use on {config.host}; give another with --port, or 0 for a free one"
    if error.errno == errno.EACCES:
        return f"this user may not listen on {place}"
    return f"can't listen on {place}: {error.strerror or error}"
