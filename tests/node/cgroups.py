"""A memory limit for one process, by whichever version of cgroups has the memory controller here."""

import os
import secrets

V1, V2 = "/sys/fs/cgroup/memory", "/sys/fs/cgroup"


class Limited:
    """A group with a limit of memory, bytes. `before` are the words of a command that starts another one in it."""

    def __init__(self, limit):
        self.is_v1 = os.path.exists(os.path.join(V1, "memory.limit_in_bytes"))
        self.path = os.path.join(V1 if self.is_v1 else V2, "larder-test-" + secrets.token_hex(4))
        os.mkdir(self.path)
        self.write("memory.limit_in_bytes" if self.is_v1 else "memory.max", limit)
        self.before = ("sh", "-c", f'echo $$ >{self.path}/cgroup.procs && exec "$@"', "sh")

    def write(self, name, value):
        with open(os.path.join(self.path, name), "w") as out:
            out.write(str(value))

    def numbers(self, name):
        with open(os.path.join(self.path, name)) as table:
            return {line.split()[0]: int(line.split()[1]) for line in table}

    def kills(self):
        """How often the kernel killed a process of the group for want of memory."""
        return self.numbers("memory.oom_control" if self.is_v1 else "memory.events")["oom_kill"]

    def peak(self):
        """Most bytes the group had, page cache included."""
        with open(os.path.join(self.path, "memory.max_usage_in_bytes" if self.is_v1 else "memory.peak")) as value:
            return int(value.read())

    def remove(self):
        os.rmdir(self.path)
