"""What the tests of this folder share: check() and the closing line "N passed, N failed"; skip() counts as neither."""
import os
import sys
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# What costs time to fetch is kept here between runs.
CACHE = os.environ.get("LATENTD_TEST_CACHE", "/tmp/latentd-tests")


class Skip(Exception):
    """A test that cannot show anything here."""


class Failure(Exception):
    """A test that does not hold."""


def check(held, *words):
    if not held:
        raise Failure(" ".join(str(w) for w in words) or "does not hold")


def read(*path):
    with open(os.path.join(ROOT, *path), encoding="utf-8") as file:
        return file.read()


def run_tests(tests):
    """Runs the functions TESTS in order; with arguments those whose names contain one of them."""
    passed = failed = skipped = 0
    for test in tests:
        if len(sys.argv) > 1 and not any(word in test.__name__ for word in sys.argv[1:]):
            continue
        try:
            test()
        except Skip as why:
            skipped += 1
            print(f"skip {test.__name__}: {why}", flush=True)
        except Exception as why:  # noqa: BLE001: whatever it is, the other tests go on
            failed += 1
            if not isinstance(why, Failure):
                traceback.print_exc()
            print(f"FAIL {test.__name__}: {why}", flush=True)
        else:
            passed += 1
            print(f"ok {test.__name__}", flush=True)
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return failed != 0
