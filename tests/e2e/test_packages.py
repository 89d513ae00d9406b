# SPDX-License-Identifier: Apache-2.0
"""The packages that cpack makes, in a Debian of the test's own (guest.py): what is in them,
installed, used, upgraded with models and clients, removed, purged. Run alone:
scripts/test packages"""
import hashlib
import os
import pathlib
import re
import shutil
import subprocess

import pytest
from conftest import ROOT, make_safetensors, wait_until
from guest import SYSTEMD, Guest, debootstrap, need_guest

BUILT = ROOT / "build" / "debian"
NAMES = ("distorchd", "libdistorch1", "libdistorch-dev", "python3-distorch")
VERSIONS = ("0.1.0", "0.1.0+next")
MODEL = "/srv/model.safetensors"

pytestmark = [pytest.mark.packages, pytest.mark.seconds(900)]


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """{version: {name: path}}, of the tree as it is."""
    for tool in ("cpack", "dh_installsystemd", "dh_python3", "dpkg-shlibdeps"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    made = tmp_path_factory.mktemp("packages")
    for words in (["cmake", "--preset", "debian"], ["ninja", "-C", BUILT]):
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    found = {}
    for version in VERSIONS:
        done = subprocess.run(
            ["cpack", "-G", "DEB", "-D", f"CPACK_DEBIAN_PACKAGE_VERSION={version}",
             "-D", f"CPACK_OUTPUT_FILE_PREFIX={made / version}"], cwd=BUILT,
            capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        found[version] = {path.name.split("_")[0]: path for path in (made / version).iterdir()}
        assert set(found[version]) == set(NAMES)
    return found


def field(package, name):
    return subprocess.run(["dpkg-deb", "-f", package, name], check=True, capture_output=True,
                          text=True).stdout.strip()


def dependencies(package):
    """The first choice of each."""
    names = [one.split("|")[0].split("(")[0].split(":")[0].strip()
             for one in field(package, "Depends").split(",")]
    return [name for name in names if name and name not in NAMES]


def unpacked(package, folder):
    subprocess.run(["dpkg-deb", "-R", package, folder], check=True)
    return folder


def test_what_each_package_has(packages, tmp_path):
    trees = {name: unpacked(path, tmp_path / name)
             for name, path in packages[VERSIONS[0]].items()}
    files = {name: {str(path.relative_to(tree)) for path in tree.rglob("*")}
             for name, tree in trees.items()}
    for name in NAMES:
        assert {f"usr/share/doc/{name}/copyright", f"usr/share/doc/{name}/changelog.gz"} \
            <= files[name]
        assert not [file for file in files[name] if "local" in file or "__pycache__" in file]
        assert field(packages[VERSIONS[1]][name], "Version") == VERSIONS[1]
    assert {"usr/bin/distorchd", "usr/bin/distorchctl", "usr/bin/distorchd-hold",
            "usr/libexec/distorchd/distorchd-worker", "usr/share/man/man8/distorchd-worker.8.gz",
            "usr/lib/systemd/system/distorchd.service", "usr/lib/systemd/system/distorchd.socket",
            "usr/lib/systemd/user/distorchd.service", "usr/lib/sysusers.d/distorchd.conf",
            "usr/lib/tmpfiles.d/distorchd.conf", "usr/share/man/man8/distorchd.8.gz",
            "usr/share/man/man1/distorchctl.1.gz", "usr/share/man/man5/distorchd.conf.5.gz",
            } <= files["distorchd"]
    assert (trees["distorchd"] / "DEBIAN" / "conffiles").read_text().split() == \
        ["/etc/distorchd/distorchd.conf"]
    unit = (trees["distorchd"] / "usr/lib/systemd/system/distorchd.service").read_text()
    assert "ExecStart=/usr/bin/distorchd --system" in unit
    assert any(file.endswith("/libdistorch.so.1") for file in files["libdistorch1"])
    assert any(file.endswith("/libdistorch.so") for file in files["libdistorch-dev"])
    assert "usr/include/distorch.h" in files["libdistorch-dev"]
    assert "usr/lib/python3/dist-packages/distorch/client.py" in files["python3-distorch"]
    for program in ("distorchd", "distorchctl", "distorchd-hold"):
        done = subprocess.run(["readelf", "-d", trees["distorchd"] / "usr" / "bin" / program],
                              check=True, capture_output=True, text=True)
        assert "RUNPATH" not in done.stdout and "RPATH" not in done.stdout
    # Nobody wrote them by hand, but for what the daemon itself leaves in /var/lib and /run.
    for script in ("postinst", "prerm"):
        text = (trees["distorchd"] / "DEBIAN" / script).read_text()
        lines = re.sub(r"# Automatically added.*?# End automatically added section\n", "", text,
                       flags=re.DOTALL).split()
        assert lines == ["#!/bin/sh", "set", "-e"], text


def test_every_setting_of_the_packaged_configuration_is_the_default(packages, tmp_path):
    tree = unpacked(packages[VERSIONS[0]]["distorchd"], tmp_path / "tree")
    file = tree / "etc" / "distorchd" / "distorchd.conf"
    program = tree / "usr" / "bin" / "distorchd"
    lines = [line for line in file.read_text().splitlines() if line and line[0] not in "#;["]
    assert lines == [], "each is a comment"
    uncommented = tmp_path / "all.conf"
    uncommented.write_text(re.sub("^; ", "", file.read_text(), flags=re.MULTILINE))
    for path in (file, uncommented):  # whether there is the group is up to the machine
        subprocess.run([program, "--config", path, "--set", "access.group=", "--check-config"], check=True)


def test_lintian_finds_nothing(packages):
    if shutil.which("lintian") is None:
        pytest.skip("lintian is not installed")
    done = subprocess.run(["lintian", "--fail-on", "error,warning", "--allow-root",
                           *packages[VERSIONS[0]].values()], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "", done.stdout + done.stderr


def test_a_testing_build_makes_no_package():
    build = pathlib.Path(os.environ.get("DISTORCH_BUILD", ROOT / "build" / "test"))
    if not (build / "CPackConfig.cmake").exists() or build.name != "test":
        pytest.skip("this is no testing build")
    done = subprocess.run(["cpack", "-G", "DEB"], cwd=build, capture_output=True, text=True)
    assert done.returncode != 0 and "testing build" in done.stdout + done.stderr


# ---- installed ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(packages, tmp_path_factory):
    """A folder with a minimal Debian, and in its /srv the packages and a model."""
    need_guest()
    folder = tmp_path_factory.mktemp("debian") / "root"
    needed = {name for path in packages[VERSIONS[0]].values() for name in dependencies(path)}
    debootstrap(folder, sorted(needed | {"systemd"}))
    for version, paths in packages.items():
        (folder / "srv" / version).mkdir()
        for name, path in paths.items():
            shutil.copy(path, folder / "srv" / version / f"{name}.deb")
    model = folder / MODEL[1:]
    make_safetensors(model, {"t": ("U8", [12 << 20])})
    model.chmod(0o644)
    yield folder
    shutil.rmtree(folder)  # nothing is mounted in there: that went with the guests


@pytest.fixture
def guest(root, request):
    """The folder with the first process that the test's parameter names; what was not there
    before is not there afterwards."""
    guest = Guest(root, *request.param)
    try:
        yield guest
    finally:
        guest.remove()


def everything(root):
    """All files but those of the package manager itself, of logs, of caches, and of users."""
    free = re.compile(r"/(run|proc|sys|dev|tmp|srv)/|/var/(log|cache|lib/dpkg)/"
                      r"|/var/lib/systemd/(?!deb)"
                      r"|/etc/(passwd|group|shadow|gshadow|subuid|subgid)-?$"
                      r"|/etc/\.pwd\.lock$|/etc/machine-id$|__pycache__")
    names = ("/" + str(path.relative_to(root)) for path in root.rglob("*"))
    return sorted(name for name in names if not free.search(name))


def debs(version, *names):
    return [f"/srv/{version}/{name}.deb" for name in names or NAMES]


# Holds the model's bytes, and hashes them whenever it is asked to.
HOLDER = """
import hashlib, sys, distorch
with distorch.connect() as d, d.open(sys.argv[1]) as weights:
    data = weights["t"]
    print("READY", flush=True)
    for line in sys.stdin:
        print(hashlib.sha256(bytes(data.buffer)).hexdigest(), flush=True)
"""


def tensor_hash(root):
    file = root / MODEL[1:]
    return hashlib.sha256(file.read_bytes()[-(12 << 20):]).hexdigest()


@pytest.mark.parametrize("guest", [("sleep", "infinity")], indirect=True, ids=["no-systemd"])
def test_where_no_systemd_runs_it_is_installed_and_the_holder_serves(guest, root):
    before = everything(root)
    guest.run("dpkg", "-i", *debs(VERSIONS[0]))
    assert "distorchd" not in guest.says("cat", "/proc/1/cmdline")
    assert guest.says("stat", "-c", "%U %a", "/run/distorchd", "/var/lib/distorchd").split() == \
        ["distorchd", "755", "distorchd", "700"]
    guest.run("distorchctl", "ping", code=3)
    daemon = guest.start("distorchd-hold", "--", "distorchd", "--system")
    try:
        wait_until(lambda: guest.run("distorchctl", "ping", code=None).returncode == 0, 60)
        guest.run("distorchctl", "load", "--backing", "image", MODEL)
        assert '"ok":true' in guest.says("distorchctl", "verify", "--json").replace(" ", "")
        holder = guest.start("python3", "-c", HOLDER, MODEL)
        assert holder.stdout.readline() == "READY\n"
        said, _ = holder.communicate("look\n")
        assert said.strip() == tensor_hash(root)
        guest.run("distorchctl", "shutdown")
        assert daemon.wait(60) == 0, daemon.stdout.read()
    finally:
        daemon.kill()
        daemon.wait()
    guest.run("dpkg", "--purge", *NAMES)
    assert everything(root) == before
    assert "distorchd" not in guest.says("ls", "/run")


@pytest.mark.fault("S13")
@pytest.mark.parametrize("guest", [SYSTEMD], indirect=True, ids=["systemd"])
def test_a_service_installed_upgraded_under_load_removed_and_purged(guest, root):
    wait_until(lambda: guest.run("systemctl", "is-active", "multi-user.target",
                                 code=None).returncode == 0, 120, "systemd's start")
    before = everything(root)

    def get(name, unit="distorchd.service"):
        return guest.says("systemctl", "show", unit, f"--property={name}", "--value")

    guest.run("dpkg", "-i", *debs(VERSIONS[0]))
    for unit in ("distorchd.service", "distorchd.socket"):
        assert get("ActiveState", unit) == "active" and get("UnitFileState", unit) == "enabled"
    doctor = guest.run("distorchctl", "doctor", code=None)
    assert doctor.returncode in (0, 9) and "models outlive" in doctor.stdout, doctor.stdout
    guest.run("useradd", "-m", "-G", "distorchd", "ann")
    guest.run("useradd", "-m", "bob")
    ann, bob = (["setpriv", f"--reuid={name}", f"--regid={name}", "--init-groups"]
                for name in ("ann", "bob"))
    said = guest.run(*bob, "distorchctl", "ps", code=None)
    assert said.returncode != 0 and "usermod -aG distorchd" in said.stdout, said.stdout
    guest.run(*ann, "distorchctl", "load", "--keep", MODEL)
    holder = guest.start(*ann, "python3", "-c", HOLDER, MODEL)
    assert holder.stdout.readline() == "READY\n"

    conf = root / "etc" / "distorchd" / "distorchd.conf"
    conf.write_text(conf.read_text().replace("; ram = auto", "ram = 300M"))
    pid, socket_since = get("MainPID"), get("ActiveEnterTimestamp", "distorchd.socket")
    assert get("NFileDescriptorStore") != "0"
    guest.run("dpkg", "-i", *debs(VERSIONS[1]))
    assert get("MainPID") not in (pid, "0") and get("ActiveState") == "active"
    assert get("NRestarts") == "0", "it was asked to end, and did not die"
    assert get("ActiveEnterTimestamp", "distorchd.socket") == socket_since
    assert '"loaded_from":"store"' in \
        guest.says("distorchctl", "show", "model.safetensors", "--json").replace(" ", "")
    assert "300" in guest.says("distorchctl", "config", "get", "memory.ram")
    holder.stdin.write("look\n")
    holder.stdin.flush()
    assert holder.stdout.readline().strip() == tensor_hash(root)
    assert "python3" in guest.says("distorchctl", "clients"), "it is a client again"
    holder.communicate()
    guest.run("dpkg", "-i", *debs(VERSIONS[1]))  # the same once more
    assert '"loaded_from":"store"' in \
        guest.says("distorchctl", "show", "model.safetensors", "--json").replace(" ", "")

    guest.run("dpkg", "--remove", *reversed(NAMES))
    assert get("LoadState") == get("LoadState", "distorchd.socket") == "not-found"
    assert "distorchd" not in guest.says("sh", "-c", "cat /proc/[0-9]*/comm")
    assert conf.exists() and "ram = 300M" in conf.read_text(), "it is the administrator's"
    guest.run("userdel", "-r", "ann", code=None)
    guest.run("userdel", "-r", "bob", code=None)
    guest.run("dpkg", "--purge", *NAMES)
    assert everything(root) == before
    assert "distorchd" not in guest.says("ls", "/run")
    assert guest.says("systemctl", "--failed", "--plain", "--no-legend") == ""
