"""What the scripts say of what they leave out."""

import contextlib
import io
import os
import subprocess
import unittest
from unittest import mock

import world
from world import rig

import bench

PRINTED = """\
test here::it_works ... ok
test erofs::a_read ... ignored, needs kernel ≥ 6.12
test erofs::a_walk ... ignored, needs kernel ≥ 6.12
test odd ... ignored
test result: ok. 1 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.00s
test other ... FAILED
test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
"""


class Scripts(unittest.TestCase):
    """Nothing that was not run counts as passed without a word."""

    def counts(self, *options):
        command = ["awk", *options, "-f", os.path.join(world.TOP, "scripts/lib/unit-counts.awk")]
        return subprocess.run(command, input=PRINTED, capture_output=True, text=True, check=True).stdout

    def test_ignored_tests_are_counted_with_their_reasons(self):
        """Promise: the summary of scripts/test has the number of tests that were ignored, and why."""
        self.assertEqual(self.counts(), "1 passed, 1 failed, 3 ignored\n")
        told = sorted(self.counts("-v", "reasons=1").splitlines())
        self.assertEqual(told, ["ignored 1: no reason is given", "ignored 2: needs kernel ≥ 6.12"])

    def test_the_benchmark_skips_a_driver_that_the_kernel_has_not_got(self):
        """Promise: on an older kernel the benchmark measures FUSE, and says in one line that it does not measure EROFS."""
        for release, expected in (("6.1.0-9-amd64", ["fuse"]), ("6.12.1", ["erofs", "fuse"]), ("7.0", ["erofs", "fuse"])):
            said = io.StringIO()
            with self.subTest(release), mock.patch.object(rig.os, "uname", return_value=mock.Mock(release=release)):
                with contextlib.redirect_stderr(said):
                    self.assertEqual(bench.usable(["erofs", "fuse"]), expected)
                self.assertEqual(len(said.getvalue().splitlines()), 2 - len(expected))


if __name__ == "__main__":
    unittest.main()
