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

# What a build needs from the distribution; what only adds to it (man pages, the journal); and
# what its tests need besides.
build_packages=(cmake ninja-build gcc pkg-config libuv1-dev libmsgpack-dev libcjson-dev
	libxxhash-dev libeconf-dev libsmartcols-dev uthash-dev)
optional_packages=(libsystemd-dev scdoc)
packages=("${build_packages[@]}" "${optional_packages[@]}" g++ python3 python3-venv libcmocka-dev)
# What scripts/test wants besides; the sanitizers' runtime is that of the default clang.
list_test_packages() {
	local version
	version=$(apt-cache depends clang 2>/dev/null |
		sed -n 's/^ *Depends: clang-\([0-9][0-9]*\)$/\1/p' | head -n 1)
	printf '%s\n' clang clang-format clang-tidy "libclang-rt-${version:-14}-dev" codespell \
		shellcheck systemd libseccomp2
}

missing_packages() {
	comm -23 <(printf '%s\n' "$@" | sort -u) <(
		dpkg-query -W -f='${db:Status-Status} ${Package}\n' "$@" 2>/dev/null |
			sed -n 's/^installed //p' | sort -u
	)
}

# How this user becomes root without a question: into the array sudo; fails when he cannot.
find_root() {
	sudo=()
	[ "$(id -u)" = 0 ] && return
	command -v sudo >/dev/null && sudo -n true 2>/dev/null || return 1
	sudo=(sudo -n)
}
install_packages() { # PACKAGES…, after find_root
	"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
	"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
		--no-install-recommends "$@" >/dev/null
}
