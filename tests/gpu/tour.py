# SPDX-License-Identifier: Apache-2.0
"""The daemon with a real card: what people do with it, and what goes wrong, seen from torch.

    tour.py FOLDER   FOLDER has bin/ and lib/ of a build

Each line is one thing with its answer: works (with figures), or FAILED and what was seen. Ends
with 1 if anything failed; without torch or a card its last line says so, and it ends with 77.
"""

import contextlib
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
BUILD = pathlib.Path(sys.argv[1]).resolve()
for place in HERE, HERE.parents[1] / "client" / "python":
    if (place / "distorch").is_dir():
        sys.path.insert(0, str(place))
        os.environ["PYTHONPATH"] = str(place)
os.environ.setdefault("DISTORCH_LIBRARY", str(BUILD / "lib" / "libdistorch.so.1"))
MIB, GIB = 1 << 20, 1 << 30
N_BLOCKS, BLOCK = 32, 64 * MIB

import distorch  # noqa: E402

with contextlib.suppress(distorch.Error):  # nobody is there; what it needs is
    distorch.connect(str(BUILD / "nobody.sock"))
try:
    import torch
except ImportError:
    print("no torch")
    sys.exit(77)
if not torch.cuda.is_available():
    print("torch sees no card")
    sys.exit(77)

n_failed = 0


def say(what, answer):
    print(f"{what:<72} {answer}", flush=True)


def wait_until(condition, seconds=20.0, what=""):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{what or 'it'} did not come true within {seconds} s"
        time.sleep(0.005)
    return value


class Daemon:
    """distorchd under distorchd-hold, in a folder of its own."""

    def __init__(self, folder):
        self.socket = folder / "d.sock"
        self.log = folder / "log"
        self.process = None
        self.command = [
            BUILD / "bin" / "distorchd-hold", "--", BUILD / "bin" / "distorchd", "--socket",
            self.socket, "--state-dir", folder / "state", "--set", "gpu.devices=all", "--set",
            "memory.ram=24G"]

    def start(self):
        self.begun = time.monotonic()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, start_new_session=True)
        wait_until(self.socket.exists, 20, "the socket")
        self.connection = distorch.connect(str(self.socket), devices=uuids())

    def card(self):
        return next((one for one in self.connection.devices() if one.name == "cuda:0"), None)

    def is_ready(self):
        card = self.card()
        return card if card is not None and card.state == "ok" else None

    def pid(self):
        children = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        return int(pathlib.Path(children).read_text().split()[0])

    def reconnect(self):
        def again():
            try:
                return distorch.connect(str(self.socket), devices=uuids())
            except distorch.Error:
                return None

        self.connection = wait_until(again, 20, "an answer")

    def ctl(self, *words):
        done = subprocess.run([BUILD / "bin" / "distorchctl", "--socket", self.socket, *words],
                              capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    def end(self):
        self.connection.close()
        self.process.terminate()
        status = self.process.wait(20)
        assert status == 0, f"it ended with {status}"

    def kill(self):
        """All of it, if anything is left."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def uuids():
    return [f"GPU-{torch.cuda.get_device_properties(i).uuid}"
            for i in range(torch.cuda.device_count())]


def used():
    """Bytes of the card that anybody has."""
    free, total = torch.cuda.mem_get_info()
    return total - free


def make_model(path, seed):
    """Blocks of bf16 numbers; {name: tensor} as torch has them."""
    generator = torch.Generator().manual_seed(seed)
    side = 4096
    rows = BLOCK // 2 // side
    header, offset, tensors = {}, 0, {}
    for i in range(N_BLOCKS):
        name = f"blocks.{i}.w"
        tensors[name] = torch.randint(-1000, 1000, (rows, side), generator=generator,
                                      dtype=torch.int16).to(torch.bfloat16)
        header[name] = {"dtype": "BF16", "shape": [rows, side],
                        "data_offsets": [offset, offset + BLOCK]}
        offset += BLOCK
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.view(torch.uint8).numpy().data)
    return tensors


def check(w, tensors, on_card):
    """Each tensor has its bytes, and so many lie on the card."""
    n = 0
    for name, expected in tensors.items():
        tensor = w[name]
        found = tensor.torch()
        n += tensor.device == "cuda:0"
        assert found.is_cuda == (tensor.device == "cuda:0"), (name, tensor.device)
        assert torch.equal(found.cpu(), expected), f"other bytes in {name} on {tensor.device}"
    assert n == on_card, f"{n} blocks on the card, not {on_card}"


def bytes_on_card(tour):
    where = tour.daemon.connection.show(tour.path).model.where
    return sum(place.bytes for place in where if place.device == "cuda:0")


def milliseconds(begun):
    return (time.monotonic() - begun) * 1e3


# ---- what people do --------------------------------------------------------------------------


def start(tour):
    card = wait_until(tour.daemon.is_ready, 30, "cuda:0 being ok")
    ready = milliseconds(tour.daemon.begun)
    assert card.uuid == uuids()[0], (card.uuid, uuids())
    assert "libcuda" not in pathlib.Path(f"/proc/{tour.daemon.pid()}/maps").read_text()
    return (f"{card.product}, {card.total // MIB} MiB, others {card.foreign // MIB} MiB, link "
            f"{(card.link or 0) / 1e9:.1f} GB/s, ready after {ready:.0f} ms")


def load(tour):
    begun = time.monotonic()
    tour.daemon.connection.load(tour.path, to="cuda:0,50%;cpu,*")
    took = milliseconds(begun)
    assert bytes_on_card(tour) == N_BLOCKS // 2 * BLOCK
    return f"{N_BLOCKS * BLOCK // MIB} MiB, half of it on the card, {took:.0f} ms"


def read(tour):
    begun = time.monotonic()
    with tour.daemon.connection.open(tour.path) as w:
        opened = milliseconds(begun)
        first = next(t for t in w.values() if t.device == "cuda:0").torch()
        imported = milliseconds(begun) - opened
        before = first.data_ptr()
        product = first[:64].float() @ first.float().T
        torch.cuda.synchronize()
        assert torch.isfinite(product).all()
        check(w, tour.tensors, N_BLOCKS // 2)
        assert before == next(t for t in w.values() if t.device == "cuda:0").torch().data_ptr()
        del product, first
    begun = time.monotonic()
    with tour.daemon.connection.open(tour.path) as w:
        again = next(t for t in w.values() if t.device == "cuda:0").torch()
        both = milliseconds(begun)
        del again
    return (f"opened in {opened:.1f} ms, {N_BLOCKS // 2} blocks imported in {imported:.1f} ms; "
            f"a second time both in {both:.1f} ms")


ANOTHER = """
import sys, time, torch, distorch
torch.zeros(1, device="cuda")
d = distorch.connect(sys.argv[1], devices=[f"GPU-{torch.cuda.get_device_properties(0).uuid}"])
begun = time.monotonic()
w = d.open(sys.argv[2])
held = {name: t.torch() for name, t in w.items()}
total = sum(t.double().sum().item() for t in held.values() if t.is_cuda)
print(f"{(time.monotonic() - begun) * 1e3:.1f} {total:.0f}", flush=True)
for line in sys.stdin:
    print(f"{sum(t.double().sum().item() for t in held.values() if t.is_cuda):.0f}", flush=True)
"""


class Other:
    """Another process, which holds all tensors and adds up those on the card."""

    def __init__(self, tour):
        self.process = subprocess.Popen(
            [sys.executable, "-c", ANOTHER, tour.daemon.socket, tour.path], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True)
        self.took, self.total = self.process.stdout.readline().split()

    def again(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        self.process.wait(20)
        self.process.stdin.close()
        self.process.stdout.close()


def share(tour):
    before = used()
    others = [Other(tour), Other(tour)]
    grown = (used() - before) // MIB
    sums = {other.total for other in others}
    on_card = list(tour.tensors.values())[:N_BLOCKS // 2]
    expected = f"{sum(tensor.double().sum().item() for tensor in on_card):.0f}"
    for other in others:
        other.end()
    assert sums == {expected}, (sums, expected)
    return f"two more: +{grown} MiB on the card for both, open and sum {others[0].took} ms"


def move(tour):
    connection = tour.daemon.connection
    with connection.open(tour.path) as w:
        moved = connection.place(tour.path, "cuda:0")
        rate = moved.moved_bytes / max(moved.duration_ms, 1) / 1e6
        check(w, tour.tensors, N_BLOCKS // 2)  # as it was when they were opened
    with connection.open(tour.path) as w:
        check(w, tour.tensors, N_BLOCKS)
    back = connection.place(tour.path, "cpu")
    with connection.open(tour.path) as w:
        check(w, tour.tensors, 0)
    rate_back = back.moved_bytes / max(back.duration_ms, 1) / 1e6
    connection.place(tour.path, "cuda:0,50%;cpu,*")
    return (f"RAM to card {rate:.1f} GB/s, card to RAM {rate_back:.1f} GB/s, "
            f"{moved.moved_bytes // MIB} and {back.moved_bytes // MIB} MiB")


def pinned_copy(tour):
    source = torch.empty(GIB, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(GIB, dtype=torch.uint8, device="cuda")
    rates = {}
    for name, (to, of) in {"to the card": (target, source), "from it": (source, target)}.items():
        best = 0.0
        for _ in range(3):
            torch.cuda.synchronize()
            begun = time.monotonic()
            to.copy_(of, non_blocking=True)
            torch.cuda.synchronize()
            best = max(best, GIB / (time.monotonic() - begun) / 1e9)
        rates[name] = best
    del source, target
    torch.cuda.empty_cache()
    return ", ".join(f"{rate:.1f} GB/s {name}" for name, rate in rates.items())


def verify(tour):
    begun = time.monotonic()
    status, said = tour.daemon.ctl("verify", tour.path.name)
    assert status == 0, said
    return f"{milliseconds(begun):.0f} ms"


def foreign(tour):
    """What torch takes is seen as others', and what then does not fit is refused in numbers."""
    before = tour.daemon.card()
    taken = torch.empty(before.total - before.foreign - 4 * GIB, dtype=torch.uint8, device="cuda")
    enough = before.foreign + len(taken) // 2
    card = wait_until(lambda: (card := tour.daemon.card()).foreign > enough and card, 20, "a look")
    try:
        tour.daemon.connection.load(tour.big, to="cuda:0")
        raise AssertionError("8 GiB went where 4 are free")
    except distorch.Error as failure:
        assert failure.code == "no-memory" and "cuda:0" in str(failure), failure
        said = str(failure)
    finally:
        del taken
        torch.cuda.empty_cache()
    wait_until(lambda: tour.daemon.card().foreign < before.foreign + GIB, 20, "it being given back")
    return f"{(card.foreign - before.foreign) // MIB} MiB seen; {said}"


def evict(tour):
    """As many blocks of an idle one go as it takes, and come back when it is opened."""
    connection = tour.daemon.connection
    budget = tour.daemon.card().budget
    connection.budget("cuda:0", 5 * N_BLOCKS * BLOCK // 4)
    try:
        moved = connection.load(tour.second, to="cuda:0")
        assert [one.name for one in moved.evicted] == [tour.path.name], moved.evicted
        with connection.open(tour.path) as w:
            check(w, tour.tensors, N_BLOCKS // 2)
    finally:
        connection.unload(tour.second.name)
        connection.budget("cuda:0", budget)
    return f"{moved.evicted[0].bytes // MIB} MiB of the idle one went, and came back"


def leases(tour):
    return tour.daemon.connection.show(tour.path).model.leases


def killed_client(tour):
    other = Other(tour)
    assert leases(tour) == 1
    other.end(signal.SIGKILL)
    wait_until(lambda: leases(tour) == 0, 20, "its lease being gone")
    torch.cuda.empty_cache()
    before = used()
    tour.daemon.connection.unload(tour.path.name)
    wait_until(lambda: used() <= before - N_BLOCKS // 2 * BLOCK, 20, "the card's memory")
    tour.daemon.connection.load(tour.path, to="cuda:0,50%;cpu,*")
    return "its lease is gone, and the memory is free after an unload"


def killed_worker(tour):
    """A client goes on with what it has; the model comes back."""
    other = Other(tour)
    begun, pid = time.monotonic(), tour.daemon.card().pid
    os.kill(pid, signal.SIGKILL)
    total = other.again()
    assert total == other.total, (total, other.total)
    wait_until(lambda: tour.daemon.is_ready() and tour.daemon.card().pid != pid, 30,
               "another worker")
    back = milliseconds(begun)
    assert other.again() == other.total
    other.end()
    tour.daemon.connection.load(tour.path, to="cuda:0,50%;cpu,*")
    with tour.daemon.connection.open(tour.path) as w:
        check(w, tour.tensors, N_BLOCKS // 2)
    return f"a client reads on; the card was back after {back:.0f} ms"


def killed_daemon(tour):
    other = Other(tour)
    begun = time.monotonic()
    pid = tour.daemon.pid()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: tour.daemon.pid() != pid, 20)
    tour.daemon.reconnect()
    answered = milliseconds(begun)
    assert other.again() == other.total

    def is_there():
        try:
            return bytes_on_card(tour) == N_BLOCKS // 2 * BLOCK
        except distorch.Error:
            return False

    wait_until(is_there, 60, "the model on the card")
    back = milliseconds(begun)
    other.end()
    with tour.daemon.connection.open(tour.path) as w:
        check(w, tour.tensors, N_BLOCKS // 2)
    return f"another answers after {answered:.0f} ms, the blocks are on the card after {back:.0f}"


WRITER = """
import sys, torch, distorch
torch.zeros(1, device="cuda")
d = distorch.connect(sys.argv[1], devices=[f"GPU-{torch.cuda.get_device_properties(0).uuid}"])
w = d.open(sys.argv[2])
tensor = next(t.torch() for t in w.values() if t.device == "cuda:0")
tensor.zero_()
torch.cuda.synchronize()
"""


def writer(tour):
    """Who writes to what it has for reading ends its own use of the card, and nobody else's."""
    other = Other(tour)
    pid = tour.daemon.card().pid
    done = subprocess.run([sys.executable, "-c", WRITER, tour.daemon.socket, tour.path],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode != 0, "it was written to"
    assert other.again() == other.total
    other.end()
    card = tour.daemon.card()
    assert card.pid == pid and card.state == "ok", card
    with tour.daemon.connection.open(tour.path) as w:
        check(w, tour.tensors, N_BLOCKS // 2)
    last = [line for line in done.stderr.splitlines() if "Error" in line][-1:]
    return f"it ends ({last[0][:60] if last else done.returncode}), others read on"


def make_room(tour):
    """A stranger's program gets memory of the card; what made room comes back."""
    card = tour.daemon.card()
    room = card.budget - GIB
    program = f"import torch; torch.empty({room - 2 * GIB}, dtype=torch.uint8, device='cuda')"
    status, said = tour.daemon.ctl("make-room", f"{room // MIB}M", "--device", "cuda:0", "--",
                                   sys.executable, "-c", program + "; print('ran')")
    assert status == 0 and "ran" in said, (status, said)

    wait_until(lambda: bytes_on_card(tour) == N_BLOCKS // 2 * BLOCK, 60, "the blocks coming back")
    return f"{room // MIB} MiB for a while, then the blocks came back"


def drain(tour):
    """Neither blocks nor the worker's context are left on the card."""
    torch.cuda.empty_cache()
    before = used()
    for words in ("drain", "--device", "cuda:0"), ("unload", "--device", "cuda:0"):
        status, said = tour.daemon.ctl(*words)
        assert status == 0, said
    wait_until(lambda: used() <= before - N_BLOCKS // 2 * BLOCK - 100 * MIB, 20, "the context")
    freed = before - used()
    status, said = tour.daemon.ctl("drain", "--device", "cuda:0", "--off")
    assert status == 0, said
    return f"{freed // MIB} MiB were freed, with the worker's context"


def end(tour):
    tour.daemon.end()
    left = subprocess.run(["pgrep", "-f", str(tour.daemon.socket)], capture_output=True, text=True)
    assert not left.stdout, left.stdout
    torch.cuda.empty_cache()
    wait_until(lambda: used() <= tour.used + 512 * MIB, 20, "the card as it was")  # torch has grown
    return f"the card is as it was, +{(used() - tour.used) // MIB} MiB of torch's own"


class Tour:
    def __init__(self, folder):
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
        self.used = used()
        self.path = folder / "model.safetensors"
        self.second = folder / "second.safetensors"
        self.big = folder / "big.safetensors"
        self.tensors = make_model(self.path, 1)
        make_model(self.second, 2)
        with open(self.big, "wb") as file:  # takes no room on the disk
            header = {f"blocks.{i}.w": {"dtype": "U8", "shape": [GIB],
                                        "data_offsets": [i * GIB, (i + 1) * GIB]} for i in range(8)}
            text = json.dumps(header).encode()
            text += b" " * (-(8 + len(text)) % 64)
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + 8 * GIB)
        self.daemon = Daemon(folder)


STEPS = [
    ("the daemon finds the card", start), ("load over card and RAM", load),
    ("torch reads it where it is", read), ("processes share the card's copy", share),
    ("move", move), ("torch's copy of pinned memory, for comparison", pinned_copy),
    ("verify compares blocks on the card", verify), ("others' use of the card", foreign),
    ("eviction by a budget", evict), ("a client is killed", killed_client),
    ("the worker is killed", killed_worker), ("the daemon is killed", killed_daemon),
    ("a client writes", writer), ("make-room", make_room), ("drain", drain), ("end", end),
]


def main():
    global n_failed
    with tempfile.TemporaryDirectory(prefix="distorch-tour.") as name:
        tour = Tour(pathlib.Path(name))
        try:
            tour.daemon.start()
            for what, step in STEPS:
                try:
                    say(what, f"works: {step(tour)}")
                except Exception as failure:
                    n_failed += 1
                    say(what, f"FAILED: {type(failure).__name__}: {failure}")
                    traceback.print_exc()
        finally:
            if n_failed:
                print(tour.daemon.log.read_text()[-8000:])
            tour.daemon.kill()
    print(f"tour: {len(STEPS) - n_failed} passed, {n_failed} failed")
    return 1 if n_failed else 0


sys.exit(main())
