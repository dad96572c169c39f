"""What a converted image says that a start of it reads, against what a start reads."""

import contextlib
import functools
import importlib.machinery
import importlib.util
import json
import os

import images
import world
from world import DRIVERS, once_per, rig

REAL = ("python", "nginx", "node")
PROGRAMS = {"python": b"usr/bin/python3.11", "nginx": b"usr/sbin/nginx", "node": b"usr/bin/node"}
LOADER, LIBC = b"usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", b"usr/lib/x86_64-linux-gnu/libc.so.6"
PAGE = 4096
WAIT_SECONDS_MAX = 180  # for what is fetched ahead
SETTLE_SECONDS = 5  # of an image that does not end by itself; on a busy machine a start pauses, too


@functools.cache
def reader():
    """`scripts/read-index.py`, which knows docs/FORMAT.md alone."""
    path = os.path.join(world.TOP, "scripts/read-index.py")
    loader = importlib.machinery.SourceFileLoader("read_index", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("read_index", loader))
    loader.exec_module(module)
    return module


@functools.cache
def published(name):
    """The image converted without lists, and with them from the same layers."""
    original, bare = world.publish(name)
    listed = bare.replace(":larder", ":listed")
    world.larder("convert", original, listed)
    return bare, listed


def lists(reference):
    """Of each layer, the lowest first: its digest, its index's, and the rows of its list."""
    for layer in world.manifest(reference)["layers"]:
        notes = layer["annotations"]
        value = notes.get("containerd.io/snapshot/larder.start")
        rows = [row for _, row in reader().start_list(value)] if value else []
        yield layer["digest"], notes["containerd.io/snapshot/larder.index"].rpartition(":")[2], rows


def table(root, index):
    """The chunks of a layer in a node's store: (offset in the tar, length, stored length)."""
    return reader().Layer(os.path.join(root, "store", index)).chunks


def present(root, index, chunks):
    """The rows of the chunks that are in the device file: pages that lie in one chunk alone say so."""
    rows = set()
    with open(os.path.join(root, "store", index, "device"), "rb") as device:
        for row, (offset, length, _) in enumerate(chunks):
            first, end = -(-offset // PAGE) * PAGE, (offset + length) // PAGE * PAGE
            with contextlib.suppress(OSError):  # nothing but a hole until the end
                if first < end and os.lseek(device.fileno(), first, os.SEEK_DATA) < end:
                    rows.add(row)
    return rows


class Start(world.Case):
    beside = True

    def recorded(self, reference, driver):
        """The rows that a start reads of each layer, by the layer's index; and where the indexes are."""
        root, profile = self.folder(), os.path.join(self.folder(), "profile")
        world.snapshotter("profile", "record", "--root", root, "--fs-driver", driver, "--settle", str(SETTLE_SECONDS), "-o", profile, reference)
        with open(profile) as text:
            layers = json.load(text)["layers"]
        return root, profile, {layer["index"].partition(":")[2]: [row for _, row in layer["reads"]] for layer in layers}

    @contextlib.contextmanager
    def mounted(self, reference, driver):
        root, place = self.folder(), self.folder()
        world.snapshotter("mount", "--root", root, "--fs-driver", driver, "--detach", reference, place)
        try:
            yield root, place
        finally:
            world.snapshotter("umount", "--root", root, place)

    def test_lists_are_the_same_each_time_and_have_program_loader_and_libc(self):
        """Promise: an image has the same lists whether its layers are converted now or were there already; the chunks at the beginning of the program, its loader and the C library are listed; a list fits a label, and
        `check` finds nothing wrong with it."""
        for name in REAL:
            with self.subTest(image=name):
                target = os.path.join(self.folder(), "out")
                world.larder("convert", "--no-cache", f"oci:{images.layout(name)}:latest", f"oci:{target}:latest")
                one = images.Image(target)
                _, listed = published(name)
                self.assertEqual(one.manifest["layers"], world.manifest(listed)["layers"])
                world.larder("check", f"oci:{target}:latest")
                found = {}
                for layer in one.manifest["layers"]:
                    value = layer["annotations"].get("containerd.io/snapshot/larder.start", "")
                    self.assertLessEqual(len("containerd.io/snapshot/larder.start" + value), 4096)
                    rows = {row for _, row in reader().start_list(value)} if value else set()
                    index = reader().Layer(one.path(layer["digest"]))
                    for path, inode, _ in index.image.walk():
                        if path in (PROGRAMS[name], LOADER, LIBC) and inode.size and inode.layout == 0:
                            _, at, _ = next(index.image.extents(inode))
                            row = next(row for row, (offset, length, _) in enumerate(index.chunks) if offset <= at < offset + length)
                            found[path] = row in rows
                self.assertEqual(found, dict.fromkeys((PROGRAMS[name], LOADER, LIBC), True))

    @once_per(driver=DRIVERS)
    def test_a_list_covers_what_a_start_reads(self, driver):
        """Promise: most of what a cold start of a real image reads is on its list, and little else is; a profile of that start
        takes the list's place, in its order."""
        for name, (covered_min, wasted_max) in COVERED.items():
            with self.subTest(image=name):
                bare, listed = published(name)
                root, profile, reads = self.recorded(bare, driver)
                read = on_it = wasted = 0
                for _, index, rows in lists(listed):
                    size, got, listed_rows = table(root, index), set(reads.get(index, [])), set(rows)
                    stored = [sum(size[row][2] for row in rows) for rows in (got, got & listed_rows, listed_rows - got)]
                    read, on_it, wasted = read + stored[0], on_it + stored[1], wasted + stored[2]
                print(f"{name}: a start reads {read / 1e6:.1f} MB, of which {on_it / 1e6:.1f} MB are listed ({on_it / read:.0%}); "
                      f"{wasted / 1e6:.1f} MB of the list are not read", flush=True)
                self.assertGreaterEqual(on_it / read, covered_min)
                self.assertLessEqual(wasted / (on_it + wasted), wasted_max)
                world.larder("convert", "--profile", profile, bare, bare.replace(":larder", ":recorded"))
                embedded = {index: rows for _, index, rows in lists(bare.replace(":larder", ":recorded"))}
                self.assertEqual({index: rows for index, rows in embedded.items() if rows},
                                 {index: rows for index, rows in reads.items() if rows})

    def test_a_node_fetches_what_is_listed_before_anything_is_read(self):
        """Promise: once an image is mounted, the chunks of its list come without being asked for, and no others."""
        _, listed = published("nginx")
        with self.mounted(listed, "auto") as (root, _):
            wanted = [(index, set(rows), table(root, index)) for _, index, rows in lists(listed)]
            at_once = [present(root, index, chunks) - rows for index, rows, chunks in wanted]
            rig.wait_for(lambda: all(rows <= present(root, index, chunks) | zeros(chunks, rows) for index, rows, chunks in wanted),
                         "the list to be fetched", seconds=WAIT_SECONDS_MAX)
            self.assertEqual([present(root, index, chunks) - rows for index, rows, chunks in wanted], at_once)
            self.assertEqual(at_once, [set() for _ in wanted])


# Of each image: the least share of what is read that is listed, and the largest share of the list that is not read.
COVERED = {"python": (0.7, 0.25), "nginx": (0.8, 0.2), "node": (0.65, 0.15)}


def zeros(chunks, rows):
    """Rows of chunks too small to tell whether they are there: no page is theirs alone."""
    return {row for row in rows if -(-chunks[row][0] // PAGE) * PAGE >= sum(chunks[row][:2]) // PAGE * PAGE}


if __name__ == "__main__":
    import unittest
    unittest.main()
