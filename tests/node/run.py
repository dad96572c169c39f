"""Runs the tests of a node, a part of them at a time.

    run.py alone             those that measure time: they want the machine for themselves
    run.py beside            those that measure none, which other work may run beside
    run.py NAME...           as in `python3 -m unittest`
"""

import sys
import unittest


def cases(suite):
    for one in suite:
        if isinstance(one, unittest.TestSuite):
            yield from cases(one)
        else:
            yield one


def part(names):
    loader = unittest.defaultTestLoader
    if names not in (["alone"], ["beside"]):
        return loader.loadTestsFromNames(names)
    # What does not say so measures time, and so does a module that cannot be imported.
    beside = names == ["beside"]
    return unittest.TestSuite(case for case in cases(loader.discover(".")) if getattr(case, "beside", False) == beside)


def names(failed):
    """What to run to repeat what failed: a test, also for a part of one, or a class whose preparation failed."""
    for case, _ in failed:
        case = getattr(case, "test_case", case)
        yield case.id().split("(")[-1].rstrip(")")


if __name__ == "__main__":
    result = unittest.TextTestRunner(verbosity=2).run(part(sys.argv[1:]))
    for name in names(result.failures + result.errors):
        print(f"repeat: {name}", flush=True)
    sys.exit(not result.wasSuccessful())
