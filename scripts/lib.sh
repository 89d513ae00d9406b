# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# What the scripts share; sourced, never run.
# shellcheck disable=SC2034 # used by those who source it
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '%s\n' "$*"; }
fail() {
	printf 'error: %s\n' "$1" >&2
	[ $# -lt 2 ] || printf 'hint:  %s\n' "$2" >&2
	exit 1
}

# What a build and its tests need from the distribution.
packages=(cmake ninja-build gcc g++ pkg-config python3 python3-venv libuv1-dev libmsgpack-dev
	libcjson-dev libxxhash-dev libeconf-dev libsmartcols-dev libsystemd-dev uthash-dev
	libcmocka-dev scdoc)
# What scripts/test wants besides; the sanitizers' runtime is that of the default clang.
clang_version=$(apt-cache depends clang 2>/dev/null |
	sed -n 's/^ *Depends: clang-\([0-9][0-9]*\)$/\1/p' | head -n 1)
test_packages=(clang clang-format clang-tidy "libclang-rt-${clang_version:-14}-dev" codespell
	shellcheck)

missing_packages() {
	local package
	for package in "$@"; do
		dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
			printf '%s\n' "$package"
	done
}
