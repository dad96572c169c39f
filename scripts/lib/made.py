"""Images that are made for one benchmark, and the registry they are pushed to."""

import hashlib
import json
import os
import shutil
import tempfile

import rig


class Registry:
    """A registry on a fast link, with converted images in it."""

    def __init__(self, args, work, rate="20gbit", round_trip=0):
        self.args, self.work = args, tempfile.mkdtemp(dir=work)
        self.link = rig.Link(self.work, rate, round_trip=round_trip)
        try:
            self.link.start_registry(self.work)
        except rig.RigError:
            self.link.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.link.close()

    def push(self, layout, name):
        inner = f"127.0.0.1:5000/bench/{name}"
        self.link.inside("skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:latest", f"docker://{inner}:original")
        larder = os.path.join(self.args.programs, "larder")
        self.link.inside(larder, "convert", "--plain-http", f"{inner}:original", f"{inner}:larder")
        return f"{self.link.address}/bench/{name}:larder"


def one_layer(tree, folder):
    """The tree as an image of one gzip layer, so that a bare file system is compared with a bare file system."""
    blobs = os.path.join(folder, "blobs", "sha256")
    os.makedirs(blobs)
    plain = os.path.join(folder, "layer.tar")
    rig.run("tar", "--sort=name", "--xattrs", "--xattrs-include=*", "-C", tree, "-cf", plain, ".")
    diff_id = "sha256:" + rig.run("sha256sum", plain).split()[0]
    rig.run("gzip", "-f", "-n", plain)

    def keep(path=None, value=None):
        if path is None:
            path = os.path.join(folder, "document")
            with open(path, "w") as out:
                json.dump(value, out)
        with open(path, "rb") as data:
            digest = hashlib.file_digest(data, "sha256").hexdigest()
        kept = os.path.join(blobs, digest)
        os.rename(path, kept)
        return {"digest": "sha256:" + digest, "size": os.path.getsize(kept)}

    layer = keep(path=plain + ".gz") | {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}
    config = keep(value={"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [diff_id]}})
    config["mediaType"] = "application/vnd.oci.image.config.v1+json"
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = keep(value={"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]}) | {"mediaType": kind}
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    with open(os.path.join(folder, "index.json"), "w") as out:
        json.dump({"schemaVersion": 2, "manifests": [manifest]}, out)
    with open(os.path.join(folder, "oci-layout"), "w") as out:
        out.write('{"imageLayoutVersion": "1.0.0"}')


def unpack(layout, work):
    """The image's tree on the local file system, by buildah, which knows nothing of Larder."""
    tree, store = os.path.join(work, "ext4"), os.path.join(work, "buildah")
    command = ["buildah", "--root", store, "--runroot", store + "-run", "--storage-driver", "vfs"]
    rig.run("skopeo", "copy", "--quiet", f"oci:{layout}:latest", f"containers-storage:[vfs@{store}+{store}-run]localhost/bench:latest")
    container = rig.run(*command, "from", "localhost/bench:latest").strip()
    source = rig.run(*command, "mount", container).strip()
    rig.run("cp", "-a", source, tree)
    rig.run(*command, "umount", container)
    shutil.rmtree(store, ignore_errors=True)
    return tree


def small_files(work, name, count, content):
    """The layout of an image of one layer with `count` files."""
    tree, layout = os.path.join(work, name), os.path.join(work, name + "-layout")
    for number in range(count):
        folder = os.path.join(tree, f"d{number // 100:03}")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, f"file-{number:05}"), "wb") as out:
            out.write(content(number))
    one_layer(tree, layout)
    return layout
