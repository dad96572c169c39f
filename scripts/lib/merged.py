#!/usr/bin/env python3
"""merged.py FILES LAYERS...: what a stack of so many layers costs the kernel, and what one merged image of them does.

Run it as `scripts/lib/isolated --scratch scripts/lib/merged.py 60000 2 16 52`, as root. Layers, made up by larder-proto's example `erofs_cost`,
are mounted from the disk, without FUSE, below an overlay for changes; `ext4` is the same tree, its files empty, unpacked. Milliseconds and KiB."""

import ctypes
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

RUNS = 5
EXAMPLE = os.path.join(os.path.dirname(os.path.realpath(__file__)), "../../target/release/examples/erofs_cost")
FSOPEN, FSCONFIG, FSMOUNT, MOVE_MOUNT = 430, 431, 432, 429
libc = ctypes.CDLL(None, use_errno=True)


def call(*arguments):
    result = libc.syscall(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{arguments}: {os.strerror(ctypes.get_errno())}")
    return result


def mount(kind, options, target):
    """By the newer calls: more devices than fit the page that mount(2) takes."""
    os.makedirs(target, exist_ok=True)
    context = call(FSOPEN, kind.encode(), 1)
    for key, value in options:
        call(FSCONFIG, context, 1, key.encode(), value.encode(), 0)
    call(FSCONFIG, context, 6, None, None, 0)
    made = call(FSMOUNT, context, 1, 0)
    call(MOVE_MOUNT, made, b"", -100, target.encode(), 4)
    os.close(made)
    os.close(context)


def overlay(folder, lower):
    changes = tempfile.mkdtemp(dir=folder)
    for name in ("upper", "work"):
        os.mkdir(f"{changes}/{name}")
    options = [("source", "x"), *(("lowerdir+", layer) for layer in lower)]
    mount("overlay", [*options, ("upperdir", f"{changes}/upper"), ("workdir", f"{changes}/work")], f"{folder}/shown")


def seconds(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def slab():
    with open("/proc/meminfo") as memory:
        return next(int(line.split()[1]) for line in memory if line.startswith("Slab:"))


def measure(folder, make, lower):
    """Mount, first and second `find`, and what the kernel's memory grew by; `make` mounts the lower layers."""
    made = 1000 * seconds(lambda: (make(), overlay(folder, lower)))
    with open("/proc/sys/vm/drop_caches", "w") as drop:
        drop.write("3")
    before = slab()
    find = ["find", f"{folder}/shown", "-ls"]
    cold, warm = (1000 * seconds(lambda: subprocess.run(find, stdout=subprocess.DEVNULL, check=True)) for _ in range(2))
    grown = slab() - before
    subprocess.run(["umount", f"{folder}/shown", *(layer for layer in lower if os.path.ismount(layer))], check=True)
    return made, cold, warm, grown


def row(folder, layers):
    tars = [f"{folder}/tar-{number}" for number in range(layers)]
    places = [f"{folder}/layer-{number}" for number in range(layers)]

    def stack():
        for number, place in enumerate(places):
            mount("erofs", [("source", f"{folder}/meta-{number}"), ("device", tars[number])], place)

    def merged():
        mount("erofs", [("source", f"{folder}/merged"), *(("device", tar) for tar in tars)], f"{folder}/one")

    merged()
    subprocess.run(["cp", "-a", "--attributes-only", f"{folder}/one/.", f"{folder}/unpacked"], check=True)
    subprocess.run(["umount", f"{folder}/one"], check=True)
    ways = {"stack": (stack, places[::-1]), "merged": (merged, [f"{folder}/one"]), "ext4": (lambda: None, [f"{folder}/unpacked"])}
    found = {way: [] for way in ways}
    for _ in range(RUNS):
        for way, (make, lower) in ways.items():
            found[way].append(measure(folder, make, lower))
    for way, runs in found.items():
        middle = [statistics.median(values) for values in zip(*runs)]
        print(f"{layers:4} {way:7} mount {middle[0]:7.1f}  find {middle[1]:8.0f} {middle[2]:8.0f}  slab {middle[3]:8.0f}", flush=True)


def main():
    files, *counts = sys.argv[1:]
    print("load", *os.getloadavg())
    for layers in map(int, counts):
        folder = tempfile.mkdtemp()
        subprocess.run([EXAMPLE, folder, str(layers), files], check=True)
        row(folder, layers)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
