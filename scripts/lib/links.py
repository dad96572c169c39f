"""The links that are measured over, and whether one is what it is called: each run is calibrated, and refused if it is not.

    links.py serve PORT      within the registry's network namespace: sends as many bytes as it is asked for
"""

import collections
import json
import os
import re
import socket
import statistics
import struct
import subprocess
import sys
import time

import rig

Shape = collections.namedtuple("Shape", "name mbit round_trip")
Measured = collections.namedtuple("Measured", "rate round_trip foreign")  # bytes a second, seconds, cores

LINKS = {shape.name: shape for shape in (
    Shape("lan", 1000, 0),
    Shape("10ms", 200, 0.010),
    Shape("50ms", 200, 0.050),
    Shape("150ms", 50, 0.150),
    Shape("200mbit", 200, 0),  # not of the grid: the link of the older figures
)}
GRID = ("lan", "10ms", "50ms", "150ms")

PORT = 5999
SECONDS_OF_BYTES = 2  # at the link's rate; the first half is for slow start to end
HEADERS = 1448 / 1514  # what Ethernet, IP and TCP with time stamps leave of a packet
RATE_LEAST = 0.95  # of what the headers leave
RATE_MOST = 1.02
ROUND_TRIP_OFF = 0.05  # and as a share of the round trip
ROUND_TRIP_OFF_SECONDS = 0.0005  # the delay line is a program that has to be woken
LAN_SECONDS_MAX = 0.0003
PROBES = 11
FOREIGN_CORES_MAX = 0.2
FOREIGN_SECONDS = 0.5
TRIES_MAX = 6  # what a start leaves behind, such as writing back, is over after a minute
PAUSE_SECONDS = 10
BUSY = (f"other programs keep {{:.2f}} cores busy, and {FOREIGN_CORES_MAX} are let pass: wait until they have ended, or say --busy to try "
        "whether it works")
READ_BYTES = 1 << 18
CONGESTION = "cubic"


def parse(name):
    if name not in LINKS:
        raise ValueError(f"no link {name}; there are: {', '.join(LINKS)}, or --rate and --rtt")
    return LINKS[name]


def told(rate, milliseconds):
    """A link by its rate, as `tc` has it, and its round trip."""
    form = re.fullmatch(r"(\d+)(mbit|gbit)", rate)
    if not form:
        raise ValueError(f"the rate {rate} is none: say 200mbit or 1gbit")
    mbit = int(form[1]) * (1000 if form[2] == "gbit" else 1)
    name = f"{mbit}mbit" + (f"+{milliseconds:g}ms" if milliseconds else "")
    return LINKS.get(name, Shape(name, mbit, milliseconds / 1e3))


def open_link(work, shape, storage):
    """A registry behind a link of this shape. Cubic at its end, as nearly everywhere: the kernel's other choice paces itself and
    hides what a full queue does."""
    link = rig.Link(work, f"{shape.mbit}mbit", storage=storage, round_trip=shape.round_trip)
    try:
        use_cubic(link)
        link.start_registry(work)
    except rig.RigError:
        link.close()
        raise
    return link


def use_cubic(link):
    """By the route: where a kernel's default is another one, only the first network namespace may choose cubic by name."""
    [route] = json.loads(link.inside("ip", "-j", "route", "show", "proto", "kernel"))
    link.inside("ip", "route", "change", route["dst"], "dev", route["dev"], "proto", "kernel", "scope", "link", "src", route["prefsrc"],
                "congctl", CONGESTION)


def calibrate(link, shape):
    """What the link gives now: a transfer, connections that are opened, and how busy the machine is with nothing of ours."""
    foreign = foreign_cores()
    command = ["ip", "netns", "exec", link.namespace, sys.executable, "-B", os.path.abspath(__file__), "serve", str(PORT)]
    sender = subprocess.Popen(command)
    host = link.address.partition(":")[0]
    try:
        rig.wait_for(lambda: connects(host), "the calibration to begin")
        trips = [connects(host) for _ in range(PROBES)]
        rate = received(host, int(shape.mbit * 125_000 * SECONDS_OF_BYTES))
    finally:
        rig.stop(sender)
    return Measured(rate, statistics.median(trips), foreign)


def connects(host):
    """Seconds until a connection is open, which is one round trip; None where nobody listens."""
    began = time.perf_counter()
    try:
        with socket.create_connection((host, PORT), 5):
            return time.perf_counter() - began
    except OSError:
        return None


def received(host, size):
    """Bytes a second, once the first half is there."""
    with socket.create_connection((host, PORT), 30) as connection:
        connection.sendall(struct.pack("<Q", size))
        count, half, began = 0, None, None
        while piece := connection.recv(READ_BYTES):
            count += len(piece)
            if half is None and count >= size / 2:
                half, began = count, time.perf_counter()
        took = time.perf_counter() - began
    return (count - half) / took


def foreign_cores():
    """How many cores are busy; asked when nothing of ours runs."""
    def counted():
        with open("/proc/stat") as stat:
            words = [int(word) for word in stat.readline().split()[1:]]
        return sum(words[:3]) + sum(words[5:8]), sum(words[:8])  # busy with stolen time, all
    busy, everything = counted()
    time.sleep(FOREIGN_SECONDS)
    busy_after, after = counted()
    return (busy_after - busy) / max(1, after - everything) * os.cpu_count()


def foreign_or_refused(is_busy):
    """Whether others work on the machine, where that is known; else it is waited for a moment, and nothing is measured if they stay."""
    for _ in range(TRIES_MAX):
        foreign = foreign_cores()
        if foreign <= FOREIGN_CORES_MAX or is_busy:
            return foreign > FOREIGN_CORES_MAX
        time.sleep(PAUSE_SECONDS)
    raise rig.RigError(BUSY.format(foreign))


def calibrated(link, shape, is_busy):
    """What the link gives now, and why that is not what it is called, where the machine is known to be busy; else likewise."""
    for _ in range(TRIES_MAX):
        measured = calibrate(link, shape)
        refused = refusal(shape, measured)
        if not refused or is_busy:
            return measured, refused
        time.sleep(PAUSE_SECONDS)
    raise rig.RigError(refused)


def refusal(shape, measured):
    """Why nothing that is measured now may stand under this link's name, in a sentence; None if it may."""
    bytes_per_second = shape.mbit * 125_000
    if not RATE_LEAST * HEADERS <= measured.rate / bytes_per_second <= RATE_MOST:
        return (f"the link {shape.name} gives {measured.rate / 125_000:.0f} Mbit/s instead of {shape.mbit}: is the machine busy? "
                "nothing is measured")
    least, most = 0, LAN_SECONDS_MAX
    if shape.round_trip:
        off = shape.round_trip * ROUND_TRIP_OFF + ROUND_TRIP_OFF_SECONDS
        least, most = shape.round_trip - off, shape.round_trip + off
    if not least <= measured.round_trip <= most:
        return (f"a round trip of the link {shape.name} takes {measured.round_trip * 1e3:.1f} ms instead of "
                f"{shape.round_trip * 1e3:.0f}: is the machine busy? nothing is measured")
    if measured.foreign > FOREIGN_CORES_MAX:
        return BUSY.format(measured.foreign)
    return None


def serve(port):
    with socket.create_server(("", port)) as listening:
        block = bytes(READ_BYTES)
        while True:
            connection, _ = listening.accept()
            with connection:
                used = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()
                if used != CONGESTION:
                    sys.exit(f"the registry's end of the link uses {used}, not {CONGESTION}")
                asked = connection.recv(8, socket.MSG_WAITALL)
                left = struct.unpack("<Q", asked)[0] if len(asked) == 8 else 0
                while left > 0:
                    left -= connection.send(block[:left])


if __name__ == "__main__":
    serve(int(sys.argv[2]))
