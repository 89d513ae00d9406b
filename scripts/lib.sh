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

# What a build needs from the distribution; what only adds to it (man pages); and what
# its tests need besides.
build_packages=(cmake ninja-build gcc pkg-config libuv1-dev libmsgpack-dev libcjson-dev
	libxxhash-dev libsmartcols-dev libncurses-dev uthash-dev)
optional_packages=(scdoc)
packages=("${build_packages[@]}" "${optional_packages[@]}" g++ python3 python3-venv libcmocka-dev)
# What scripts/test wants besides; the sanitizers' runtime is that of the default clang.
list_test_packages() {
	local version
	version=$(apt-cache depends clang 2>/dev/null |
		sed -n 's/^ *Depends: clang-\([0-9][0-9]*\)$/\1/p' | head -n 1)
	printf '%s\n' clang clang-format clang-tidy "libclang-rt-${version:-14}-dev" codespell \
		shellcheck systemd libseccomp2 debhelper dh-python dpkg-dev file debootstrap lintian \
		btrfs-progs xfsprogs dosfstools
}

# Headers of NVIDIA's driver, which the CUDA backend is built with. NVIDIA publishes for these
# machines; where they cannot be had, the build leaves the backend out and says so.
venv=$root/build/venv
cuda_requirements=$root/scripts/requirements-cuda.txt
cuda_is_current() {
	[[ ! $(uname -m) =~ ^(x86_64|aarch64)$ ]] || cmp -s "$cuda_requirements" "$venv/.requirements-cuda"
}
make_venv() { # where one was cut off half way it has no pip
	"$venv/bin/python" -m pip --version >/dev/null 2>&1 || python3 -m venv --clear "$venv"
}
bring_cuda_headers() {
	mkdir -p "$root/build"
	make_venv && "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps \
		-r "$cuda_requirements" && cp "$cuda_requirements" "$venv/.requirements-cuda"
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
