"""Paired measurements: ABBA order, medians, and a table of ratios."""

import json
import platform
import statistics
import sys
import time


def abba(pairs, first, second):
    """Calls both in the order A B, B A, A B, …; the two lists of what they returned."""
    samples = ([], [])
    for turn in range(pairs):
        order = (0, 1) if turn % 2 == 0 else (1, 0)
        for which in order:
            samples[which].append((first, second)[which]())
    return samples


def seconds(action):
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def percentile(samples, percent):
    return sorted(samples)[min(len(samples) - 1, len(samples) * percent // 100)]


class Table:
    """Rows of one run; each has the samples of both sides and the ratio of their medians."""

    def __init__(self):
        self.rows, self.texts, self.starts = [], [], []

    def pair(self, what, unit, ours, theirs, goal):
        row = {"what": what, "unit": unit, "larder": ours, "other": theirs, "goal": goal}
        row["median"] = [statistics.median(ours), statistics.median(theirs)]
        row["ratio"] = row["median"][0] / row["median"][1]
        self.rows.append(row)
        print(f"    {what}: {row['median'][0]:.4g} against {row['median'][1]:.4g} {unit}, ratio {row['ratio']:.2f}",
              file=sys.stderr, flush=True)

    def single(self, what, unit, value, goal, samples=()):
        self.rows.append({"what": what, "unit": unit, "value": value, "goal": goal, "samples": list(samples)})
        print(f"    {what}: {value:.4g} {unit}", file=sys.stderr, flush=True)

    def show(self):
        """What was measured in Markdown; first the tables of those that make their own."""
        for text in self.texts:
            print(text + "\n")
        if not self.rows:
            return
        print("| what | Larder | other | ratio | goal |\n|---|---|---|---|---|")
        for row in self.rows:
            if "ratio" in row:
                ours, theirs = row["median"]
                print(f"| {row['what']} ({row['unit']}) | {ours:.4g} | {theirs:.4g} | **{row['ratio']:.2f}** | {row['goal']} |")
            else:
                print(f"| {row['what']} ({row['unit']}) | {row['value']:.4g} | | | {row['goal']} |")

    def save(self, path):
        with open(path, "w") as out:
            json.dump({"kernel": platform.release(), "rows": self.rows, "starts": self.starts}, out, indent=1)
