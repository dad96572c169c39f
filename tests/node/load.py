"""Readers of a mounted image while daemons come and go: what they saw, and how long they waited."""

import bisect
import glob
import hashlib
import io
import json
import os
import random
import select
import signal
import subprocess
import sys
import tarfile
import time

import layouts
from world import rig

HERE = os.path.dirname(os.path.abspath(__file__))
KINDS = ("buffered", "mapped", "direct", "listed", "executed")
READERS = 16
FILES = 150  # of each layer
FILE_BYTES_MAX = 120_000
LARGE_BYTES = 6_000_000
LIFE_SECONDS = (0, 0.15)  # of a daemon, once it serves
QUIET_SECONDS = 1  # of every twentieth: by then all is as before the kill
START_SECONDS_MAX = 120  # for a daemon on a busy machine; only tells a start from a hang
REST_SECONDS_MAX = 180  # for a reader to end what it does
SHELL = "/bin/dash"


def image(folder, seed):
    """Writes a layout of two layers, the second without extended attributes; its tars."""
    source = random.Random(seed)
    tars = []
    for layer in ("first", "second"):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
            def add(name, data, mode=0o644, **pax):
                entry = tarfile.TarInfo(f"{layer}/{name}")
                entry.size, entry.mode, entry.pax_headers = len(data), mode, pax
                archive.addfile(entry, io.BytesIO(data))
            for number in range(FILES):
                add(f"{number % 10}/{number}", source.randbytes(source.randrange(1, FILE_BYTES_MAX)))
            add("large", source.randbytes(LARGE_BYTES))
            with open(SHELL, "rb") as program:
                shell = program.read()
            for number in range(10):
                add(f"bin/{number}", shell, 0o755)
            if layer == "first":
                add("marked", b"marked", **{"SCHILY.xattr.user.mark": "yes"})
        tars.append(out.getvalue())
    layouts.write(folder, [(layouts.packed(data), data) for data in tars])
    return tars


def sums(folder, tars, devices):
    """What a reader has to know of an image with these tars, and of devices of the session, by their tars; a file's path."""
    files, programs, known = {}, [], {}
    for number, data in enumerate(tars):
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for entry in archive:
                content = archive.extractfile(entry).read()
                files[entry.name] = [len(content), hashlib.sha256(content).hexdigest()]
                if entry.mode == 0o755:
                    programs.append(entry.name)
        if number in devices:
            path = os.path.join(folder, f"tar-{number}")
            with open(path, "wb") as out:
                out.write(data)
            known[devices[number]] = [len(data), path]
    path = os.path.join(folder, "sums.json")
    with open(path, "w") as out:
        json.dump({"files": files, "programs": programs, "devices": known}, out)
    return path


def devices(root, tars):
    """Where the session serves the devices of these tars, by number."""
    found = {}
    for record in glob.glob(os.path.join(root, "store/*/layer.json")):
        with open(record) as text:
            slot = json.load(text)["slot"]
        device = os.path.join(root, "session/dev", str(slot))
        for number, data in enumerate(tars):
            if os.path.getsize(device) == -(-len(data) // 4096) * 4096 or os.path.getsize(device) == len(data):
                found[number] = device
    return found


def devices_of(known):
    """The devices that a file of `sums` names."""
    with open(known) as file:
        return list(json.load(file)["devices"])


class Load:
    """Readers of `place`, each in a process of its own."""

    def __init__(self, place, known, seed, readers=READERS):
        self.readers = []
        for number in range(readers):
            command = [sys.executable, "-B", os.path.join(HERE, "reader.py"), KINDS[number % len(KINDS)], place, known, str(seed + number)]
            self.readers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))

    def stop(self):
        """Ends them; what each saw. One that does not end hangs."""
        for reader in self.readers:
            reader.stdin.close()
            reader.stdin = None
        said, until = [], time.monotonic() + REST_SECONDS_MAX
        for reader in self.readers:
            try:
                out, errors = reader.communicate(timeout=max(1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.kill()
                raise rig.RigError(f"a reader hangs: {' '.join(reader.args)}") from None
            if reader.returncode != 0:
                self.kill()
                raise rig.RigError(f"a reader died by {reader.returncode}: {' '.join(reader.args)}\n{errors}")
            said.append(json.loads(out))
        return said

    def kill(self):
        for reader in self.readers:
            reader.kill()
        for reader in self.readers:
            reader.wait()


def stalls(said, deaths):
    """For each death, the longest operation of any reader that was under way between it and the next one; seconds, ascending."""
    waits = [0.0] * len(deaths)
    for begin, took in (operation for one in said for operation in one["slow"]):
        first = max(0, bisect.bisect_right(deaths, begin) - 1)
        for number in range(first, bisect.bisect_left(deaths, begin + took)):
            waits[number] = max(waits[number], took)
    return sorted(waits)


def quantile(values, part):
    return values[min(len(values) - 1, int(len(values) * part))] if values else 0.0


class Log:
    """A daemon's log, as it grows."""

    def __init__(self, path):
        self.file = open(path)
        self.file.seek(0, os.SEEK_END)
        self.lines = []

    def wait(self, text, process):
        """Waits for a line with `text` from now on."""
        until = time.monotonic() + START_SECONDS_MAX
        rest = ""
        while time.monotonic() < until:
            rest += self.file.read()
            *lines, rest = rest.split("\n")
            self.lines += lines
            if any(text in line for line in lines):
                return
            if process.poll() is not None:
                raise rig.RigError(f"the supervisor ended with {process.returncode}")
            time.sleep(0.001)
        raise rig.RigError(f"no line with {text!r} within {START_SECONDS_MAX} s")

    def rest(self):
        """Takes what was written until now."""
        self.lines += self.file.read().split("\n")


def kill_again_and_again(supervisor, log, count, seed, by=signal.SIGKILL, before=lambda number: None, life=LIFE_SECONDS):
    """Kills daemon after daemon at random moments, every tenth of them while it starts, every twentieth after a while; the moments."""
    chance = random.Random(seed)
    deaths = []
    for number in range(count):
        before(number)
        until = time.monotonic() + START_SECONDS_MAX
        while not (living := rig.daemons(supervisor.pid)):
            if time.monotonic() > until:
                raise rig.RigError("no daemon")
            time.sleep(0.001)
        if number % 10 == 9:
            time.sleep(chance.uniform(0, 0.05))
        else:
            if deaths:
                log.wait("serving the mounts of the daemon before", supervisor)
            time.sleep(QUIET_SECONDS if number % 20 == 10 else chance.uniform(*life))
        for pid in living:
            end(pid, by, deaths)
            while pid in rig.daemons(supervisor.pid):
                time.sleep(0.001)
    log.wait("ready for containerd", supervisor)
    return deaths


def end(pid, by, deaths):
    """Sends a daemon a signal and waits for the end of its first thread, without taking the processor from its successor."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        deaths.append(time.monotonic())
        signal.pidfd_send_signal(process, by)
        select.select([process], [], [], START_SECONDS_MAX)
    except ProcessLookupError:
        pass
    finally:
        os.close(process)
