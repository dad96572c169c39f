"""What mounted images take of a node's memory (B8): of the daemon's heap, of the page cache, and each further container."""

import contextlib
import ctypes
import functools
import glob
import json
import os
import secrets
import shutil
import stat
import statistics
import tempfile
import time

import grid
import miss
import random_layout
import rig
from daemon import Daemon, labels
from made import Registry, small_files

IMAGES = (1, 10, 50)
FILES = 2_000
REST_SECONDS = 12  # one round of writing down what is there
QUIET_SECONDS = 25  # two such rounds: after one in which nobody asked for it, a byte is in memory once
CHUNKS = 1024  # 256 MiB
UNREAD_BYTES = 16 << 20  # at the beginning of a file, so that its layer is not complete and hence not mounted directly
CONTAINERS = 20
TRIES = 8  # of what takes a minute or two
PROVEN_SECONDS_MAX = 120  # a proof waits until nobody reads
CACHESTAT = 451
PAGE = os.sysconf("SC_PAGE_SIZE")
libc = ctypes.CDLL(None, use_errno=True)
HEAP_MB_MAX, COPIES_MAX, MORE_PERCENT_MAX = 1, 1.1, 2
# What a container of the image does before it waits.
READ_AND_WAIT = ("sh", "-c", "find /usr -xdev -type f -exec cat {} + >/dev/null; echo read; exec sleep 100000")


def heap(registry, images, drivers, args, work, table):
    """The daemon's own memory with so many images mounted and listed; `images` are the labels of their only layers."""
    for driver in drivers:
        daemon = Daemon(args.programs, work, driver, registry.address)
        try:
            time.sleep(REST_SECONDS)
            found = {0: daemon.memory()}
            for number, image in enumerate(images, 1):
                rig.run("find", daemon.prepare(image, "keep"), "-xdev", "-printf", "%s\n")
                if number in IMAGES:
                    time.sleep(REST_SECONDS)
                    found[number] = daemon.memory()
        finally:
            daemon.close()
        for number in IMAGES:
            table.single(f"heap of daemon and supervisor, {number} images of {FILES} files mounted, {driver}", "MB", found[number], "")
        each = (found[IMAGES[-1]] - found[0]) / IMAGES[-1]
        table.single(f"heap for each mounted image, {driver}", "MB", each, f"≤ {HEAP_MB_MAX}", list(found.items()))


def copies(args, drivers, work, table):
    """How often a byte that was read is in the page cache, with the daemon running: at once, and when nobody reads any more."""
    with miss.registry(args, work, {"miss": CHUNKS}) as storage:
        folder = tempfile.mkdtemp(dir=work)
        link = rig.Link(folder, "20gbit", storage=storage)
        try:
            link.start_registry(folder)
            [image] = labels(link, f"{link.address}/bench/miss:larder")
            for driver in drivers:
                copies_of(args, driver, work, table, (link, image))
        finally:
            link.close()


def copies_of(args, driver, work, table, published):
    link, image = published
    daemon = Daemon(args.programs, work, driver, link.address, settings=miss.SETTINGS)
    try:
        path = os.path.join(daemon.prepare(image, "keep"), random_layout.NAME)
        read(path, UNREAD_BYTES).close()
        both(table, f"a byte read from the store, {driver}", path, daemon.root, UNREAD_BYTES)
    finally:
        daemon.close()
    daemon = Daemon(args.programs, work, driver, link.address)
    try:
        place = daemon.prepare(image, "keep")
        read(os.path.join(place, random_layout.NAME)).close()
        rig.wait_for(lambda: proven(daemon.root), "the layer to be proven", seconds=PROVEN_SECONDS_MAX)
        time.sleep(REST_SECONDS)  # another mount takes the place of this one
        both(table, f"a byte of a proven layer, {driver}", os.path.join(place, random_layout.NAME), daemon.root)
    finally:
        daemon.close()


def both(table, label, path, root, unread=0):
    """The copies of a file's bytes when it was just read, and at rest. The first bytes of it stay `unread`."""
    def measure():
        forget([path, *devices(root)])
        with read(path, unread) as file:
            at_once = held(file, root, unread)
            time.sleep(QUIET_SECONDS)
            return at_once, held(file, root, unread)
    at_once, at_rest = undisturbed(measure, label)
    table.single(f"copies in the page cache of {label}", "copies", at_once, "")
    table.single(f"copies in the page cache of {label}, at rest", "copies", at_rest, f"≤ {COPIES_MAX}")


def undisturbed(measure, what):
    """What is found while nobody else empties the page cache of the whole machine, as tests and benchmarks do."""
    for _ in range(TRIES):
        before = drops()
        found = measure()
        if drops() == before:
            return found
    raise rig.RigError(f"{what}: others emptied the page cache each time of {TRIES}; measure it when they are done")


def drops():
    """How often the page cache was emptied by hand."""
    with open("/proc/vmstat") as table:
        return next(int(line.split()[1]) for line in table if line.startswith("drop_pagecache "))


def proven(root):
    """Whether all layers of a daemon are."""
    return {record["proof"] for _, record in records(root)} == {"proven"}


def records(root):
    """The layers of a store: their directories, and what is written down of them."""
    for path in glob.glob(os.path.join(root, "larder", "store", "*", "layer.json")):
        with open(path) as text:
            yield os.path.dirname(path), json.load(text)


def devices(root):
    """All files through which bytes of layers come: the store's, and those of our session, which nobody can list."""
    for directory, record in records(root):
        yield os.path.join(directory, "device")
        yield os.path.join(root, "larder", "session", "dev", str(record["slot"]))


def read(path, unread=0):
    """Reads a file from a place on, and keeps it open: another mount may take the place of this one."""
    file = open(path, "rb", buffering=0)
    file.seek(unread)
    while file.read(1 << 20):
        pass
    return file


def forget(paths):
    """Has the kernel forget what it has of some files alone: others work on this machine."""
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            with contextlib.suppress(OSError):  # of a file system that writes nothing
                os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def held(file, root, unread):
    """How often a file is in the page cache: as itself, in the store, and as the layer's device of our session. Counted
    for these files alone, so that what else the machine reads counts for nothing."""
    found = pages(file)
    for device in devices(root):
        with open(device, "rb", buffering=0) as other:
            found += pages(other)
    return found * PAGE / (os.fstat(file.fileno()).st_size - unread)


def pages(file):
    """Pages of a file in the page cache, by cachestat(2)."""
    whole, found = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
    if libc.syscall(CACHESTAT, file.fileno(), whole, found, 0):
        raise rig.RigError(f"cachestat of {file.name}: {os.strerror(ctypes.get_errno())}; it needs kernel ≥ 6.5")
    return found[0]


def containers(args, drivers, work, table, published):
    """Containers of one image, each reading all of /usr: what each after the first adds to the page cache. `published` is the
    registry's link and the converted image.

    Twenty of an image that was there whole before; and two of which the first fetches what it reads. Its layers may be proven meanwhile, and the
    second then has mounts of its own."""
    for driver in drivers:
        for is_complete, count in ((True, CONTAINERS), (False, 2)):
            label = f"{'complete' if is_complete else 'empty'} node, {driver}"
            sizes = undisturbed(functools.partial(sizes_of, args, driver, work, published, is_complete, count), label)
            more = [(after - before) / sizes[0] * 100 for before, after in zip(sizes, sizes[1:])]
            table.single(f"page cache of the first container, /usr read, {label}", "MB", sizes[0] / 1e6, "")
            goal = f"≤ {MORE_PERCENT_MAX}" if is_complete else ""
            table.single(f"page cache of the second container, {label}", "percent more", more[0], goal, sizes)
            if count > 2:
                table.single(f"page cache of each of {count - 2} further ones, {label}", "percent more", statistics.median(more[1:]), goal)


def sizes_of(args, driver, work, published, is_complete, count):
    """Bytes in the page cache when so many containers of an image, started one after the other, have read."""
    link, reference = published
    node = rig.Node(work, args.programs, True, driver, settings=miss.SETTINGS)
    try:
        node.start(link.address)
        if is_complete:
            rig.run(os.path.join(args.programs, "larder-snapshotter"), "pull", "--complete", "--config", os.path.join(node.work, "larder.toml"),
                    "--address", node.socket, reference)
        else:
            node.pull(reference)
        sizes = []
        for number in range(count):
            name = "one-" + secrets.token_hex(3)
            process = node.start_container(reference, name, READ_AND_WAIT)
            rig.wait_until_ready(process, "line:read", node)
            if number == 0:
                time.sleep(QUIET_SECONDS)  # what the next ones add is not to be told from what is given back of this one
            sizes.append(of_images(node.work))
        return sizes
    finally:
        node.close()


def of_images(root):
    """Bytes in the page cache of all that a node's containers see and write, and of where it comes from. Each file counts once, at however
    many places it can be seen."""
    snapshots = os.path.join(root, "larder", "snapshots")
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(snapshots) for name in names]
    seen, found = set(), 0
    for path in [*paths, *devices(root), *(os.path.join(directory, "meta") for directory, _ in records(root))]:
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            with open(path, "rb", buffering=0) as file:
                found += pages(file)
    return found * PAGE


def run(args, drivers, work, table):
    with Registry(args, work) as registry:
        names = [f"image-{number}" for number in range(IMAGES[-1])]
        images = []
        for name in names:
            layout = small_files(work, name, FILES, lambda number, name=name: f"{name} {number}\n".encode() * 50)
            images += labels(registry.link, registry.push(layout, name))
            shutil.rmtree(layout)
        heap(registry.link, images, drivers, args, work, table)
    copies(args, drivers, work, table)
    with grid.published(args, work, os.path.join(args.images, "python"), "python") as (_, link, reference):
        containers(args, drivers, work, table, (link, reference))
