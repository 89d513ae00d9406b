# SPDX-License-Identifier: Apache-2.0
"""A reader of OpenMetrics text that takes nothing that the format does not say."""
import re

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(,?)')
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
SUFFIXES = {"gauge": [""], "counter": ["_total"],
            "histogram": ["_bucket", "_sum", "_count"]}  # those that we use


class Family:
    def __init__(self, name, kind):
        self.name, self.kind = name, kind
        self.unit = self.help = None
        self.samples = {}  # sorted ((label, value), …) -> number

    def __getitem__(self, labels):
        return self.samples[tuple(sorted(labels.items()))]


def read_labels(text, where):
    labels, at = {}, 0
    while at < len(text):
        match = LABEL.match(text, at)
        assert match, where
        name, value, comma = match.groups()
        assert name not in labels and not name.startswith("__"), where
        assert bool(comma) == (match.end() < len(text)), where
        labels[name] = value
        at = match.end()
    return tuple(sorted(labels.items()))


def read_metadata(line, families, family, where):
    word, name, text = line[2:].split(" ", 2)
    assert NAME.fullmatch(name), where
    if family is None or name != family.name:
        assert name not in families, f"a family comes in one piece: {where}"
        assert word == "TYPE" and text in SUFFIXES, where
        families[name] = Family(name, text)
        return families[name]
    assert not family.samples, f"behind its samples: {where}"
    if word == "UNIT":
        assert family.unit is None and name.endswith("_" + text), where
        family.unit = text
    else:
        assert word == "HELP" and family.help is None and text.strip(), where
        family.help = text
    return family


def check_histogram(family):
    """One without labels of its own: counts grow with their bounds, to that of all."""
    assert not {name for key in family.samples for name, _ in key} - {"", "le"}, family.name
    buckets = [(float(dict(key)["le"]), value) for key, value in family.samples.items()
               if dict(key)[""] == "_bucket"]
    assert buckets == sorted(buckets) and len({bound for bound, _ in buckets}) == len(buckets)
    assert [value for _, value in buckets] == sorted(value for _, value in buckets), family.name
    assert buckets[-1] == (float("inf"), family[{"": "_count"}]), family.name
    assert family[{"": "_sum"}] >= 0 and len(family.samples) == len(buckets) + 2, family.name


def read(text):
    """{name: Family}, the names as in TYPE."""
    assert text.endswith("\n# EOF\n") and text.count("# EOF") == 1
    families, family = {}, None
    for number, line in enumerate(text.splitlines()[:-1], 1):
        where = f"line {number}: {line}"
        if line.startswith("# "):
            family = read_metadata(line, families, family, where)
            continue
        match = re.fullmatch(r"([^{ ]+)(?:\{(.*)\})? (\S+)", line)
        assert match and family is not None, where
        name, labels, value = match.groups()
        suffix = name.removeprefix(family.name)
        assert name.startswith(family.name) and suffix in SUFFIXES[family.kind], where
        key = read_labels(labels or "", where)
        if family.kind == "histogram":
            key += (("", suffix),)
        assert key not in family.samples, f"twice: {where}"
        assert NUMBER.fullmatch(value) and (family.kind == "gauge" or float(value) >= 0), where
        family.samples[key] = float(value)
    full = [f.name + suffix for f in families.values() for suffix in {"", *SUFFIXES[f.kind]}]
    assert len(full) == len(set(full)), "names clash"
    for one in families.values():
        assert one.help and (one.samples or one.kind == "counter"), one.name
        if one.kind == "histogram":
            check_histogram(one)
            continue
        assert len({tuple(name for name, _ in key) for key in one.samples}) <= 1, one.name
        assert not re.search(r"_(seconds|bytes)$", one.name) or one.unit, f"{one.name} has no unit"
    return families


def older(text):
    """The same in the format before OpenMetrics, which promtool reads."""
    lines, suffix = [], ""
    for line in text.splitlines()[:-1]:
        match = re.fullmatch(r"# (TYPE|UNIT|HELP) (\S+) (.*)", line)
        if match:
            word, name, rest = match.groups()
            suffix = {"counter": "_total"}.get(rest, "") if word == "TYPE" else suffix
            line = f"# {word} {name}{suffix} {rest}"
        if not line.startswith("# UNIT"):
            lines.append(line)
    return "\n".join(lines) + "\n"
