"""Wait for the other half of an instance; run by systemd before and after a service starts.

  gate.py workers HOST:PORT... --timeout S   every worker answers HELLO (run before the head)
  gate.py listening HOST:PORT  --timeout S   this node listens there (run after a worker)
  gate.py health URL           --timeout S   the server is healthy (run after a head)

Exit code 0 when it came true, 1 when the time is up. Only what an old system
Python (3.6) has. A worker serves one client at a time, so ``listening`` reads
the kernel's table instead of opening the port that the head may be about to take.
Protocol: llama.cpp b11434, ggml/src/ggml-rpc/ggml-rpc.cpp.
"""

import argparse
import socket
import struct
import sys
import time
import urllib.error
import urllib.request

HELLO = 14
HELLO_SIZE = 24
REPLY_SECONDS = 5.0
SAY_EVERY_SECONDS = 10.0
LISTEN = "0A"


def split(endpoint):
    """Split ``address:port``."""
    host, _colon, port = endpoint.rpartition(":")
    return host, int(port)


def read_exactly(connection, size):
    """Read ``size`` bytes, or raise ConnectionError at the end of the stream."""
    data = b""
    while len(data) < size:
        block = connection.recv(size - len(data))
        if not block:
            raise ConnectionError("closed the connection")
        data += block
    return data


def hello(endpoint):
    """Return a worker's protocol version as text; raise OSError when it does not answer."""
    with socket.create_connection(split(endpoint), timeout=REPLY_SECONDS) as connection:
        connection.sendall(struct.pack("<BQ", HELLO, HELLO_SIZE) + bytes(HELLO_SIZE))
        (size,) = struct.unpack("<Q", read_exactly(connection, 8))
        if not 3 <= size <= 1024:
            raise ConnectionError("does not speak llama.cpp's RPC protocol")
        return "%d.%d.%d" % tuple(read_exactly(connection, size)[:3])


def worker_missing(endpoints):
    """Return what is missing, in words, or an empty text when every worker answered."""
    for endpoint in endpoints:
        try:
            hello(endpoint)
        except socket.timeout:
            return "worker %s does not answer: unreachable, or busy with another client" % endpoint
        except OSError as error:
            return "worker %s: %s" % (endpoint, error)
    return ""


def not_listening(endpoints):
    """Return what is missing, in words, from the kernel's table of IPv4 sockets."""
    host, port = split(endpoints[0])
    wanted = "%08X:%04X" % (struct.unpack("=I", socket.inet_aton(host))[0], port)
    with open("/proc/net/tcp", encoding="ascii") as table:
        for line in table:
            fields = line.split()
            if len(fields) > 3 and fields[1] == wanted and fields[3] == LISTEN:
                return ""
    return "nothing listens on %s yet" % endpoints[0]


def unhealthy(urls):
    """Return what is missing, in words; the node's proxy settings are not for this question."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urls[0], timeout=REPLY_SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        return "loading the model" if error.code == 503 else "%s answers %d" % (urls[0], error.code)
    except OSError as error:
        return "%s: %s" % (urls[0], error)


CHECKS = {"workers": worker_missing, "listening": not_listening, "health": unhealthy}


def main():
    """Wait, and say every now and then for what."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted(CHECKS))
    parser.add_argument("targets", nargs="+", metavar="HOST:PORT|URL")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS")
    options = parser.parse_args()
    started = time.monotonic()
    said = started - SAY_EVERY_SECONDS
    while True:
        missing = CHECKS[options.what](options.targets)
        if not missing:
            return 0
        now = time.monotonic()
        if now - started > options.timeout:
            print("gave up after %d s: %s" % (options.timeout, missing), file=sys.stderr)
            return 1
        if now - said >= SAY_EVERY_SECONDS:
            said = now
            print("waiting: %s (%d of %d s)" % (missing, now - started, options.timeout), flush=True)
        time.sleep(0.25)


if __name__ == "__main__":
    sys.exit(main())
