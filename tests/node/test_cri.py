"""Pods as a kubelet starts them, through the socket of containerd's CRI plugin, on each containerd release."""

import world
from kubelet import FOREVER, NAMESPACE, Kubelet
from world import DRIVERS, RELEASES, once_per, rig


class Pods(world.Case):
    """The README's configuration block, with a sandbox image and what this machine needs added."""

    beside = True

    def kubelet(self, node):
        return Kubelet(node, self.folder())

    @once_per(release=RELEASES, driver=DRIVERS)
    def test_a_pod_runs_without_its_layers_and_leaves_nothing(self, release, driver):
        """Promise: exec, writing, users and logs work in a lazily pulled pod; no layer is downloaded; removal leaves nothing."""
        _, pause = world.publish("pause")
        _, converted = world.publish("tools-layers")
        with self.node(release, lazy=True, driver=driver, sandbox=pause) as node:
            kubelet = self.kubelet(node)
            kubelet.ask("pull", converted)
            kubelet.start_pod()
            self.assertEqual(set(kubelet.ask("images").split()), {pause, converted})

            container, _ = kubelet.start(converted, *FOREVER)
            self.assertEqual(kubelet.ask("exec", container, "/bin/cat", "/etc/motd"), "six layers")
            kubelet.ask("exec", container, "/bin/sh", "-c", "echo changed >> /etc/motd; rm /etc/secret; mkdir /new")
            self.assertEqual(kubelet.ask("exec", container, "/bin/sh", "-c", "cat /etc/motd; ls /etc /new"),
                             "six layers\nchanged\n/etc:\ngroup\nhostname\nhosts\nmotd\npasswd\nresolv.conf\n\n/new:")
            kubelet.end(container)

            worker = kubelet.says(converted, "/suid/root", user=1000)
            self.assertRegex(worker, "^uid 1000 euid 0 egid 1000 ")
            bind = kubelet.says(converted, "/caps/bind", user=1000)
            self.assertRegex(bind, "^uid 1000 euid 1000 egid 1000 effective 0000000000000400")

            container, log = kubelet.start(converted, "/bin/sh", "-c", "cat /etc/motd; exec sleep 1000000")
            self.says_in_log(log, "six layers")
            kubelet.end(container)
            downloaded = (world.layers(converted) | world.layers(pause)) & node.blobs(NAMESPACE)
            self.assertFalse(downloaded, "layers in the content store")

            kubelet.end_pod()
            for image in (converted, pause):
                kubelet.ask("remove-image", image)
            self.gone(node.left_behind)

    def says_in_log(self, log, text):
        def lines():
            with open(log) as file:
                return file.read()
        rig.wait_for(lambda: f" stdout F {text}\n" in lines(), f"{text!r} in {log}", lines)

    @once_per(release=RELEASES, driver=DRIVERS)
    def test_original_and_converted_live_together_and_either_goes_first(self, release, driver):
        """Promise: equal chain IDs mean shared snapshots; the tag that stays still runs a new container; then nothing is left."""
        _, pause = world.publish("pause")
        tags = world.publish("tools-layers")
        with self.node(release, lazy=True, driver=driver, sandbox=pause) as node:
            for pulled in (tags, tags[::-1]):
                for first, second in (tags, tags[::-1]):
                    with self.subTest(pulled=pulled, removed=first):
                        kubelet = self.kubelet(node)
                        for tag in pulled:
                            kubelet.ask("pull", tag)
                        kubelet.start_pod()
                        for tag in tags:
                            self.assertEqual(kubelet.says(tag, "/bin/cat", "/etc/motd"), "six layers")
                        # CRI takes both tags for one image, as they have one ID, and would remove both at once.
                        node.ctr("-n", NAMESPACE, "images", "rm", "--sync", first)
                        rig.wait_for(lambda: first not in kubelet.ask("images").split(), f"CRI to forget {first}")
                        self.assertEqual(kubelet.says(second, "/bin/cat", "/etc/group"), "root:x:0:\nworker:x:1000:")
                        kubelet.end_pod()
                        for tag in (second, pause):
                            kubelet.ask("remove-image", tag)
                        self.gone(node.left_behind)
