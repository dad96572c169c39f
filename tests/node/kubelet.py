"""What a kubelet does, through the socket of containerd's CRI plugin."""

import os

import world
from world import rig

NAMESPACE = "k8s.io"
FOREVER = ("/bin/sleep", "1000000")


class Kubelet:
    """Asks containerd for one pod and what is in it."""

    def __init__(self, node, logs):
        self.node, self.logs, self.pod, self.count = node, logs, None, 0

    def ask(self, *words):
        return rig.run(os.path.join(world.PROGRAMS, "examples/cri"), self.node.socket, *words).strip()

    def start_pod(self):
        self.pod = self.ask("run-pod", "pod", self.logs)

    def end_pod(self):
        self.ask("stop-pod", self.pod)
        self.ask("remove-pod", self.pod)

    def start(self, image, *command, user=0):
        """A new container of an image; its id and the name of its log."""
        self.count += 1
        name = f"container-{self.count}"
        container = self.ask("create", self.pod, name, self.logs, image, user, *command)
        self.ask("start", container)
        return container, os.path.join(self.logs, name + ".log")

    def end(self, container):
        self.ask("stop", container)
        self.ask("remove", container)

    def says(self, image, *command, user=0):
        """What a command prints in a new container that otherwise sleeps."""
        container, _ = self.start(image, *FOREVER, user=user)
        try:
            return self.ask("exec", container, *command)
        finally:
            self.end(container)
