"""`larder-snapshotter run` without containerd; `examples/prepare` speaks to it as containerd would."""

import hashlib
import json
import os
import subprocess
import tempfile

import rig


class Daemon:
    """One daemon with a root of its own. `deadline` is that of reads, seconds; `before` are words of a command that starts it; `settings`
    are further lines of its configuration."""

    def __init__(self, programs, work, driver, registry, deadline=600, before=(), settings=""):
        self.programs, self.before = programs, before
        self.root = tempfile.mkdtemp(dir=work)
        self.socket = os.path.join(self.root, "l.sock")
        self.settings, self.log = os.path.join(self.root, "larder.toml"), os.path.join(self.root, "log")
        with open(self.settings, "w") as out:
            out.write(f'root = "{self.root}/larder"\naddress = "{self.socket}"\nfs_driver = "{driver}"\n'
                      f'read_deadline_seconds = {deadline}\n{settings}[containerd]\naddress = "{self.root}/none.sock"\n'
                      f'[registry]\nplain_http = ["{registry}"]\n')
        self.start()

    def start(self):
        program = os.path.join(self.programs, "larder-snapshotter")
        with open(self.log, "a") as out:
            self.process = subprocess.Popen([*self.before, program, "run", "--config", self.settings], stdout=out, stderr=out)
        rig.wait_for(lambda: rig.listens(self.socket), "the daemon to listen", lambda: open(self.log).read())

    def prepare(self, labels, *words):
        """What `examples/prepare` prints for a layer."""
        program = os.path.join(self.programs, "examples", "prepare")
        command = [program, self.socket, os.path.join(self.root, "larder"), *map(str, words)]
        return rig.run(*command, input=json.dumps(labels)).strip()

    def processes(self):
        """The supervisor, and the daemon it started; one process where there is no supervisor."""
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as children:
            return [self.process.pid, *map(int, children.read().split())]

    def memory(self):
        """Their anonymous memory, MB: the heaps and the stacks, not the files they have mapped."""
        total = 0
        for process in self.processes():
            with open(f"/proc/{process}/status") as status:
                total += sum(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
        return total / 1e3

    def unexpected(self, expected=()):
        """Lines of its log above INFO without any of the expected words."""
        with open(self.log) as log:
            above = [line for line in log if " WARN " in line or " ERROR " in line or "panicked" in line]
        return [line for line in above if not any(word in line for word in expected)]

    def close(self):
        rig.stop(self.process)
        rig.unmount_below(self.root)


def labels(registry, reference):
    """For each layer of an image the labels that containerd's unpacker hands to a snapshotter; `registry` has an address."""
    repository, tag = reference.partition("/")[2].rsplit(":", 1)
    manifest, config = rig.image_of(registry, repository, tag)
    prefix, chain = "containerd.io/snapshot/", None
    for layer, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        inherited = {name: value for name, value in layer.get("annotations", {}).items() if name.startswith(prefix)}
        chain = "sha256:" + hashlib.sha256(f"{chain} {diff_id}".encode()).hexdigest() if chain else diff_id
        own = {"containerd.io/snapshot.ref": chain, prefix + "cri.image-ref": reference, prefix + "cri.layer-digest": layer["digest"]}
        yield inherited | own
