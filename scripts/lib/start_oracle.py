"""The oracle: the least time in which an image can be ready over a link, whatever fetches it, from a recorded start.

A start was recorded with everything on the node: which chunks it read first, when, and when it was ready. What a chunk's first read
is followed by takes at least as long again, so over a link with chunks streamed in the order of their first reads, which is optimal
on one link (earliest deadline first), it is ready after

    T* = 3 R + max( T_rt , max_i [ transfer(s_1 + … + s_i) + d_i + W_i ] )

R: round trip; 3 R: a connection, the manifest, the first bytes. T_rt: a start with everything in the page cache. s_i: stored bytes of
the chunk; d_i: decompressing and verifying it; W_i: from its first read until ready. It is exact for one thread that waits, and an
estimate for many. Layers' indexes are left out, as are headers of packets, which makes T* smaller and the ratio to it larger.
"""

import dataclasses
import math

INITIAL_WINDOW_BYTES = 14_600  # ten segments of 1,460 bytes, RFC 6928
DECODED_BYTES_PER_SECOND = 1.05e9  # of a chunk's content: zstd and SHA-256 on one core, measured
LAB_ROUND_TRIPS = 3


@dataclasses.dataclass(frozen=True)
class Read:
    """The first read of a chunk: seconds from the beginning of the start, stored bytes, bytes of content."""

    at: float
    stored: int
    length: int


@dataclasses.dataclass(frozen=True)
class Trace:
    """A start with everything on the node: its first reads, when it was ready, and how long a start takes with everything in the
    page cache. The recorded one is slower, as each of its first reads is a request to the daemon: its times are shortened to fit."""

    reads: tuple
    ready: float
    warm: float

    def touched(self):
        """Compressed bytes of all chunks it reads."""
        return sum(read.stored for read in self.reads)

    def remaining(self, read):
        """Seconds from a read until ready, as they were without the recording."""
        return (self.ready - read.at) * min(1.0, self.warm / self.ready)


def transfer(size, rate, round_trip, connections=1):
    """Seconds that `size` bytes take on cold TCP connections: the window doubles each round trip until it fills the link. With no
    connections to open, on one that is warm: what the link needs."""
    if not connections:
        return size / rate
    window = connections * INITIAL_WINDOW_BYTES
    rounds = max(0, math.ceil(math.log2(rate * round_trip / window))) if round_trip else 0
    opened = window * (2**rounds - 1)
    if size < opened:
        return round_trip * math.ceil(math.log2(size / window + 1))
    return rounds * round_trip + (size - opened) / rate


def least_seconds(trace, rate, round_trip, connections=1):
    """T* of a recorded start over a link of `rate` bytes a second."""
    total, worst = 0, trace.warm
    for read in sorted(trace.reads, key=lambda read: read.at):
        total += read.stored
        decoded = read.length / DECODED_BYTES_PER_SECOND
        worst = max(worst, transfer(total, rate, round_trip, connections) + decoded + trace.remaining(read))
    return LAB_ROUND_TRIPS * round_trip + worst


def trace_of(profile, tables, began, ready, warm):
    """The trace of an exported profile.

    `tables` has for each layer's index the (stored bytes, bytes of content) of its chunks; `began` is when the recording began,
    in seconds from the beginning of the start that was `ready` after as many. What is read later is not waited for.
    """
    reads = []
    for layer in profile["layers"]:
        micros, table = 0, tables[layer["index"]]
        for step, row in layer["reads"]:
            micros += step
            at = began + micros / 1e6
            if row < len(table) and at <= ready:
                reads.append(Read(at, *table[row]))
    return Trace(tuple(sorted(reads, key=lambda read: read.at)), ready, warm)


def with_unseen(trace, unseen):
    """The trace with chunks that the recording could not see, as the kernel read their layers from the disk itself. When they are
    read nobody knows, so they hold up nothing: they come last, once the start is ready."""
    return dataclasses.replace(trace, reads=trace.reads + tuple(Read(trace.ready, *sizes) for sizes in unseen))
