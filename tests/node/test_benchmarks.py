"""What the benchmarks divide by: the oracle of a recorded start, and which measurements are refused."""

import unittest

import world  # noqa: F401 - it says where scripts/lib is

import links
import results
import start_oracle
import trips

MBIT = 1e6 / 8
MB = 1_000_000


class Oracle(unittest.TestCase):
    """Promise: T* is what its formula says; each expected figure was worked out by hand."""

    beside = True

    def test_a_transfer_takes_what_slow_start_and_the_link_take(self):
        """Promise: the table of the limit model comes out, to its last digit."""
        for round_trip, rate, size, one, eight in (
            (0.010, 200, 22.5, 0.93, 0.91), (0.050, 200, 8, 0.60, 0.45), (0.050, 200, 22.5, 1.18, 1.03),
            (0.050, 200, 60, 2.68, 2.53), (0.150, 50, 8, 2.03, 1.60), (0.150, 50, 22.5, 4.35, 3.92),
        ):
            with self.subTest(round_trip=round_trip, size=size):
                self.assertAlmostEqual(start_oracle.transfer(size * MB, rate * MBIT, round_trip), one, delta=0.006)
                self.assertAlmostEqual(start_oracle.transfer(size * MB, rate * MBIT, round_trip, 8), eight, delta=0.006)

    def test_what_fits_the_first_windows_takes_their_round_trips(self):
        """Promise: 14,600 bytes take one round trip, three times as many two; without a round trip or on a warm connection only the
        link counts."""
        for size, rounds in ((14_600, 1), (14_601, 2), (43_800, 2), (43_801, 3)):
            self.assertAlmostEqual(start_oracle.transfer(size, 25 * MB, 0.05), rounds * 0.05)
        self.assertEqual(start_oracle.transfer(25 * MB, 25 * MB, 0), 1)
        self.assertEqual(start_oracle.transfer(25 * MB, 25 * MB, 0.15, connections=0), 1)

    def test_the_last_chunk_that_comes_too_late_decides(self):
        """Promise: at 1 MB/s, a start of 2 s that reads 1 MB at once and 4 MB after one second is ready 5 + 1 s after, decoding apart; a
        fast link leaves the start itself."""
        trace = start_oracle.Trace((start_oracle.Read(0, 1 * MB, 0), start_oracle.Read(1, 4 * MB, 0)), ready=2, warm=2)
        self.assertAlmostEqual(start_oracle.least_seconds(trace, 1 * MB, 0), 6)
        self.assertAlmostEqual(start_oracle.least_seconds(trace, 1000 * MB, 0), 2.001)  # the first byte is waited for
        self.assertEqual(trace.touched(), 5 * MB)
        # The other way round: 4 MB first, which the whole start follows.
        turned = start_oracle.Trace((start_oracle.Read(0, 4 * MB, 0), start_oracle.Read(1, 1 * MB, 0)), ready=2, warm=2)
        self.assertAlmostEqual(start_oracle.least_seconds(turned, 1 * MB, 0), 6)
        late = start_oracle.Trace((start_oracle.Read(0, 4 * MB, 0), start_oracle.Read(2, 1 * MB, 0)), ready=2, warm=2)
        self.assertAlmostEqual(start_oracle.least_seconds(late, 1 * MB, 0), 6)

    def test_round_trips_and_decoding_are_added(self):
        """Promise: three round trips before the first byte, slow start on a cold connection, and a chunk's own decoding."""
        trace = start_oracle.Trace((start_oracle.Read(0, 14_600, 1_050_000),), ready=1, warm=1)
        self.assertAlmostEqual(start_oracle.least_seconds(trace, 25 * MB, 0.1), 0.3 + 0.1 + 0.001 + 1)
        self.assertAlmostEqual(start_oracle.least_seconds(trace, 25 * MB, 0.1, connections=0), 0.3 + 0.000584 + 0.001 + 1)

    def test_a_recording_slower_than_a_warm_start_is_shortened(self):
        """Promise: what the recording itself cost counts for nobody: a start of 4 s that takes 2 s in the page cache has half of each
        time left; one that was recorded faster is taken as it is."""
        trace = start_oracle.Trace((start_oracle.Read(3, 1 * MB, 0),), ready=4, warm=2)
        self.assertAlmostEqual(trace.remaining(trace.reads[0]), 0.5)
        self.assertAlmostEqual(start_oracle.least_seconds(trace, 0.1 * MB, 0), 10.5)
        self.assertAlmostEqual(start_oracle.Trace(trace.reads, ready=4, warm=5).remaining(trace.reads[0]), 1)

    def test_a_profile_becomes_a_trace(self):
        """Promise: steps add up layer by layer, rows give the sizes, all layers are one order; rows that are not there and reads once it was
        ready are none; what the recording could not see is touched and holds up nothing."""
        profile = {"layers": [{"index": "a", "reads": [[100_000, 1], [200_000, 0], [300_000, 0]]},
                              {"index": "b", "reads": [[150_000, 0], [1, 9]]}]}
        tables = {"a": [(10, 20), (30, 40)], "b": [(50, 60)]}
        trace = start_oracle.trace_of(profile, tables, 0.5, 1, 1)
        self.assertEqual([(round(read.at, 6), read.stored, read.length) for read in trace.reads],
                         [(0.6, 30, 40), (0.65, 50, 60), (0.8, 10, 20)])
        whole = start_oracle.with_unseen(trace, [(1000, 1)])
        self.assertEqual((whole.touched(), whole.remaining(whole.reads[-1])), (1090, 0))


class Refused(unittest.TestCase):
    """Promise: what was measured on a link that is not what it is called, or on a busy machine, is refused by a sentence."""

    beside = True

    def test_a_link_that_is_not_what_it_is_called_is_refused(self):
        shape = links.LINKS["50ms"]
        good = links.Measured(rate=0.95 * 25 * MB, round_trip=0.0505, foreign=0.0)
        self.assertIsNone(links.refusal(shape, good))
        for wrong, why in ((good._replace(rate=15 * MB), "120 Mbit/s"), (good._replace(rate=26 * MB), "208 Mbit/s"),
                           (good._replace(round_trip=0.056), "56.0 ms"), (good._replace(round_trip=0.04), "40.0 ms"),
                           (good._replace(foreign=0.5), "0.50 cores")):
            self.assertRegex(links.refusal(shape, wrong), why)
        self.assertIsNone(links.refusal(links.LINKS["lan"], links.Measured(0.93 * 125 * MB, 0.00012, 0.1)))
        self.assertRegex(links.refusal(links.LINKS["lan"], links.Measured(0.93 * 125 * MB, 0.0009, 0.1)), "0.9 ms")

    def test_links_are_named_or_told(self):
        """Promise: a name, or a rate and a round trip; what is neither is refused with what there is."""
        self.assertEqual(links.parse("150ms"), links.Shape("150ms", 50, 0.150))
        self.assertEqual(links.told("100mbit", 20), links.Shape("100mbit+20ms", 100, 0.020))
        self.assertEqual(links.told("1gbit", 0).mbit, 1000)
        for wrong in ("fast", "200"):
            with self.assertRaisesRegex(ValueError, "mbit|lan"):
                links.parse(wrong) if wrong == "fast" else links.told(wrong, 0)


class Kept(unittest.TestCase):
    """Promise: a run that was stopped goes on where it was, and a figure of one build never stands beside one of another."""

    beside = True

    def start(self, turn, variant="eager", seconds=10.0, **other):
        return {"kind": "start", "image": "python", "recipe": "r", "programs": "p", "link": "10ms", "variant": variant, "turn": turn,
                "seconds": seconds, "bytes": 20 * MB, "pull_seconds": 1.0, "busy": False, "rtt": 0.01,
                "measured": {"rate": 25e6, "round_trip": 0.01, "foreign": 0}} | other

    def trace(self, driver, stored, warm=1.0):
        return {"kind": "trace", "image": "python", "recipe": "r", "programs": "p", "driver": driver,
                "reads": [[0.0, stored, 0]], "ready": 1.0, "warm": warm, "busy": False}

    def test_what_is_there_is_not_measured_again(self):
        with results.scratch() as path:
            kept = results.Results(path)
            kept.add(self.start(0))
            with open(path, "a") as out:
                out.write('{"kind": "start", "image": "pyth')  # it was killed here
            again = results.Results(path)
            self.assertTrue(again.has(self.start(0)))
            self.assertFalse(again.has(self.start(1)))
            self.assertFalse(again.has(self.start(0, programs="other")))
            again.add(self.start(1))
            self.assertEqual(len(results.Results(path).rows), 2)
            again.add(self.start(2, busy=True))
            quiet = results.Results(path, with_busy=False)
            self.assertEqual([quiet.has(self.start(turn)) for turn in range(3)], [True, True, False])

    def test_a_cell_is_judged_by_the_oracle_and_by_the_ordinary_pull(self):
        """Promise: B1, B2 and B10 are quotients of medians; both drivers are held to the trace of fewer bytes, and to
        the shortest warm start."""
        with results.scratch() as path:
            kept = results.Results(path)
            for row in (self.trace("erofs", 20 * MB), self.trace("fuse", 10 * MB, warm=1.5)):
                kept.add(row)
            for turn, (lazy, eager) in enumerate(((3.0, 12.0), (2.0, 10.0), (9.0, 11.0))):
                kept.add(self.start(turn, "erofs", lazy))
                kept.add(self.start(turn, seconds=eager))
            kept.add(self.start(0, "fuse", 1.0, busy=True))
            [cell] = [cell for cell in kept.cells() if cell["variant"] == "erofs"]
            # 0.03 s, five windows of slow start (0.05 s and 452,600 bytes), the rest of 10 MB at 25 MB/s, one second of start.
            least = 0.03 + 0.05 + (10 * MB - 452_600) / 25e6 + 1
            self.assertAlmostEqual(cell["least"], least)
            self.assertAlmostEqual(cell["B1"], 3.0 / least)
            self.assertAlmostEqual(cell["B2"], 2.0)
            self.assertAlmostEqual(cell["B10"], 3.0 / 11.0)
            self.assertEqual((cell["spread"], cell["starts"], cell["busy"]), ((2.0, 9.0), 3, False))
            [busy] = [cell for cell in kept.cells() if cell["variant"] == "fuse"]
            self.assertTrue(busy["busy"])


class Rounds(unittest.TestCase):
    """What is counted of a start's round trips; requests as a recorder has them."""

    beside = True

    def request(self, came, answered, first=False, agent="larder/1", path="/v2/a/blobs/sha256:b", span=""):
        return trips.Request("registry", 1, first, agent, "GET", path, span, 206, 1, came, answered)

    def test_what_was_sent_before_an_answer_came_is_in_its_round(self):
        """Promise: requests that go side by side count once, those that wait for each other each, and a new connection once more."""
        requests = [self.request(0, 2, first=True), self.request(0.1, 2.1, first=True), self.request(2.05, 3), self.request(2.2, 4),
                    self.request(3.5, 5, first=True)]
        self.assertEqual(trips.rounds(requests), [2, 2, 3, 3, 5])

    def test_data_alone_counts_as_data(self):
        """Promise: from containerd's last request to data; what comes with an index, and what somebody else asks for, is none."""
        image = trips.Image("a", {"sha256:c": "config"}, {"sha256:b": 1000})
        begun = [self.request(0, 2, first=True, agent="containerd/2", path="/v2/a/blobs/sha256:c"),
                 self.request(2.1, 4.1, first=True, span="bytes=1000-1099"),
                 self.request(2.2, 4.2, first=True, span="bytes=0-1099")]
        self.assertIsNone(trips.own_rounds(begun, image))
        self.assertEqual(trips.own_rounds([*begun, self.request(4.3, 5.3, span="bytes=0-499")], image), 3)


if __name__ == "__main__":
    unittest.main()
