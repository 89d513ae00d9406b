#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The library exports what symbols.txt says, no more and no less, and needs no libuv.
# usage: check_symbols.sh LIBRARY
set -eu
here=$(dirname "$0")
found=$(nm -D --defined-only "$1" | awk '$3 !~ /^__(asan|odr_asan|tsan|ubsan)/ {print $3}' | LC_ALL=C sort)
wanted=$(LC_ALL=C sort "$here/symbols.txt")
if [ "$found" != "$wanted" ]; then
	echo "exported symbols differ from tests/abi/symbols.txt (< found, > wanted):"
	printf '%s\n' "$found" > "${TMPDIR:-/tmp}/found.$$"
	printf '%s\n' "$wanted" | diff "${TMPDIR:-/tmp}/found.$$" - || true
	rm -f "${TMPDIR:-/tmp}/found.$$"
	exit 1
fi
if objdump -p "$1" | grep -E 'NEEDED.*(libuv|libmsgpack|libcjson|libsystemd)'; then
	echo "the library must not need the daemon's libraries"
	exit 1
fi
objdump -p "$1" | grep -q 'SONAME *libdistorch.so.1$' || {
	echo "the library's SONAME is not libdistorch.so.1"
	exit 1
}
