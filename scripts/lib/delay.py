"""A link with a round-trip time: two TUN devices, and between them this program, which holds every packet for half of it.

The kernel's own netem is missing on many kernels. Packets are held, not slowed down: any number may be under way, so the
throughput is that of the devices' own shapers, and TCP meets its real windows, slow start included.

    delay.py NEAR FAR SECONDS [trouble]

With the last word, lines on standard input say what goes wrong from then on:

    loss SHARE       of the packets are lost
    late SHARE       of them come LATE_SECONDS later than those behind them
    largest BYTES    no larger packet comes through, and nobody is told
    down 1|0         none does
    forget 0         none of the TCP connections that there are, as behind a firewall that was restarted
"""

import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
PACKET_BYTES_MAX = 65536
LATE_SECONDS = 0.02
TCP = 6


def tun(name):
    """A new network device whose packets are read and written here; it goes away with the program."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return device


def connection(packet):
    """The two ends of the TCP connection that a packet belongs to, whichever sent it; None if it belongs to none."""
    header = (packet[0] & 15) * 4
    if packet[0] >> 4 != 4 or packet[9] != TCP or len(packet) < header + 4:
        return None
    return frozenset(((packet[12:16], packet[header:header + 2]), (packet[16:20], packet[header + 2:header + 4])))


class Trouble:
    """What goes wrong with packets, always in the same way."""

    def __init__(self):
        self.loss = self.late = self.down = 0.0
        self.largest = PACKET_BYTES_MAX
        self.known, self.forgotten = set(), set()
        self.chance = random.Random(1)

    def obey(self, line):
        word, number = line.split()
        if word == "forget":
            self.forgotten = set(self.known)
        elif word in ("loss", "late", "largest", "down"):
            setattr(self, word, float(number))

    def swallows(self, packet):
        ends = connection(packet)
        if ends:
            self.known.add(ends)
        return self.down or len(packet) > self.largest or ends in self.forgotten or self.chance.random() < self.loss

    def delay(self):
        return LATE_SECONDS if self.late and self.chance.random() < self.late else 0


class Direction:
    """Packets on their way from one device to the other, in order unless some are late."""

    def __init__(self, source, sink, delay, trouble):
        self.source, self.sink, self.delay, self.trouble = source, sink, delay, trouble
        self.held, self.count = [], itertools.count()

    def take(self):
        try:
            while True:
                packet = os.read(self.source, PACKET_BYTES_MAX)
                due = time.monotonic() + self.delay
                if self.trouble:
                    if self.trouble.swallows(packet):
                        continue
                    due += self.trouble.delay()
                heapq.heappush(self.held, (due, next(self.count), packet))
        except BlockingIOError:
            pass

    def give(self):
        """Delivers what is due; seconds until the next packet is, or None."""
        while self.held:
            wait = self.held[0][0] - time.monotonic()
            if wait > 0:
                return wait
            try:
                os.write(self.sink, heapq.heappop(self.held)[2])
            except OSError:
                pass  # the device is not up yet, or its queue is full: a packet is lost, as on any link
        return None


def main():
    near, far, round_trip = tun(sys.argv[1]), tun(sys.argv[2]), float(sys.argv[3])
    trouble, told = (Trouble(), [sys.stdin]) if sys.argv[4:] else (None, [])
    directions = [Direction(*ends, round_trip / 2, trouble) for ends in ((near, far), (far, near))]
    while True:
        waits = [wait for direction in directions if (wait := direction.give()) is not None]
        # Not epoll, which rounds to milliseconds.
        ready, _, _ = select.select((near, far, *told), (), (), min(waits, default=None))
        if sys.stdin in ready:
            line = sys.stdin.readline()
            if not line:
                return
            trouble.obey(line)
        for direction in directions:
            direction.take()


if __name__ == "__main__":
    main()
