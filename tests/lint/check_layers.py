# SPDX-License-Identifier: Apache-2.0
"""Who may include whom (docs/architecture.md), as a table. Run from the root of the tree.

A file given as an argument is judged as if it stood in the folder given before it:
check_layers.py --as daemon/core FILE (used by the lint's own test).
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

# room -> rooms it may include besides itself
ROOMS = {
    "base": set(),
    "base/os": {"base"},
    "proto": {"base"},
    "daemon/core": {"base"},
    "daemon/plan": {"base"},
    "daemon/format": {"base"},
    "daemon/device": {"base", "base/os", "proto"},
    "daemon/load": {"base", "base/os", "daemon/format", "daemon/device", "proto"},
    "daemon/ipc": {"base", "base/os", "proto"},
    "daemon": {"base", "base/os", "proto", "daemon/core", "daemon/plan", "daemon/format",
               "daemon/device", "daemon/load", "daemon/ipc"},
    "client": {"base", "base/os", "proto"},
    "client/ctl": {"base"},
}
# files that may include more than their room: `distorchctl plan` plans without a daemon, and devices
# are named as it names them
MORE = {
    "client/ctl/verb_plan.c": {"daemon/plan"},
    "client/ctl/verb_devices.c": {"daemon/plan"},
    "client/ctl/plan_file.h": {"daemon/plan"},
    "client/ctl/plan_file.c": {"daemon/plan", "daemon/format", "base/os"},
}
EVERYBODYS = {"proto/gen/wire_code.h"}  # the words for errors, and dtypes
# library header -> places that may include it
LIBRARIES = {
    "uv.h": ("daemon/",), "cjson/cJSON.h": ("daemon/format/safetensors.c", "daemon/format/header.c",
                                            "daemon/state_text.c", "client/ctl/render"),
    "msgpack": ("proto/wire_encode.c",), "cuda.h": ("daemon/device/cuda", "client/map_cuda.c"),
    "nvml.h": ("daemon/device/cuda",),
    "libsmartcols/libsmartcols.h": ("client/ctl/render.c",), "curses.h": ("client/ctl/top_screen.c",),
    "libeconf.h": ("daemon/config",),
    "uthash.h": ("daemon/",), "utlist.h": ("daemon/",),
    "xxhash.h": ("daemon/load/", "client/"),
}
UV_FREE = ("daemon/core/", "daemon/plan/", "daemon/format/", "daemon/device/", "daemon/load/")
INCLUDE = re.compile(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]')


def room_of(path):
    parts = path.split("/")[:-1]
    while parts and "/".join(parts) not in ROOMS:
        parts.pop()
    return "/".join(parts)


def judge(path, text):
    room = room_of(path)
    for number, line in enumerate(text.splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        kind, name = match.groups()
        if kind == '"' and "/" in name and name not in EVERYBODYS:
            target = room_of(name)
            if target not in {room} | ROOMS[room] | MORE.get(path, set()):
                yield f"{path}:{number}: {room} may not include {name}"
        for library, places in LIBRARIES.items():
            is_there = name.startswith(library) if library[-1] == "/" else (
                name == library or library == "msgpack" and name.startswith("msgpack"))
            if is_there and not path.startswith(places):
                yield f"{path}:{number}: {name} is for {', '.join(places)} only"
        if name == "uv.h" and path.startswith(UV_FREE):
            yield f"{path}:{number}: only daemon/ and daemon/ipc know libuv"


def main():
    if sys.argv[1:2] == ["--as"]:
        files = {f"{sys.argv[2]}/{pathlib.Path(sys.argv[3]).name}": sys.argv[3]}
    else:
        names = subprocess.run(["git", "ls-files", "*.c", "*.h"], cwd=ROOT, capture_output=True,
                               text=True, check=True).stdout.split()
        files = {n: ROOT / n for n in names if room_of(n)}
    findings = [f for path, file in sorted(files.items())
                for f in judge(path, pathlib.Path(file).read_text())]
    print("\n".join(findings))
    sys.exit(1 if findings else 0)


main()
