"""Records a start with everything on the node: what the oracle is computed from, and on the way the profile of a first start."""

import glob
import importlib.util
import json
import os
import signal
import statistics
import time

import rig
import start_oracle

# What is measured is the start alone.
SETTINGS = "complete_in_background = false\n"
SETTLED_SECONDS_MAX = 60  # a start is over ten seconds after its last first read
WARM_STARTS = 3


def profile_command(programs, node, *words):
    snapshotter = os.path.join(programs, "larder-snapshotter")
    return rig.run(snapshotter, "profile", words[0], "--root", os.path.join(node.work, "larder"), *words[1:])


def exported(programs, node, reference):
    """What the node has learnt a start of the image to read, once it has."""
    def is_known():
        return bool(json.loads(profile_command(programs, node, "list", "--json"))["profiles"]) or None
    rig.wait_for(is_known, "the start to be over", node.log, SETTLED_SECONDS_MAX)
    return json.loads(profile_command(programs, node, "export", reference))


def started(node, reference, ready):
    """One container until it is ready: seconds from the command to its snapshot, and to ready."""
    began, wall = time.monotonic(), time.time()
    name = f"trace-{time.monotonic_ns()}"
    process = node.start_container(reference, name)
    try:
        rig.wait_until_ready(process, ready, node)
        seconds = time.monotonic() - began
        # Recording begins when the container's snapshot is made, the newest of all.
        with os.scandir(os.path.join(node.work, "larder", "snapshots")) as places:
            prepared = max(place.stat().st_mtime for place in places) - wall
    finally:
        node.end_container(process, name)
    return min(max(prepared, 0.0), seconds), seconds


def chunk_tables(node):
    """For each layer's index on the node the (stored bytes, bytes of content) of its chunks."""
    path = os.path.join(rig.TOP, "scripts", "read-index.py")
    spec = importlib.util.spec_from_file_location("read_index", path)
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    layers = glob.glob(os.path.join(node.work, "larder", "store", "*", "index"))
    tables = {}
    for index in layers:
        folder = os.path.dirname(index)
        chunks = reader.Layer(folder).chunks
        tables["sha256:" + os.path.basename(folder)] = [(stored, length) for _, length, stored in chunks]
    return tables


def restart_with_cold_caches(node):
    """A node whose kernel has nothing of the image in memory, but all that was fetched on its disk, and that in memory."""
    node.kill_snapshotter(signal.SIGTERM)
    rig.drop_caches()
    for device in glob.glob(os.path.join(node.work, "larder", "store", "*", "device")):
        read_present(device)
    node.start_snapshotter()
    listed = ("snapshots", "--snapshotter", node.snapshotter, "ls")
    rig.wait_for(lambda: node.ctr_ok(*listed), "containerd to connect", node.log)


def read_present(path):
    """Brings what a sparse file has into memory."""
    with open(path, "rb", buffering=0) as file:
        end, at = os.fstat(file.fileno()).st_size, 0
        while at < end:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                return  # holes from here on
            hole = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            while at < hole:
                at += len(os.pread(file.fileno(), min(1 << 20, hole - at), at))


def record(programs, work, address, reference, driver, ready):
    """The rows of a trace, and the profile of the first start, as JSON."""
    node = rig.Node(work, programs, True, driver, settings=SETTINGS)
    try:
        node.start(address)
        node.pull(reference)
        started(node, reference, ready)
        first = exported(programs, node, reference)
        profile_command(programs, node, "remove", reference)
        restart_with_cold_caches(node)
        began, took = started(node, reference, ready)
        again = exported(programs, node, reference)
        warm = statistics.median(started(node, reference, ready)[1] for _ in range(WARM_STARTS))
        tables = chunk_tables(node)
    finally:
        node.close()
    trace = start_oracle.trace_of(again, tables, began, took, warm)
    seen = {layer["index"] for layer in again["layers"] if layer["reads"]}
    unseen = [tables[layer["index"]][row] for layer in first["layers"] if layer["index"] not in seen
              for _, row in layer["reads"] if row < len(tables[layer["index"]])]
    trace = start_oracle.with_unseen(trace, unseen)
    return {"reads": [[read.at, read.stored, read.length] for read in trace.reads], "ready": took, "warm": warm}, first
