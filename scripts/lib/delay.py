"""A link with a round-trip time: two TUN devices, and between them this program, which holds every packet for half of it.

The kernel's own netem is missing on many kernels. Packets are held, not slowed down: any number may be under way, so the
throughput is that of the devices' own shapers, and TCP meets its real windows, slow start included.
"""

import collections
import fcntl
import os
import select
import struct
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
PACKET_BYTES_MAX = 65536


def tun(name):
    """A new network device whose packets are read and written here; it goes away with the program."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return device


class Direction:
    """Packets on their way from one device to the other, in order."""

    def __init__(self, source, sink, delay):
        self.source, self.sink, self.delay = source, sink, delay
        self.held = collections.deque()

    def take(self):
        try:
            while True:
                packet = os.read(self.source, PACKET_BYTES_MAX)
                self.held.append((time.monotonic() + self.delay, packet))
        except BlockingIOError:
            pass

    def give(self):
        """Delivers what is due; seconds until the next packet is, or None."""
        while self.held:
            wait = self.held[0][0] - time.monotonic()
            if wait > 0:
                return wait
            try:
                os.write(self.sink, self.held.popleft()[1])
            except OSError:
                pass  # the device is not up yet, or its queue is full: a packet is lost, as on any link
        return None


def main():
    near, far, round_trip = tun(sys.argv[1]), tun(sys.argv[2]), float(sys.argv[3])
    directions = Direction(near, far, round_trip / 2), Direction(far, near, round_trip / 2)
    while True:
        waits = [wait for direction in directions if (wait := direction.give()) is not None]
        # Not epoll, which rounds to milliseconds.
        select.select((near, far), (), (), min(waits, default=None))
        for direction in directions:
            direction.take()


if __name__ == "__main__":
    main()
