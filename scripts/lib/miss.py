"""What a read costs whose bytes are not here: one in 256 KiB at random, alone and beside a download that takes all of the link (B3);
and what many readers fetch together (B6)."""

import contextlib
import json
import os
import random
import shutil
import statistics
import tempfile
import threading
import time

import daemon
import links
import random_layout
import rig
from samples import percentile

READ_BYTES = 4096
FILL_CHUNKS = 4096  # 1 GiB: more than 200 Mbit/s bring while 2,000 reads are made
SETTINGS = "complete_in_background = false\nprofiles = false\n"
OWN_MILLISECONDS = 1
P50_MAX, P99_MAX, BYTES_MAX = 1.15, 2, 1.02
READERS = (1, 4, 16)
HEADER_BYTES = 66  # of Ethernet, IP and TCP with time stamps, in what the interface counts of each packet


@contextlib.contextmanager
def registry(args, work, images):
    """The storage of a registry with images of random bytes; `images` has how many chunks each has."""
    folder = tempfile.mkdtemp(dir=work)
    link = rig.Link(folder, "20gbit")
    try:
        link.start_registry(folder)
        for seed, (name, chunks) in enumerate(images.items()):
            layout = random_layout.write(os.path.join(folder, name), chunks, seed)
            inner = f"127.0.0.1:5000/bench/{name}"
            link.inside("skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:latest", f"docker://{inner}:original")
            link.inside(os.path.join(args.programs, "larder"), "convert", "--plain-http", "--no-start-list", "--no-cache",
                        f"{inner}:original", f"{inner}:larder")
            shutil.rmtree(layout)
        link.close()
        yield link.storage
    finally:
        link.close()
        shutil.rmtree(folder, ignore_errors=True)


def mounted(node, link, programs, image):
    """Where the only layer of an image is mounted on a node, by its snapshotter alone."""
    [labels] = daemon.labels(link, f"{link.address}/bench/{image}:larder")
    command = [os.path.join(programs, "examples", "prepare"), os.path.join(node.work, "l.sock"), os.path.join(node.work, "larder"), "keep"]
    return rig.run(*command, input=json.dumps(labels)).strip()


def misses(path, chunks, count, seed, is_over=lambda: False):
    """Milliseconds of reads of 4 KiB, each of another chunk, until `is_over`."""
    chance = random.Random(seed)
    order, samples = chance.sample(range(chunks), count), []
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for chunk in order:
            at = chunk * random_layout.CHUNK_BYTES + chance.randrange(random_layout.CHUNK_BYTES // READ_BYTES) * READ_BYTES
            began = time.perf_counter()
            assert len(os.pread(file.fileno(), READ_BYTES, at)) == READ_BYTES
            samples.append((time.perf_counter() - began) * 1e3)
            if is_over():
                break
    return samples


class Fill:
    """`larder-snapshotter pull --complete` of another image, which takes what readers leave of the link."""

    def __init__(self, args, node, link):
        self.link, self.before, self.began = link, link.received(), time.monotonic()
        command = [os.path.join(args.programs, "larder-snapshotter"), "pull", "--complete", "--config", os.path.join(node.work, "larder.toml"),
                   "--address", node.socket, f"{link.address}/bench/fill:larder"]
        self.process = node.background(command, "fill.log")
        rig.wait_for(lambda: link.received() - self.before > 8 << 20, "the other image to come", node.log, 120)

    def is_over(self):
        return self.process.poll() is not None

    def rate(self):
        return (self.link.received() - self.before) / (time.monotonic() - self.began)


def one(args, work, link, driver, count, with_fill):
    """The samples of one node, and how much of the link was used meanwhile, bytes a second."""
    node = rig.Node(work, args.programs, True, driver, settings=SETTINGS)
    try:
        node.start(link.address)
        path = os.path.join(mounted(node, link, args.programs, "miss"), random_layout.NAME)
        rig.drop_caches(link.storage)
        if not with_fill:
            before, began = link.received(), time.monotonic()
            samples = misses(path, count, count, seed=1)
            return samples, (link.received() - before) / (time.monotonic() - began)
        fill = Fill(args, node, link)
        samples = misses(path, count, count, seed=2, is_over=fill.is_over)
        return samples, fill.rate()
    finally:
        node.close()


def run(args, shapes, drivers, work, table):
    count = args.reads
    with registry(args, work, {"miss": count, "fill": FILL_CHUNKS}) as storage:
        for shape in shapes:
            link = links.open_link(tempfile.mkdtemp(dir=work), shape, storage)
            try:
                for driver in drivers:
                    both(args, work, link, shape, driver, count, table)
            finally:
                link.close()


def both(args, work, link, shape, driver, count, table):
    measured, refused = links.calibrated(link, shape, args.busy)
    # A chunk that does not get smaller travels as it is.
    expected = measured.round_trip * 1e3 + random_layout.CHUNK_BYTES / measured.rate * 1e3 + OWN_MILLISECONDS
    label = f"miss of 4 KiB, {shape.name}, {driver}" + (" (busy machine)" if refused else "")
    idle, used = one(args, work, link, driver, count, False)
    for percent in (50, 99):
        table.single(f"{label}, p{percent}", "ms", percentile(idle, percent), "", idle if percent == 50 else ())
    table.single(f"{label}, p50 ÷ (round trip + chunk + 1 ms)", "ratio", percentile(idle, 50) / expected, f"≤ {P50_MAX}")
    table.single(f"{label}, of the link used", "share", used / measured.rate, "")
    busy, used = one(args, work, link, driver, count, True)
    for percent in (50, 99):
        table.single(f"{label}, beside a download, p{percent} of {len(busy)}", "ms", percentile(busy, percent), "",
                     busy if percent == 50 else ())
    table.single(f"{label}, p99 beside a download ÷ p99 alone", "ratio", percentile(busy, 99) / percentile(idle, 99), f"≤ {P99_MAX}")
    table.single(f"{label}, beside a download, of the link used", "share", used / measured.rate, "")


def payload(link):
    """Bytes that came without the headers of their packets, counted at the interface."""
    [found] = json.loads(rig.run("ip", "-s", "-j", "link", "show", "dev", link.near))
    return found["stats64"]["rx"]["bytes"] - HEADER_BYTES * found["stats64"]["rx"]["packets"]


def together(args, drivers, work, table, chunks=400):
    """All of a file by many readers: each all of it, or each its share, chunk by chunk in turn."""
    with registry(args, work, {"miss": chunks}) as storage:
        link = links.open_link(tempfile.mkdtemp(dir=work), links.parse("200mbit"), storage)
        try:
            for driver in drivers:
                for readers in READERS:
                    for kind, step in (("the same", 1), ("interleaved", readers)):
                        ratio = statistics.median(fetched(args, work, link, driver, readers, step, chunks) for _ in range(args.pairs))
                        table.single(f"bytes fetched ÷ bytes of chunks, {readers} readers, {kind}, {driver}", "ratio", ratio, f"≤ {BYTES_MAX}")
        finally:
            link.close()


def fetched(args, work, link, driver, readers, step, chunks):
    node = rig.Node(work, args.programs, True, driver, settings=SETTINGS)
    try:
        node.start(link.address)
        path = os.path.join(mounted(node, link, args.programs, "miss"), random_layout.NAME)
        before = payload(link)
        threads = [threading.Thread(target=read, args=(path, number % step, step, chunks)) for number in range(readers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (payload(link) - before) / (chunks * random_layout.CHUNK_BYTES)
    finally:
        node.close()


def read(path, first, step, chunks):
    with open(path, "rb", buffering=0) as file:
        for chunk in range(first, chunks, step):
            assert len(os.pread(file.fileno(), random_layout.CHUNK_BYTES, chunk * random_layout.CHUNK_BYTES)) == random_layout.CHUNK_BYTES
