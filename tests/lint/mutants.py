# SPDX-License-Identifier: Apache-2.0
"""Show that tests fail when the line they guard is changed: each row of tests/mutants.toml is
applied in a copy of the tree, one test program is built there, and it has to fail.

Usage: mutants.py [FILE…]   (only the rows of these files)
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, **options)


def replaced(text, line, becomes):
    """The text with that line (blanks folded) replaced; None unless it stands exactly once."""
    pattern = r"\s+".join(re.escape(word) for word in line.split())
    matches = list(re.finditer(pattern, text))
    if len(matches) != 1:
        return None
    return text[:matches[0].start()] + becomes + text[matches[0].end():]


def try_one(mutant, tree, build):
    file = tree / mutant["file"]
    original = file.read_text()
    changed = replaced(original, mutant["line"], mutant["becomes"])
    if changed is None:
        return "the line does not stand there exactly once"
    try:
        file.write_text(changed)
        made = run("ninja", "-C", str(build), mutant["target"])
        if made.returncode != 0:
            return "does not compile: " + made.stdout[-600:]
        program = next(iter(build.glob(f"**/{mutant['target']}")))
        try:
            done = run(str(program), cwd=tree, timeout=120)
        except subprocess.TimeoutExpired:
            return None  # it hangs: found
        return None if done.returncode != 0 else "SURVIVED"
    finally:
        file.write_text(original)


def main():
    rows = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text())["mutant"]
    if sys.argv[1:]:
        rows = [row for row in rows if row["file"] in sys.argv[1:]]
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
