# SPDX-License-Identifier: Apache-2.0
"""Cards with CUDA under a real daemon with real workers, over the stand-in driver
(tests/fakecuda): who they are, what is said where there is none or none that serves, faults of the
driver, and who else uses them."""

import os
import pathlib
import shutil
import tempfile
import time

import pytest
from conftest import BUILD, need_hooks, slowness, wait_until
from placed import make_blocks
from test_ctl import ctl
from test_devices import devices, environment, is_running, lone, wait_ok

SLOW = 20 * slowness()
FAKECUDA = BUILD / "fakecuda"
UUID = "GPU-fa4ecada-0000-4000-8000-{:012}".format
pytestmark = pytest.mark.skipif(not (FAKECUDA / "libcuda.so.1").exists(),
                                reason="built without the headers of CUDA")


class Cards:
    """Cards of a test, which its daemon's workers and its own processes share."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    def environment(self, sizes="96M,64M", **more):
        return {"LD_LIBRARY_PATH": str(FAKECUDA), "FAKECUDA_DIR": str(self.folder),
                "FAKECUDA_CARDS": sizes, **environment(look=50, probe=100),
                **{f"FAKECUDA_{name.upper()}": value for name, value in more.items()}}

    def write(self, name, text):
        """Whole at once: a driver may be reading it."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        new = path.with_name("new")
        new.write_text(text)
        new.rename(path)
        time.sleep(0.02)  # a driver looks once a tick

    def used(self, number):
        """Bytes that somebody holds of card 'number'. A card's own count, without the driver."""
        return sum(entry.stat().st_size for entry in (self.folder / str(number)).glob("a-*"))


@pytest.fixture
def cards():
    folder = tempfile.mkdtemp(prefix="distorch-cards.", dir="/dev/shm")
    try:
        yield Cards(folder)
    finally:
        shutil.rmtree(folder)


def start(start_daemon, cards, *settings, **more):
    return start_daemon("memory.ram=64M", "memory.reserve=0", "gpu.devices=all", *settings,
                        environment=cards.environment(**more))


def wait_for(daemon, *names):
    wait_until(lambda: all(devices(daemon).get(name, {}).get("state") == "ok" for name in names),
               SLOW, f"{names} being ok")
    daemon.baseline_fds = max(daemon.baseline_fds, daemon.fds_at_rest())
    return devices(daemon)


def test_cards_are_told_and_meant_by_name_uuid_and_address(cards, start_daemon, tmp_path):
    daemon = start(start_daemon, cards)
    told = wait_for(daemon, "cuda:0", "cuda:1")
    for number, size in (0, 96 << 20), (1, 64 << 20):
        card = told[f"cuda:{number}"]
        assert card["uuid"] == UUID(number) and card["pci"] == f"0000:0{number + 1}:00.0"
        assert card["product"] == f"Stand-in {number}" and card["total"] == size
        assert card["link"] > 0 and card["used"] == 0
        # No descriptor of the driver, nor the driver itself, is in the daemon.
        assert "libcuda" in pathlib.Path(f"/proc/{card['pid']}/maps").read_text()
    assert "libcuda" not in pathlib.Path(f"/proc/{daemon.pid}/maps").read_text()
    assert "cuda:1 (Stand-in 1, PCI 02:00)" in ctl(daemon, "devices").stdout
    path = tmp_path / "m.safetensors"
    make_blocks(path, [1 << 20] * 2)
    for name in "cuda:1", "Stand-in 1", "STAND-IN 1", "1", UUID(1), UUID(1).lower():
        assert ctl(daemon, "load", path, "--to", name).returncode == 0, name
        assert path.name in ctl(daemon, "ps", "--device", name).stdout, name
        assert path.name not in ctl(daemon, "ps", "--device", "Stand-in 0").stdout
        assert path.name in ctl(daemon, "unload", "--device", name).stdout, name
        assert "cuda:1 (Stand-in 1" in ctl(daemon, "devices", name).stdout, name
        room = ctl(daemon, "make-room", "1M", "--device", name, "--", "true")
        assert "1.0M on cuda:1: " in room.stdout + room.stderr, name
        saved = ctl(daemon, "budget", name, "48M", "--save").stdout
        assert f"config unset gpu.budget.{UUID(1)} takes" in saved, name


@pytest.mark.fault("G01")
def test_without_a_driver_or_a_card_it_is_ram_alone_and_doctor_says_why(cards, start_daemon):
    daemon = start(start_daemon, cards, missing="cuMemCreate")
    wait_until(lambda: "too old: it has no cuMemCreate" in ctl(daemon, "doctor").stdout, SLOW)
    assert list(devices(daemon)) == ["cpu"]
    daemon = start(start_daemon, cards, sizes="")
    wait_until(lambda: "no GPU is used: the NVIDIA driver sees no card" in
               ctl(daemon, "doctor").stdout, SLOW)
    assert "no GPU is used: the NVIDIA driver sees no card" in daemon.log()


@pytest.mark.fault("G05")
def test_a_driver_that_is_not_ready_is_asked_again(cards, start_daemon):
    need_hooks()
    cards.write("faults", "cuInit:1:802:ever")
    daemon = start(start_daemon, cards)
    wait_until(lambda: "starting the NVIDIA driver" in ctl(daemon, "doctor").stdout, SLOW)
    cards.write("faults", "none:1:1")
    wait_for(daemon, "cuda:0", "cuda:1")


def test_cards_are_looked_for_until_the_worker_is_installed(start_daemon):
    daemon = lone(start_daemon, None, "gpu.devices=all", rest=20, probe=100)
    wait_until(lambda: "distorchd-worker cannot be begun" in ctl(daemon, "doctor").stdout, SLOW)
    shutil.copy2(BUILD / "bin" / "distorchd-worker", daemon.programs / "good")
    (daemon.programs / "good").rename(daemon.worker)
    wait_until(lambda: "cannot be begun" not in ctl(daemon, "doctor").stdout, SLOW)


def test_who_is_asked_for_cards_and_does_not_answer_is_ended_and_another_asked(start_daemon):
    daemon = lone(start_daemon, '[ "$1" = cuda ] && echo $$ >> ${0%/*}/asked; exec sleep 1000\n',
                  "gpu.devices=all", rest=20, probe=100, worker=100 * slowness())
    asked = daemon.programs / "asked"
    wait_until(lambda: asked.exists() and len(asked.read_text().splitlines()) >= 3, SLOW)
    first = int(asked.read_text().split()[0])
    assert not is_running(first)
    daemon.put("exit 0\n")


@pytest.mark.fault("G08")
def test_a_budget_follows_the_card_when_the_cards_are_moved(cards, start_daemon):
    daemon = start(start_daemon, cards)
    wait_for(daemon, "cuda:0", "cuda:1")
    assert ctl(daemon, "budget", UUID(1), "24M", "--save").returncode == 0
    assert devices(daemon)["cuda:1"]["budget"] == 24 << 20
    daemon.stop()
    daemon.environment.update(cards.environment(order="1,0"))
    daemon.start()
    told = wait_for(daemon, "cuda:0", "cuda:1")
    assert told["cuda:0"]["uuid"] == UUID(1) and told["cuda:0"]["budget"] == 24 << 20
    assert told["cuda:1"]["uuid"] == UUID(0) and told["cuda:1"]["budget"] > 64 << 20


@pytest.mark.fault("G13")
def test_a_card_for_one_process_alone_is_unavailable_and_the_mode_named(cards, start_daemon):
    daemon = start(start_daemon, cards, sizes="64M", compute_mode="3")
    wait_until(lambda: devices(daemon).get("cuda:0", {}).get("state") == "unavailable", SLOW)
    said = ctl(daemon, "doctor").stdout
    assert "is in compute mode Exclusive_Process" in said
    assert f"nvidia-smi -i {UUID(0)} -c DEFAULT" in said
    room = ctl(daemon, "make-room", "1M", "--device", "cuda:0", "--", "true")
    assert "cuda:0, which was to have the reservation, is unavailable" in room.stderr, room.stderr
    assert "see: distorchctl devices cuda:0" in room.stderr
    budget = ctl(daemon, "budget", "cuda:0", "1M")
    assert "cuda:0 has not said yet what it is: " in budget.stderr, budget.stderr


@pytest.mark.fault("G03 G06")
def test_what_others_take_and_what_nvml_says_is_told(cards, start_daemon):
    need_hooks()
    daemon = start(start_daemon, cards, sizes="64M")
    wait_for(daemon, "cuda:0")
    free = devices(daemon)["cuda:0"]["free"]
    cards.write("0/foreign", str(32 << 20))
    cards.write("0/temperature", "67")
    cards.write("0/xid", "63")

    def told():  # one look may see what was written first and not yet the rest
        card = devices(daemon)["cuda:0"]
        return tuple(card.get(name) for name in ("foreign", "temperature", "last_xid"))

    wait_until(lambda: told() == (32 << 20, 67, 63), SLOW, "all that was written")
    assert devices(daemon)["cuda:0"]["free"] < free
    cards.write("0/foreign", "0")
    wait_until(lambda: devices(daemon)["cuda:0"]["free"] == free, SLOW)


@pytest.mark.fault("G06")
def test_a_card_that_nvml_says_is_lost_is_not_ok_and_empty(cards, start_daemon):
    need_hooks()
    daemon = start(start_daemon, cards, sizes="64M,64M")
    before = wait_for(daemon, "cuda:0", "cuda:1")
    cards.write("0/nvml", "15")
    wait_until(lambda: devices(daemon)["cuda:0"]["state"] == "unavailable", SLOW)
    said = f"NVML says of {UUID(0)}: the stand-in says no (15)"
    assert devices(daemon)["cuda:0"]["text"] == said
    assert f"cuda:0 is lost, and what it held with it: {said}" in daemon.log()
    cards.write("0/nvml", "0")
    wait_ok(daemon, "cuda:0", after=before["cuda:0"]["pid"])
    assert devices(daemon)["cuda:1"]["pid"] == before["cuda:1"]["pid"]


def test_a_worker_that_is_killed_costs_its_card_only(cards, start_daemon):
    daemon = start(start_daemon, cards)
    told = wait_for(daemon, "cuda:0", "cuda:1")
    os.kill(told["cuda:0"]["pid"], 9)
    wait_ok(daemon, "cuda:0", after=told["cuda:0"]["pid"])
    assert devices(daemon)["cuda:1"]["pid"] == told["cuda:1"]["pid"]
