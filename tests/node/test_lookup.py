"""Nodes whose containerd says of a layer only which chain it completes: what is lazy, and where its bytes come from, is then
looked up in containerd's content store."""

import os

import world
from kubelet import FOREVER, NAMESPACE, Kubelet
from world import RELEASES, once_per

MOTD = "six layers"


class Lookup(world.Case):
    """With `disable_snapshot_annotations = true` and without `enable_remote_snapshot_annotations`."""

    def states(self, node):
        return [layer["state"] for layer in world.status(os.path.join(node.work, "larder"))["layers"]]

    def assert_lazy(self, node, image, namespace):
        downloaded = world.layers(image) & node.blobs(namespace)
        self.assertFalse(downloaded, "layers in the content store")
        states = self.states(node)
        self.assertTrue(states, "no layer at all")
        self.assertLessEqual(set(states), {"lazy", "complete"})

    def pod_says(self, node, image):
        kubelet = Kubelet(node, self.folder())
        kubelet.ask("pull", image)
        kubelet.start_pod()
        container, _ = kubelet.start(image, *FOREVER)
        said = kubelet.ask("exec", container, "/bin/cat", "/etc/motd")
        kubelet.end(container)
        kubelet.end_pod()
        return said

    @once_per(release=RELEASES)
    def test_a_pod_is_lazy_when_cri_names_no_image(self, release):
        """Promise: no layer is downloaded; the repository is found by the labels of the manifest that was just pulled."""
        _, pause = world.publish("pause")
        _, converted = world.publish("tools-layers")
        with self.node(release, lazy=True, sandbox=pause, annotations=False) as node:
            self.assertEqual(self.pod_says(node, converted), MOTD)
            self.assert_lazy(node, converted, NAMESPACE)
            self.assert_lazy(node, pause, NAMESPACE)

    @once_per(release=RELEASES)
    def test_an_original_is_lazy_where_its_converted_twin_is_known(self, release):
        """Promise: a layer without any label but its chain is found, with its index, in the manifest of another image."""
        _, pause = world.publish("pause")
        original, converted = world.publish("tools-layers")
        with self.node(release, lazy=True, sandbox=pause, annotations=False) as node:
            node.ctr("-n", NAMESPACE, "images", "pull", "--hosts-dir", os.path.join(node.work, "certs.d"),
                     "--snapshotter", "overlayfs", converted)
            self.assertEqual(self.pod_says(node, original), MOTD)
            self.assert_lazy(node, original, NAMESPACE)

    def test_ctr_of_containerd_2_is_lazy(self):
        """Promise: as the clients of containerd 2.0, whose transfer service has no annotations to switch on."""
        _, converted = world.publish("tools-layers")
        with self.node("2", lazy=True, annotations=False) as node:
            node.pull(converted)
            self.assert_lazy(node, converted, "default")
            self.assertEqual(node.printed("run", "--rm", "--snapshotter", "larder", converted, "one"), MOTD + "\n")

    @once_per(release=RELEASES)
    def test_a_port_that_nobody_tells_means_an_ordinary_unpack_with_the_reason(self, release):
        """Promise: containerd notes registries without their ports. Where `[hosts]` does not give it back, the image works, and
        `status` names the host that was asked. (It also shows that these nodes say nothing of the image by other ways.)"""
        _, pause = world.publish("pause")
        _, converted = world.publish("tools-layers")
        with self.node(release, lazy=True, sandbox=pause, annotations=False, ports=False) as node:
            self.assertEqual(self.pod_says(node, converted), MOTD)
            layers = world.status(os.path.join(node.work, "larder"))["layers"]
            self.assertEqual({layer["state"] for layer in layers}, {"eager"})
            for layer in layers:
                self.assertRegex(layer["reason"], r"127\.0\.0\.1")
            self.assertEqual(world.layers(converted) - node.blobs(NAMESPACE), set())
