# SPDX-License-Identifier: Apache-2.0
"""Show that tests fail when the line they guard is removed. In a copy of the tree a check is
taken out, the tests of its room are built and have to fail. The rows of tests/mutants.toml are
tried, and ten checks ("if (…) { return a failure; }") that this script chooses by a seed.

Usage: mutants.py [--chosen N] [--seed N] [FILE…]      (files: only what lies in these)
"""
import argparse
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile

try:
    import tomllib
except ImportError:  # Python before 3.11
    import tomli as tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Where checks are chosen, and the tests (ctest names) that have to notice.
ROOMS = {
    "base/os/*.c": r"^base/os/",
    "base/*.c": r"^base/",
    "proto/wire*.c": r"^(proto|client)/",
    "proto/table.c": r"^proto/table",
    "daemon/format/*.c": r"^daemon/format/",
    "daemon/core/*.c": r"^(core|daemon/core)/",
    "daemon/plan/*.c": r"^daemon/plan/",
    "daemon/config*.c": r"^config/|^daemon/config",
    "daemon/load/file.c": r"^daemon/load/",
}
GUARD = re.compile(r"^\s*(?:\} else )?if \((?P<condition>[^{}]*?)\) \{\n"
                   r"\s*(?:return err_set\w*\(|return false;|return fail\w*\(|return -WIRE|"
                   r"code = WIRE_)", re.MULTILINE)


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, **options)


def chosen(n_wanted, seed):
    """Rows like those of mutants.toml, for checks chosen by the seed."""
    candidates = []
    for pattern, tests in ROOMS.items():
        for path in sorted(ROOT.glob(pattern)):
            text = path.read_text()
            for match in GUARD.finditer(text):
                condition = match["condition"]
                name = str(path.relative_to(ROOT))
                line = text.count("\n", 0, match.start("condition")) + 1
                # What a failing machine causes is shown by the loops of failed calls.
                if "NULL" in condition or "sys_" in condition or "malloc" in condition:
                    continue
                candidates.append({"file": name, "span": match.span("condition"),
                                   "becomes": f"false && ({condition})", "tests": tests,
                                   "guards": f"line {line}: {' '.join(condition.split())}"})
    return random.Random(seed).sample(candidates, min(n_wanted, len(candidates)))


def place_of(row, text):
    """Where the row's line (blanks folded) stands; None unless exactly once."""
    if "span" in row:
        return row["span"]
    pattern = r"\s+".join(re.escape(word) for word in row["line"].split())
    matches = list(re.finditer(pattern, text))
    return matches[0].span() if len(matches) == 1 else None


def do_tests_fail(row, build):
    tests = row.get("tests", "^$")
    listed = run("ctest", "--test-dir", str(build), "-N", "-R", tests, "-LE", "fuzz")
    names = re.findall(r"Test +#\d+: (\S+)", listed.stdout)
    if not names:
        return f"no test is called {tests}"
    known = run("ninja", "-C", str(build), "-t", "targets", "all").stdout
    targets = ["test_" + name.replace("/", "_") for name in names]
    targets = [target for target in targets if f"\n{target}:" in known]
    made = run("ninja", "-C", str(build), *targets)
    if made.returncode != 0:
        return "does not compile: " + made.stdout[-600:]
    done = run("ctest", "--test-dir", str(build), "-R", tests, "-LE", "fuzz", "-j", "2",
               "--timeout", "120")
    return None if done.returncode != 0 else "SURVIVED"


def try_one(row, tree, build):
    file = tree / row["file"]
    original = file.read_text()
    span = place_of(row, original)
    if span is None:
        return "the line does not stand there exactly once"
    try:
        file.write_text(original[:span[0]] + row["becomes"] + original[span[1]:])
        return do_tests_fail(row, build)
    finally:
        file.write_text(original)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--chosen", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("files", nargs="*")
    options = parser.parse_args()
    rows = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text())["mutant"]
    rows += chosen(options.chosen, options.seed)
    if options.files:
        rows = [row for row in rows if row["file"] in options.files]
    n_bad = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree, build = pathlib.Path(folder) / "tree", pathlib.Path(folder) / "build"
        files = run("git", "ls-files", cwd=ROOT).stdout.split("\n")
        for name in filter(None, files):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_file():
                shutil.copy2(ROOT / name, tree / name)
        made = run("cmake", "-S", str(tree), "-B", str(build), "-G", "Ninja",
                   "-DDISTORCH_TESTING=ON", "-DCMAKE_BUILD_TYPE=Debug", env=dict(os.environ))
        if made.returncode != 0:
            sys.exit(made.stdout + made.stderr)
        for row in rows:
            problem = try_one(row, tree, build)
            n_bad += problem is not None
            print(f"{'dies' if problem is None else problem}: {row['file']}: {row['guards']}",
                  flush=True)
    print(f"{len(rows) - n_bad} of {len(rows)} die")
    sys.exit(1 if n_bad else 0)


main()
