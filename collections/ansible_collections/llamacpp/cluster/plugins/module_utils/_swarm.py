# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Take files from peers and give them to peers by BitTorrent for a while; run by systemd, for module swarm.

  python3 _swarm.py CONFIG.json

The module hands this file as it is to systemd on a node, so it uses the standard library and libtorrent 2.1 and nothing
of the collection. CONFIG: ``torrent`` (path of a torrent file of version 2), ``files`` (name in the
torrent -> path; those that are lacking are there already with their size, to be written in place), ``have`` (name ->
text of a ``1`` for each piece that was verified and a ``0`` for others; a file of ``1`` alone is only read),
``locks`` (paths of files to hold locked (flock) as long as files are written), ``address``, ``port``, ``peers``
(``address:port``; nobody else is talked to), ``idle`` (seconds without a byte after which it ends when it has all) and
``stall`` (when it has not), ``rate`` (bytes a second in each direction; 0: no limit).

It says ``READY=1`` once it listens, and then again and again, as ``STATUS``, a JSON object: ``port``, ``bytes`` (of all
files), ``done``, ``complete`` (all verified), ``pieces`` (verified ones as bits, the first one highest, in hexadecimal
digits; none where they are too many to tell), ``received`` and ``sent`` (bytes), ``peers`` (connected), ``banned``
(addresses that sent wrong bytes), and ``error``.

Told to stop, it ends when what arrived has been written.
"""

from __future__ import annotations

import fcntl
import importlib
import ipaddress
import json
import os
import signal
import socket
import sys
import time
from typing import Any, NoReturn

# What libtorrent's own defaults say is for strangers on the internet; these are a few peers of one cluster.
QUIET = {
    # Nobody is looked for, and nobody is told: the peers are in CONFIG.
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_incoming_utp": False,
    "enable_outgoing_utp": False,
    "out_enc_policy": 2,  # plain, as everything on the fabric
    "in_enc_policy": 2,
    "webtorrent_stun_server": "",
    "dht_bootstrap_nodes": "",
    "anonymous_mode": True,
    # The peers ask at this port and no other.
    "max_retry_port_bind": 0,
    "listen_system_port_fallback": False,
}
FAST = {
    # Everybody may take from everybody at once.
    "unchoke_slots_limit": -1,
    "connections_limit": 1000,
    # A peer that starts later, or again, is found soon (seconds).
    "min_reconnect_time": 1,
    "max_failcount": 1 << 20,
    "connection_speed": 200,
    # A peer that is gone without a word is left soon, and its requests go to others (seconds).
    "peer_timeout": 20,
    "request_timeout": 10,
    "piece_timeout": 5,
    "inactivity_timeout": 30,
    "handshake_timeout": 5,
    "peer_connect_timeout": 5,
    # Whole pieces from one peer, as libtorrent prefers them, come from the sender once for each receiver.
    "whole_pieces_threshold": 0,
    "send_buffer_watermark": 4 << 20,
    "send_buffer_low_watermark": 1 << 20,
    "send_buffer_watermark_factor": 150,
    "tick_interval": 100,
    # Rate limits are for peers near by, too.
    "ignore_limits_on_local_network": False,
}
# error | peer | storage | status of alert_category: who was banned, and what the disk says (libtorrent's alert.hpp).
ALERTS = 1 | 2 | 8 | 64
BLOCK = 16 << 10
STATUS_SECONDS = 0.5
# Longer messages systemd throws away (NOTIFY_BUFFER_MAX). Pieces of some 240 GiB fit.
MESSAGE_BYTES = 4096
IDLE = "nobody wants anything any more"
RECONNECT_SECONDS = 2.0
LISTEN_SECONDS = 10.0
# The module held these locks a moment ago; longer, and somebody else has come between.
LOCK_SECONDS = 10.0
# A disk that needs longer for what libtorrent has not written yet does not answer any more.
FLUSH_SECONDS = 60.0


class Engine:
    """One torrent, among given peers."""

    def __init__(self, config: dict[str, Any], library: Any) -> None:
        self.library = library
        self.config = config
        self.locks = [locked(path) for path in config["locks"]]
        self.peers = [split_address(peer) for peer in config["peers"]]
        self.banned: set[str] = set()
        # By what libtorrent calls a file, what people call it.
        self.paths: dict[str, str] = {}
        self.error = ""
        address = config["address"]
        listen = "[%s]:%d" % (address, config["port"]) if ":" in address else "%s:%d" % (address, config["port"])
        settings = dict(QUIET, **FAST, listen_interfaces=listen, outgoing_interfaces=address, alert_mask=ALERTS)
        information = library.torrent_info(config["torrent"])
        # What is asked of a peer at a time. More than half a piece, and several receivers ask the only sender for the
        # same pieces before they know of each other's; less leaves a fast cable idle.
        settings["max_out_request_queue"] = information.piece_length() // BLOCK // 2
        settings["max_allowed_in_request_queue"] = settings["max_out_request_queue"]
        self.session = library.session(settings)
        self.session.set_ip_filter(self._only_peers())
        self.torrent = self.session.add_torrent(self._parameters(information))
        self.port = self._listening()

    def _only_peers(self) -> Any:
        """Return a filter that lets nobody in but the peers."""
        allowed = self.library.ip_filter()
        allowed.add_rule("0.0.0.0", "255.255.255.255", 1)
        allowed.add_rule("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 1)
        for address, _port in self.peers:
            allowed.add_rule(address, address, 0)
        return allowed

    def _parameters(self, information: Any) -> Any:
        """Return libtorrent's description of what is to be done."""
        flags = self.library.torrent_flags
        parameters = self.library.add_torrent_params()
        parameters.ti = information
        parameters.save_path = "/"
        storage = information.layout()
        have: list[bool] = []
        renamed = {}
        piece = information.piece_length()
        for index in range(storage.num_files()):
            if storage.file_flags(index) & self.library.file_flags_t.flag_pad_file:
                continue
            name = storage.file_name(index)
            renamed[index] = reopened(self.config["files"][name])
            self.paths[renamed[index]] = self.config["files"][name]
            bits = self.config["have"][name]
            if len(bits) != -(-storage.file_size(index) // piece):
                raise ValueError("have: %s has other pieces" % name)
            have += [bit == "1" for bit in bits]
        parameters.renamed_files = renamed
        parameters.have_pieces = have
        # Verified by whoever gave ``have``: not to be hashed again.
        parameters.verified_pieces = have
        parameters.flags = flags.disable_dht | flags.disable_lsd | flags.disable_pex | flags.apply_ip_filter
        parameters.flags |= flags.no_verify_files
        if all(have):
            parameters.flags |= flags.seed_mode
        if self.config["rate"]:
            parameters.upload_limit = parameters.download_limit = self.config["rate"]
        return parameters

    def _listening(self) -> int:
        """Wait until the session listens; return its port. Raises :class:`OSError`."""
        deadline = time.monotonic() + LISTEN_SECONDS
        while time.monotonic() < deadline:
            self.session.wait_for_alert(200)
            for alert in self.session.pop_alerts():
                if isinstance(alert, self.library.listen_succeeded_alert):
                    return int(alert.port)
                if isinstance(alert, self.library.listen_failed_alert):
                    raise OSError("cannot listen: %s; if the port is taken, try another one" % alert.message())
                self.note(alert)
        raise OSError("does not listen on %s after %d s" % (self.config["address"], LISTEN_SECONDS))

    def note(self, alert: Any) -> None:
        """Remember what the operator has to know."""
        if isinstance(alert, self.library.peer_ban_alert):
            address = str(alert.endpoint[0])
            if address not in self.banned:
                say("%s sent wrong bytes and is not asked again" % address)
            self.banned.add(address)
        elif isinstance(alert, (self.library.file_error_alert, self.library.torrent_error_alert)):
            words = str(alert.message())
            for name in sorted(self.paths, key=len, reverse=True):
                words = words.replace(name, self.paths[name])
            self.error = words
            say(words)

    def run(self) -> str:
        """Work until told to stop, or nothing happens any more; return what to say at the end."""
        moved, moved_at, reconnect_at = -1, time.monotonic(), 0.0
        while True:
            for alert in self.session.pop_alerts():
                self.note(alert)
            status = self.torrent.status()
            if status.is_seeding:
                self.release()
            now = time.monotonic()
            if status.total_done + status.all_time_upload != moved:
                moved, moved_at = status.total_done + status.all_time_upload, now
            report = {
                "port": self.port,
                "bytes": status.total_wanted,
                "done": status.total_wanted_done,
                "complete": status.is_seeding,
                "pieces": bits(status.pieces),
                "received": status.total_payload_download,
                "sent": status.total_payload_upload,
                "peers": status.num_peers,
                "banned": sorted(self.banned),
                "error": self.error,
            }
            notify(status_text(report))
            if self.error:
                return self.error
            if now - moved_at > self.config["idle" if status.is_seeding else "stall"]:
                return IDLE if status.is_seeding else "nothing came for %d s" % self.config["stall"]
            if now >= reconnect_at and (not status.is_seeding or not status.num_peers):
                reconnect_at = now + RECONNECT_SECONDS
                for peer in self.peers:
                    self.torrent.connect_peer(peer)
            time.sleep(STATUS_SECONDS)

    def release(self) -> None:
        """Let others have the files: nothing is written any more."""
        while self.locks:
            os.close(self.locks.pop())

    def close(self) -> None:
        """Write what has arrived."""
        self.session.pause()
        self.torrent.flush_cache()
        deadline = time.monotonic() + FLUSH_SECONDS
        while time.monotonic() < deadline:
            self.session.wait_for_alert(200)
            if any(isinstance(alert, self.library.cache_flushed_alert) for alert in self.session.pop_alerts()):
                return


def bits(values: list[bool]) -> str:
    """Return bits as hexadecimal digits, the first one highest."""
    text = "".join("1" if value else "0" for value in values)
    text += "0" * (-len(text) % 4)
    return "".join("%x" % int(text[at : at + 4], 2) for at in range(0, len(text), 4))


def status_text(report: dict[str, Any]) -> str:
    """Return a report as a message that systemd takes."""
    text = "STATUS=" + json.dumps(report)
    return text if len(text) <= MESSAGE_BYTES else "STATUS=" + json.dumps(dict(report, pieces=""))


def split_address(text: str) -> tuple[str, int]:
    """Return address and port of ``10.0.1.2:6881`` or ``[fd00::2]:6881``. Raises :class:`ValueError`."""
    address, _colon, port = text.rpartition(":")
    if not 0 < int(port) < 1 << 16:
        raise ValueError("%s is no port" % port)
    return str(ipaddress.ip_address(address.strip("[]"))), int(port)


def locked(path: str) -> int:
    """Lock a file, as the store does (flock(2)); return its descriptor. Raises :class:`OSError` when it is not free."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise OSError("another run brings the same file (%s); run again when it has ended" % path) from error
            time.sleep(STATUS_SECONDS)
        else:
            return descriptor


def reopened(path: str) -> str:
    """Return a path to a file that stays good when the file is renamed: a download gets its name while it is given."""
    return "/proc/self/fd/%d" % os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def say(text: str) -> None:
    """Write a line for the journal."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def notify(text: str) -> None:
    """Tell systemd something (sd_notify(3)); without systemd say it."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        say(text)
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.connect("\0" + path[1:] if path.startswith("@") else path)
        connection.sendall(text.encode())


class StoppedError(Exception):
    """Somebody told this process to end."""


def stop(_number: int, _frame: object) -> NoReturn:
    """End as soon as what is under way has been written."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise StoppedError


def main() -> None:
    """Give and take until nothing happens any more."""
    signal.signal(signal.SIGTERM, stop)
    with open(sys.argv[1], encoding="utf-8") as stream:
        config = json.load(stream)
    try:
        engine = Engine(config, importlib.import_module("libtorrent"))
    except OSError as error:
        raise SystemExit(str(error)) from error
    try:
        notify("READY=1")
        end = engine.run()
    except StoppedError:
        end = IDLE
    engine.close()
    if end != IDLE:
        raise SystemExit(end)


if __name__ == "__main__":
    main()
