"""The caching apt proxy: how nodes without a route out get packages.

One apt-cacher-ng serves all labs. It listens on an address of its own that every lab's host link
carries (see :mod:`llamalab.network`), so that only this host and its labs reach it. The first lab
starts it, the last one stops it; its cache stays.
"""

from __future__ import annotations

import os
import shutil
import socket
import time

from . import host, supervise
from .names import PROXY_ADDRESS, PROXY_PORT, PROXY_UNIT, LabError

_USER = "apt-cacher-ng"  # made by the package

_CONFIGURATION = """\
CacheDir: {cache}
LogDir: {logs}
SocketPath: {logs}/socket
PidFile: {logs}/pid
SupportDir: /usr/lib/apt-cacher-ng
BindAddress: {address}
Port: {port}
ForeGround: 1
# Keep what nobody asked for in a while: labs are up for minutes, weeks apart.
ExThreshold: 60
"""


def answers(seconds: float = 0.5) -> bool:
    """Whether the proxy accepts connections."""
    try:
        with socket.create_connection((PROXY_ADDRESS, PROXY_PORT), timeout=seconds):
            return True
    except OSError:
        return False


def ensure() -> bool:
    """Start the proxy unless it runs; tell whether that was needed.

    The caller holds the lock ``shared``.
    """
    if supervise.state(PROXY_UNIT) == "running" and answers():
        return False
    supervise.kill(PROXY_UNIT)
    directory = host.CACHE / "apt"
    for part in ("cache", "log"):
        host.make_directory(directory / part)
        shutil.chown(directory / part, _USER, _USER)
    host.make_directory(directory / "etc")
    text = _CONFIGURATION.format(
        cache=directory / "cache", logs=directory / "log", address=PROXY_ADDRESS, port=PROXY_PORT
    )
    upstream = os.environ.get("http_proxy", "")
    if upstream:
        text += f"Proxy: {upstream}\n"
    host.write_text(directory / "etc" / "acng.conf", text)
    log = directory / "log" / "console.log"
    supervise.spawn(
        PROXY_UNIT,
        [
            *("setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups"),
            *("apt-cacher-ng", "-c", str(directory / "etc")),
        ],
        log,
        {},
    )
    deadline = time.monotonic() + 15
    while not answers():
        if time.monotonic() > deadline:
            raise LabError(f"the apt proxy does not answer at {PROXY_ADDRESS}:{PROXY_PORT}; see {log}")
        time.sleep(0.05)
    return True


def stop() -> bool:
    """Stop the proxy; tell whether it ran. The caller holds the lock ``shared``."""
    return supervise.kill(PROXY_UNIT)
