# SPDX-License-Identifier: Apache-2.0
"""Sizes of the house: functions up to 70 lines, 6 arguments and 4 levels; files up to 700
lines, headers up to 150. A waiver is a line in waivers.txt: what, a colon, the reason."""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
WAIVERS = {line.split(": ")[0] for line in
           (ROOT / "tests/lint/waivers.txt").read_text().splitlines() if ": " in line}


def functions(lines):
    """(name, first line, lines, arguments, levels) of clang-formatted code."""
    start = None
    for i, line in enumerate(lines):
        if line == "{":
            start = i
        elif line == "}" and start is not None:
            head = []
            j = start - 1
            while j >= 0 and lines[j].strip() and not lines[j].startswith(("}", "#", "/*", " */")):
                head.insert(0, lines[j].strip())
                j -= 1
            text = " ".join(head)
            match = re.search(r"(\w+)\((.*)\)[^()]*$", text)
            if match and not text.startswith(("struct", "enum", "union")) or match and "(" in text:
                body = lines[start + 1:i]
                depth = max([len(x) - len(x.lstrip("\t")) for x in body
                             if x.strip() and re.match(r"\t+(if|for|while|switch|do)\b", x)] or [0])
                flat = re.sub(r"\([^()]*\)", "", match.group(2))
                arguments = 0 if flat.strip() in ("", "void") else flat.count(",") + 1
                yield match.group(1), start + 1, i - start + 1, arguments, depth
            start = None


def judge(name, text):
    lines = text.splitlines()
    limit = 150 if name.endswith(".h") else 700
    if len(lines) > limit:
        yield name, f"{len(lines)} lines, {limit} are allowed"
    for function, at, size, arguments, depth in functions(lines):
        where = f"{name}:{function}"
        if size > 70:
            yield where, f"{size} lines from line {at}, 70 are allowed"
        if arguments > 6:
            yield where, f"{arguments} arguments, 6 are allowed"
        if depth > 4:
            yield where, f"{depth} levels, 4 are allowed"


def main():
    names = sys.argv[1:] or [n for n in subprocess.run(
        ["git", "ls-files", "*.c", "*.h"], cwd=ROOT, capture_output=True, text=True,
        check=True).stdout.split() if not n.startswith("proto/gen/")]
    findings = [f"{where}: {what}" for n in names
                for where, what in judge(n, (ROOT / n).read_text()) if where not in WAIVERS]
    print("\n".join(findings))
    sys.exit(1 if findings else 0)


main()
