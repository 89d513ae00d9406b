# SPDX-License-Identifier: Apache-2.0
"""The figures of the README, measured now on this machine: each with its limit or peer.

Usage: build/venv/bin/python tests/bench/figures.py [FOLDER]   (scripts/bench does the set-up)
Starts private daemons in FOLDER (a temporary one), 8 GiB of disk are used and given back.
Nothing here fails: it prints.
"""
import contextlib
import json
import mmap
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("DISTORCH_BUILD", ROOT / "build"))
sys.path.insert(0, str(ROOT / "client" / "python"))
os.environ.setdefault("DISTORCH_LIBRARY", str(BUILD / "lib" / "libdistorch.so.1"))


def write_model(path, n_tensors, tensor_bytes):
    header = {f"layer.{i // 10}.w{i % 10}": {
        "dtype": "F16", "shape": [tensor_bytes // 2],
        "data_offsets": [i * tensor_bytes, (i + 1) * tensor_bytes]} for i in range(n_tensors)}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    block = os.urandom(1 << 20)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        left = n_tensors * tensor_bytes
        while left > 0:
            file.write(block[:min(left, len(block))])
            left -= len(block)
        file.flush()
        os.fsync(file.fileno())


def drop_cache(path):
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def take_memory(n_bytes):
    """Have so much free memory at hand: see machine_memory.h, which says why."""
    populate_write = 23  # MADV_POPULATE_WRITE, which this module does not name
    with mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory.madvise(populate_write)


class Daemon:
    def __init__(self, folder, ram="8G", before=(), backing="image", settings=()):
        self.folder = tempfile.mkdtemp(dir=folder)
        socket = f"{self.folder}/s"
        self.process = subprocess.Popen(
            [*before, BUILD / "bin" / "distorchd", "--socket", socket, "--set",
             f"memory.ram={ram}", "--set", "memory.reserve=0", "--set",
             f"memory.backing={backing}",
             *(word for setting in settings for word in ("--set", setting))],
            stderr=subprocess.DEVNULL)
        while not os.path.exists(socket):
            if self.process.poll() is not None:
                raise SystemExit(f"distorchd ended with {self.process.returncode} at its start")
            time.sleep(0.01)
        os.environ["DISTORCH_SOCKET"] = socket

    def memory(self):
        """Own resident bytes: anonymous and program text; shared images apart."""
        fields = dict(line.split(":", 1) for line in
                      pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines())
        return (int(fields["RssAnon"].split()[0]) + int(fields["RssFile"].split()[0])) * 1024

    def wakeups(self):
        """Voluntary context switches of all its threads."""
        return sum(int(line.split()[1]) for task in
                   pathlib.Path(f"/proc/{self.process.pid}/task").iterdir()
                   for line in (task / "status").read_text().splitlines()
                   if line.startswith("voluntary_ctxt_switches"))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait() != 0:
            raise SystemExit(f"distorchd ended with {self.process.returncode}")
        shutil.rmtree(self.folder, ignore_errors=True)


def attach(folder):
    path = f"{folder}/thousand.safetensors"
    for kib in (1024, 256):  # the time must not depend on the size
        write_model(path, 1000, kib << 10)
        daemon = Daemon(folder)
        print(f"a model of 1,000 tensors, {1000 * kib >> 10} MiB:")
        print(subprocess.run([BUILD / "bench" / "bench_attach", path], capture_output=True,
                             text=True, check=True).stdout)
        daemon.stop()
    code = ("import sys, time\nfrom safetensors.numpy import load_file\n"
            "t = time.perf_counter(); d = load_file(sys.argv[1])\n"
            "print(f'{(time.perf_counter() - t) * 1e6:8.1f}')")
    times = [float(subprocess.run([sys.executable, "-c", code, path], capture_output=True,
                                  text=True, check=True).stdout) for _ in range(5)]
    print(f"{'  peer: safetensors load_file, warm, numpy':<44} {statistics.median(times):8.1f}")
    os.unlink(path)


def resident(folder):
    import distorch
    daemon = Daemon(folder)
    empty = daemon.memory()
    with distorch.connect() as d:
        for i in range(100):
            path = f"{folder}/m{i}.safetensors"
            write_model(path, 1000, 1024)
            d.load(path)
        full = daemon.memory()
    print(f"own memory: {empty / 2**20:.1f} MiB empty, {full / 2**20:.1f} MiB with 100 models of "
          f"1,000 tensors (aim: at most 10 MiB)")
    time.sleep(1)
    before = daemon.wakeups()
    time.sleep(5)
    print(f"wake-ups at rest: {daemon.wakeups() - before} in 5 s with 100 models (aim: 0)")
    daemon.stop()
    for i in range(100):
        os.unlink(f"{folder}/m{i}.safetensors")


def many(folder):
    """What 1,000 models cost who asks: each call measured from Python."""
    import distorch
    paths = [f"{folder}/many{i}.safetensors" for i in range(1000)]
    for path in paths:
        write_model(path, 1, 1024)
    daemon = Daemon(folder)
    with distorch.connect() as d:
        begun = time.perf_counter()
        for path in paths:
            d.load(path)
        load_ms = (time.perf_counter() - begun) * 1e3 / len(paths)
        times = {"list": [], "status": []}
        for _ in range(50):
            for name, call in (("list", d.list), ("status", d.status)):
                begun = time.perf_counter()
                call()
                times[name].append((time.perf_counter() - begun) * 1e3)
    print(f"with 1,000 models, ms: load {load_ms:.2f}; list p50 {percentile(times['list'], .5):.2f}; "
          f"status p50 {percentile(times['status'], .5):.2f} p99 {percentile(times['status'], .99):.2f}")
    daemon.stop()
    for path in paths:
        os.unlink(path)


class Pings:
    """The longest answer to a ping while something goes on: a turn of the loop."""

    def __enter__(self):
        self.longest, self.goes_on = 0, True
        self.has_begun = threading.Event()
        self.thread = threading.Thread(target=self.listen)
        self.thread.start()
        self.has_begun.wait()
        return self

    def listen(self):
        import distorch
        with distorch.connect() as d:
            while self.goes_on:
                self.longest = max(self.longest, milliseconds(d.ping))
                self.has_begun.set()
                time.sleep(0.001)

    def __exit__(self, *exception):
        self.goes_on = False
        self.thread.join()


def turns(folder):
    """How long everybody waits for what one does with a model of as many blocks as there may be."""
    import distorch
    path = f"{folder}/blocks.safetensors"
    n_blocks = 30000
    write_model(path, n_blocks, 256)
    daemon = Daemon(folder, settings=("sim.count=2", "sim.memory=100G", "sim.link=100G",
                                      "sim.latency=0", "gpu.budget=100%"))

    def be_refused():
        with contextlib.suppress(distorch.Error):
            d.reserve("sim:1", 200 << 30)

    with distorch.connect() as d:
        def load():
            d.load(path, allocation="sim:0,50%;sim:1,50%", granularity="tensor")

        def unload():
            d.unload(path)

        print(f"a model of {n_blocks} blocks on two simulated cards:")
        for what, do in (("it is loaded", load), ("room is refused", be_refused),
                         ("it is unloaded", unload)):
            with Pings() as pings:
                seconds = milliseconds(do) / 1e3
            print(f"  {what:<16} {seconds:6.2f} s, the longest turn {pings.longest:7.1f} ms")
    daemon.stop()
    os.unlink(path)


def attach_placed(folder):
    """The descriptors of up to 30 blocks come by one call to their worker and one to the daemon."""
    import distorch
    path = f"{folder}/thirty.safetensors"
    write_model(path, 30, 256)
    daemon = Daemon(folder, settings=("sim.count=1",))
    times, pings = [], []
    with distorch.connect() as d:
        d.load(path, allocation="sim:0", granularity="tensor")
        for _ in range(500):
            begun = time.perf_counter()
            with d.attach("thirty") as weights:
                weights[next(iter(weights))]
            attached = time.perf_counter()
            d.ping()
            times.append(attached - begun)
            pings.append(time.perf_counter() - attached)
    print("attach of 30 blocks on a simulated card, one tensor, detach, from Python, us: "
          f"p50 {statistics.median(times) * 1e6:.0f} p99 {percentile(times, 0.99) * 1e6:.0f}; "
          f"limit, one round trip: p50 {statistics.median(pings) * 1e6:.0f}")
    daemon.stop()
    os.unlink(path)


def warm(folder):
    path = f"{folder}/warm.safetensors"
    write_model(path, 500, 4 << 20)  # 2 GiB, as warm as a file that was just written
    daemon = Daemon(folder, backing="auto")
    print("a warm file of 2 GiB, backing auto:")
    print(subprocess.run([BUILD / "bench" / "bench_warm_file", path], capture_output=True,
                         text=True, check=True).stdout)
    daemon.stop()
    os.unlink(path)


def percentile(times, p):
    times = sorted(times)
    return times[min(len(times) - 1, int(len(times) * p))]


def recover(folder):
    """2 GiB served again after kill -9 of the daemon, against loading them anew."""
    import distorch
    paths = [f"{folder}/part{i}.safetensors" for i in range(4)]
    for path in paths:
        write_model(path, 64, 8 << 20)
    daemon = Daemon(folder, before=[BUILD / "bin" / "distorchd-hold", "--"])
    children = pathlib.Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children")
    take_memory(2 << 30)
    begun = time.perf_counter()
    with distorch.connect() as d:
        for path in paths:
            d.load(path)
    anew = (time.perf_counter() - begun) * 1e3
    times = []
    for _ in range(9):
        time.sleep(0.5)  # the hashes of the last life are through
        begun = time.perf_counter()
        os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
        with distorch.connect() as d:
            for path in paths:
                with d.attach(path) as w:
                    assert len(w["layer.0.w0"].buffer) == 8 << 20
        times.append((time.perf_counter() - begun) * 1e3)
    print(f"2 GiB in 4 models, served again after kill -9, ms: p50 {statistics.median(times):.1f} "
          f"max {max(times):.1f} (aim: 150); loading them anew from the warm files: {anew:.0f}")
    daemon.stop()
    for path in paths:
        os.unlink(path)


def start_echo():
    """A process that sends back what it gets: what the machine leaves of a round trip."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        while packet := theirs.recv(64):
            theirs.send(packet)
        os._exit(0)
    theirs.close()
    return ours


def milliseconds(call):
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1e3


def status_during_load(folder):
    import distorch
    echo = start_echo()

    def round_trip():
        echo.send(b"?")
        echo.recv(64)

    paths = [f"{folder}/large{i}.safetensors" for i in range(8)]
    for path in paths:
        write_model(path, 128, 8 << 20)
        drop_cache(path)
    daemon = Daemon(folder, ram="12G")
    busy, limit = [], []
    with distorch.connect() as d:
        calm = [milliseconds(d.status) for _ in range(2000)]
        for path in paths:
            loader = threading.Thread(target=lambda: distorch.connect().load(path))
            take_memory(1 << 30)
            loader.start()
            while loader.is_alive():
                busy.append(milliseconds(d.status))
                limit.append(milliseconds(round_trip))
                time.sleep(0.001)
            loader.join()
    echo.close()
    os.wait()
    print(f"status from Python, ms: p50 {percentile(calm, .5):.2f} p99 {percentile(calm, .99):.2f} at "
          f"rest; p50 {percentile(busy, .5):.2f} p99 {percentile(busy, .99):.2f} while 8 GiB load, "
          f"1 GiB after the other ({len(busy)} calls; aim: p99 at most 2)\n"
          f"  limit: a round trip to a process that only echoes, meanwhile: p50 "
          f"{percentile(limit, .5):.2f} p99 {percentile(limit, .99):.2f}")
    daemon.stop()
    for path in paths:
        os.unlink(path)


def install(folder):
    """From a fresh copy of the source to a model in memory, as scripts/install does it for a user
    without systemd; what the packages' download takes is not in it."""
    place = pathlib.Path(folder) / "install"
    home, run, tools, source = (place / name for name in ("home", "run", "tools", "source"))
    for one in (home, run, tools, source):
        one.mkdir(parents=True)
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    subprocess.run(["tar", "cf", place / "source.tar", "-C", ROOT, "-T", "-"], input=names.stdout,
                   text=True, check=True)
    subprocess.run(["tar", "xf", place / "source.tar", "-C", source], check=True)
    (tools / "systemctl").write_text("#!/bin/sh\nexit 1\n")  # the user's own is not for a test
    (tools / "systemctl").chmod(0o755)
    environment = {"HOME": str(home), "XDG_RUNTIME_DIR": str(run),
                   "PATH": f"{tools}:{os.environ['PATH']}"}

    def do(*words):
        return subprocess.run(list(map(str, words)), env=environment, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, check=True).stdout

    model = place / "model.safetensors"
    write_model(model, 16, 4 << 20)
    begun = time.perf_counter()
    said = do(source / "scripts" / "install", "-y")
    do(home / ".local" / "bin" / "distorchctl", "load", model)
    seconds = time.perf_counter() - begun
    built = said.split("built in ")[1].split()[0]
    do(source / "scripts" / "install", "--uninstall", "-y")
    print(f"install to first load (64 MiB), s: {seconds:.1f} (aim: 60), of that {built} "
          f"for the compiler")


def exposure(folder):
    """What systemd itself says of the unit, and of its own."""
    if shutil.which("systemd-analyze") is None:
        print("exposure of the unit: not measured, systemd-analyze is not installed")
        return
    subprocess.run(["cmake", "-D", f"CMAKE_INSTALL_PREFIX={folder}", "-D", "UNITS_BINDIR=bin", "-D",
                    f"UNITS_WORK={folder}/work", "-D", "UNITS_SYSTEM_DIR=units", "-D",
                    "UNITS_USER_DIR=", "-D", "UNITS_SYSUSERS_DIR=", "-D", "UNITS_TMPFILES_DIR=",
                    "-P", ROOT / "systemd" / "install.cmake"], check=True, capture_output=True)
    peers = [f"/lib/systemd/system/systemd-{name}.service"
             for name in ("timesyncd", "networkd", "logind", "journald")]
    found = {}
    for unit in [f"{folder}/units/distorchd.service", *filter(os.path.exists, peers)]:
        said = subprocess.run(["systemd-analyze", "security", "--offline=true", "--no-pager", unit],
                              capture_output=True, text=True, check=True).stdout
        found[pathlib.Path(unit).stem] = said.rsplit(":", 1)[1].split()[0]
    print(f"exposure of the unit, by systemd-analyze: {found.pop('distorchd')} (aim: 0.8); peers: "
          + ", ".join(f"{name} {value}" for name, value in found.items()))


def main():
    folder = tempfile.mkdtemp(prefix="distorch-bench-", dir=sys.argv[1] if len(sys.argv) > 1 else None)
    system = os.uname()
    huge = pathlib.Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled").read_text().strip()
    print(f"{system.sysname} {system.release}, {os.cpu_count()} cores, shmem_enabled: {huge}")
    try:
        install(folder)
        exposure(folder)
        attach(folder)
        resident(folder)
        many(folder)
        turns(folder)
        attach_placed(folder)
        warm(folder)
        recover(folder)
        benches = ["bench_core_step", "bench_plan"]
        if (BUILD / "bench" / "bench_import_cuda").exists():  # built with the headers of CUDA
            benches.append("bench_import_cuda")
        for bench in benches:
            print(subprocess.run([BUILD / "bench" / bench], capture_output=True, text=True,
                                 check=True).stdout)
        status_during_load(folder)
        print(subprocess.run([BUILD / "bench" / "bench_cold_read", folder], capture_output=True,
                             text=True, check=True).stdout)
        for size in "1024", "512":  # of a small model the beginning counts
            print(subprocess.run([BUILD / "bench" / "bench_device_fill",
                                  BUILD / "bin" / "distorchd-worker", folder, size, "1024"],
                                 capture_output=True, text=True, check=True).stdout)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
