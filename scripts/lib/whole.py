"""Everything of an image read on an empty node, against an ordinary pull, its unpacking, and the same reading (B5)."""

import os
import secrets
import tempfile
import time

import grid
import links
import rig
from samples import abba

# tar reads nothing when its output is /dev/null itself.
READ_ALL = ("sh", "-c", "tar -C / --one-file-system -cf - . | cat >/dev/null; echo all")
RATIO_MAX = 0.9


def run(args, images, shapes, drivers, work, table):
    for image in images:
        if why := grid.obstacle(args, work, image):
            raise rig.RigError(why)
        with grid.published(args, work, os.path.join(args.images, image), image) as (storage, fast, _):
            fast.close()
            for shape in shapes:
                link = links.open_link(tempfile.mkdtemp(dir=work), shape, storage)
                try:
                    for driver in drivers:
                        compare(args, work, link, image, shape, driver, table)
                finally:
                    link.close()


def compare(args, work, link, image, shape, driver, table):
    refusals = []

    def side(is_lazy):
        refusals.append(links.calibrated(link, shape, args.busy)[1])
        return read_all(args, work, link, image, is_lazy, driver)
    ours, theirs = abba(args.pairs, lambda: side(True), lambda: side(False))
    label = f"{image} read whole, {shape.name}, {driver}" + (" (busy machine)" if any(refusals) else "")
    table.pair(label, "s", *([seconds for seconds, _ in samples] for samples in (ours, theirs)), f"≤ {RATIO_MAX}")
    table.pair(f"{label}: moved", "MB", *([moved / 1e6 for _, moved in samples] for samples in (ours, theirs)), "")


def read_all(args, work, link, image, is_lazy, driver):
    """Seconds and bytes from the pull to the last byte read, by a container."""
    node = rig.Node(work, args.programs, is_lazy, driver if is_lazy else "auto")
    reference = f"{link.address}/bench/{image}:{'larder' if is_lazy else 'original'}"
    try:
        node.start(link.address)
        rig.drop_caches(link.storage)
        before, began = link.received(), time.monotonic()
        node.pull(reference)
        node.ctr("run", "--rm", "--net-host", "--snapshotter", node.snapshotter, reference, "all-" + secrets.token_hex(3), *READ_ALL)
        return time.monotonic() - began, link.received() - before
    finally:
        node.close()
