"""The table that decides chunk size and level: what each costs a conversion, a registry and a cold start."""

import os
import statistics
import sys
import tempfile
import time

import grid
import links
import results
import rig

IMAGES = ("python", "node", "nginx", "jvm", "postgres", "compiler")
DEFAULT_CHUNK, DEFAULT_LEVEL = 256 << 10, 3
# The size at the level that is the default, and the level at the size that is.
FORMS = tuple((chunk << 10, DEFAULT_LEVEL) for chunk in (128, 256, 512, 1024)) + ((DEFAULT_CHUNK, 6), (DEFAULT_CHUNK, 9))
COLUMNS = ("image", "chunk, KiB", "level", "size, MB", "against gzip", "conversion, s", "ready, s", "spread", "moved, MB", "starts")


def run(args, images, shapes, drivers, work, kept):
    for image in images:
        if why := grid.obstacle(args, work, image):
            raise rig.RigError(why)
        for shape in shapes:
            Forms(args, work, image, drivers, kept).run(shape)


class Forms(grid.Grid):
    """One image in all forms; first starts ever, over one link."""

    def rows(self, shape):
        """In turns, each the other way round than the one before."""
        for turn in range(self.args.pairs):
            for chunk, level in FORMS if turn % 2 == 0 else reversed(FORMS):
                for driver in self.drivers:
                    row = {"kind": "form", "link": shape.name, "chunk": chunk, "level": level, "driver": driver, "turn": turn} | self.named
                    if not self.kept.has(row):
                        yield row

    def run(self, shape):
        missing = list(self.rows(shape))
        if not missing:
            grid.say(f"{self.image}: all of it is there")
            return
        with grid.published(self.args, self.work, self.layout, self.image) as (storage, link, _):
            ready = grid.ready_of(link, self.image)
            costs = {form: self.convert(link, *form) for form in FORMS}
            link.close()
            link = links.open_link(tempfile.mkdtemp(dir=self.work), shape, storage)
            try:
                for row in missing:
                    measured, refused = links.calibrated(link, shape, self.args.busy)
                    found = self.start_form(link, row, ready)
                    self.kept.add(row | costs[row["chunk"], row["level"]] | found | {
                        "measured": measured._asdict(), "busy": bool(refused), "at": time.time()})
                    grid.say(f"{self.image}, {row['chunk'] >> 10} KiB, level {row['level']}, {row['driver']}: "
                             f"{found['seconds']:.2f} s, {found['bytes'] / 1e6:.1f} MB")
            finally:
                link.close()

    def convert(self, link, chunk, level):
        """Converts within the registry, without what is remembered of other conversions; what that costs."""
        inner = f"127.0.0.1:5000/bench/{self.image}"
        larder = os.path.join(self.args.programs, "larder")
        command = [larder, "convert", "--plain-http", "--no-cache", "--level", str(level), "--chunk-size", str(chunk),
                   f"{inner}:original", f"{inner}:{tag(chunk, level)}"]
        took, memory = rig.cost(["ip", "netns", "exec", link.namespace, *command])
        size, original = (sum(layer["size"] for layer in rig.image_of(link, f"bench/{self.image}", name)[0]["layers"])
                          for name in (tag(chunk, level), "original"))
        return {"size": size, "original": original, "conversion_seconds": took, "memory_kb": memory}

    def start_form(self, link, row, ready):
        node = rig.Node(self.work, self.args.programs, True, row["driver"])
        try:
            node.start(link.address)
            found = rig.cold_start(link, node, f"{link.address}/bench/{self.image}:{tag(row['chunk'], row['level'])}", ready)
        finally:
            node.close()
        return {name: found[name] for name in ("seconds", "pull_seconds", "bytes")}


def tag(chunk, level):
    return f"c{chunk}-l{level}"


def show(kept):
    """A table of medians, for each driver."""
    groups = {}
    for row in kept.rows:
        if row["kind"] == "form":
            groups.setdefault((row["link"], row["driver"], row["programs"]), {}).setdefault(
                (row["image"], row["chunk"], row["level"]), []).append(row)
    texts = []
    for (link, driver, _), forms in groups.items():
        lines = [f"{driver}, {link}:", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        for (image, chunk, level), rows in sorted(forms.items()):
            def middle(name, rows=rows):
                return statistics.median(row[name] for row in rows)
            seconds = [row["seconds"] for row in rows]
            mark = " (busy machine)" if any(row["busy"] for row in rows) else ""
            words = (image + mark, str(chunk >> 10), str(level), results.figure(middle("size") / 1e6),
                     f"{middle('size') / middle('original'):.3f}", results.figure(middle("conversion_seconds")),
                     results.figure(middle("seconds")), f"{min(seconds):.2f}–{max(seconds):.2f}",
                     results.figure(middle("bytes") / 1e6), str(len(rows)))
            lines.append("| " + " | ".join(words) + " |")
        texts.append("\n".join(lines))
    return "\n\n".join(texts)


def main(path):
    """Shows a file of results."""
    print(show(results.Results(path)))


if __name__ == "__main__":
    main(sys.argv[1])
