"""What the grid has measured: a file of JSON lines, one for each start, so that a run that was stopped goes on where it was."""

import contextlib
import dataclasses
import json
import math
import os
import statistics
import tempfile

import start_oracle

# What must be the same for two starts to be compared.
NAMED = {"start": ("image", "recipe", "programs", "link", "variant", "turn"),
         "trace": ("image", "recipe", "programs", "driver"),
         "form": ("image", "recipe", "programs", "link", "level", "chunk", "driver", "turn")}
# The ordinary pull, by containerd's overlayfs and by its erofs snapshotter.
EAGER, EAGER_EROFS = "eager", "eager-erofs"
# Most of T* for a first start ever, up to a link's round trip in seconds. With a profile it is the same everywhere.
FIRST_START_MAX = ((0.001, 2.0), (0.010, 3.0), (math.inf, 4.0))
WITH_PROFILE_MAX = 1.25
NEAR, FAR = "lan", "150ms"
COLUMNS = ("image", "link", "start", "ready, s", "spread", "ordinary pull, s", "B10", "T*, s", "on a warm connection", "B1", "goal", "moved, MB",
           "touched, MB", "B2", "starts")


@contextlib.contextmanager
def scratch():
    """A file that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield os.path.join(folder, "results.jsonl")


class Results:
    """The lines of the file; the last one may be half, where a run was killed. What was measured beside other work counts only where that
    is asked for: a quiet run measures it again."""

    def __init__(self, path, with_busy=True):
        self.path, self.rows = path, []
        if os.path.exists(path):
            with open(path) as lines:
                text = lines.read()
            whole = text[:text.rfind("\n") + 1]
            if whole != text:
                os.truncate(path, len(whole.encode()))
            rows = map(json.loads, whole.splitlines())
            self.rows = [row for row in rows if with_busy or not row["busy"]]

    def add(self, row):
        self.rows.append(row)
        with open(self.path, "a") as out:
            out.write(json.dumps(row) + "\n")
            out.flush()
            os.fsync(out.fileno())

    def has(self, row):
        return self.find(row) is not None

    def find(self, row):
        """The line that measured the same."""
        wanted = key(row)
        return next((one for one in self.rows if key(one) == wanted), None)

    def trace(self, image, recipe, programs):
        """The recorded start that every other one of this image is held against: that of the driver which reads less, since what the other
        reads more is not needed, with the shortest warm start of both."""
        rows = [row for row in self.rows
                if row["kind"] == "trace" and (row["image"], row["recipe"], row["programs"]) == (image, recipe, programs)]
        traces = [start_oracle.Trace(tuple(start_oracle.Read(*read) for read in row["reads"]), row["ready"], row["warm"]) for row in rows]
        if not traces:
            return None
        least = min(traces, key=start_oracle.Trace.touched)
        return dataclasses.replace(least, warm=min(trace.warm for trace in traces))

    def cells(self):
        """For each image, link and kind of start its medians and what the goals are about."""
        starts = {}
        for row in self.rows:
            if row["kind"] == "start":
                starts.setdefault(key(row)[1:-1], []).append(row)
        for (image, recipe, programs, link, variant), rows in starts.items():
            trace = self.trace(image, recipe, programs)
            eager = starts.get((image, recipe, programs, link, EAGER))
            yield cell(rows, trace, eager) | {"image": image, "link": link, "variant": variant, "programs": programs}

    def show(self):
        """The table of docs/BENCHMARKS.md."""
        lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        for one in self.cells():
            goal, reached = goal_of(one)
            b1 = figure(one["B1"])
            if one["variant"].startswith(EAGER):
                one |= dict.fromkeys(("least", "least_warm", "touched", "B2"))
                b1 = ""
            words = (one["image"], one["link"], one["variant"] + (" (busy machine)" if one["busy"] else ""), figure(one["seconds"]),
                     "–".join(map(figure, one["spread"])), figure(one["eager"]), figure(one["B10"]), figure(one["least"]), figure(one["least_warm"]),
                     b1 if reached else f"**{b1}**", goal, figure(one["moved"] / 1e6),
                     figure(one["touched"] and one["touched"] / 1e6), figure(one["B2"]), str(one["starts"]))
            lines.append("| " + " | ".join(words) + " |")
        return "\n".join(lines + [""] + list(self.round_trips()))

    def round_trips(self):
        """How many round trips follow one another until a pull returns: what it takes longer where each takes longer."""
        pulls = {(one["image"], one["variant"], one["programs"], one["link"]): one for one in self.cells()}
        for (image, variant, programs, link), far in pulls.items():
            near = pulls.get((image, variant, programs, NEAR))
            if link == FAR and near and not variant.startswith(EAGER):
                trips = (far["pull_seconds"] - near["pull_seconds"]) / (far["round_trip"] - near["round_trip"])
                yield f"{image}, {variant}: {trips:.1f} round trips until the pull returns"


def key(row):
    return (row["kind"], *(row[name] for name in NAMED[row["kind"]]))


def cell(rows, trace, eager):
    seconds, moved = ([row[name] for row in rows] for name in ("seconds", "bytes"))
    rate, round_trip = (statistics.median(row["measured"][name] for row in rows) for name in ("rate", "round_trip"))
    took = statistics.median(seconds)
    found = {"rtt": rows[0]["rtt"], "seconds": took, "spread": (min(seconds), max(seconds)), "moved": statistics.median(moved), "starts": len(rows),
             "pull_seconds": statistics.median(row["pull_seconds"] for row in rows), "round_trip": round_trip,
             "busy": any(row["busy"] for row in rows)}
    found["eager"] = statistics.median(row["seconds"] for row in eager) if eager else None
    found["B10"] = took / found["eager"] if eager and rows[0]["variant"] != EAGER else None
    found["least"] = start_oracle.least_seconds(trace, rate, round_trip) if trace else None
    found["least_warm"] = start_oracle.least_seconds(trace, rate, round_trip, connections=0) if trace else None
    found["touched"] = trace.touched() if trace else None
    found["B1"] = took / found["least"] if trace else None
    found["B2"] = found["moved"] / found["touched"] if trace and found["touched"] else None
    return found


def goal_of(one):
    """The goal of B1 in words, and whether it is reached."""
    if one["variant"].startswith(EAGER) or one["B1"] is None:
        return "", True
    if one["variant"].endswith("profile"):
        most = WITH_PROFILE_MAX
    else:
        most = next(most for limit, most in FIRST_START_MAX if one["rtt"] <= limit)
    return f"≤ {most}", one["B1"] <= most


def figure(value):
    return "" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"
