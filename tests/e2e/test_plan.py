# SPDX-License-Identifier: Apache-2.0
"""`distorchctl plan` with devices that are named: no daemon, no card, headers only."""
import csv
import io
import json
import os
import struct
import subprocess

import pytest
from conftest import BUILD, make_safetensors
from sharded import Sharded
from test_ctl import ctl, ctl_json

CTL = str(BUILD / "bin" / "distorchctl")
MIB = 1 << 20
GIB = 1 << 30
CARDS = "cuda:0=24GiB,cuda:1=12GiB,cpu=64GiB"


def plan(*words, **options):
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    env |= {"DISTORCH_SOCKET": "/nonexistent/d.sock", "TERM": "xterm", "LANG": "C.UTF-8"}
    return subprocess.run([CTL, "plan", *map(str, words)], capture_output=True, text=True,
                          timeout=60, env=env, **options)


def plan_json(*words, status=0):
    done = plan(*words, "--json")
    assert done.returncode == status, done.stdout + done.stderr
    assert not done.stderr
    answer = json.loads(done.stdout)
    assert answer["schema"] == 1
    return answer


def blocks_of(answer):
    """Runs: [["cuda:0", 2], …]"""
    runs = []
    for block in answer["blocks"]:
        if runs and runs[-1][0] == block["device"]:
            runs[-1][1] += 1
        else:
            runs.append([block["device"], 1])
    return runs


def write_header(path, tensors):
    """A file that is all hole behind its header: {name: bytes}."""
    header, offset = {}, 0
    for name, size in tensors.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return path


@pytest.fixture
def twelve(tmp_path):
    """Twelve blocks of 1000 MiB, in two tensors each."""
    tensors = {f"blocks.{i}.{part}": 500 * MIB for i in range(12) for part in ("a", "b")}
    return write_header(tmp_path / "twelve.safetensors", tensors)


@pytest.fixture
def flux(tmp_path):
    tensors = {"img_in.weight": 30 * MIB}
    tensors |= {f"double_blocks.{i}.qkv": 340 * MIB for i in range(19)}
    tensors |= {f"single_blocks.{i}.linear": 141 * MIB for i in range(38)}
    tensors |= {"final_layer.weight": 10 * MIB}
    return write_header(tmp_path / "flux.safetensors", tensors)


def test_json_has_the_promised_keys_and_its_sums_agree(twelve):
    answer = plan_json(twelve, "cuda:0,2.5gb;cpu,*", "--devices", CARDS)
    assert list(answer) == ["schema", "devices", "blocks", "warnings", "bytes_moved_per_pass",
                            "floor_ms"]
    assert [list(device) for device in answer["devices"]] == [
        ["name", "bytes", "blocks", "share", "share_of_device", "free_after"]] * 3
    assert [list(block) for block in answer["blocks"]] == [
        ["name", "bytes", "device", "tensors"]] * 12
    assert blocks_of(answer) == [["cuda:0", 2], ["cpu", 10]]
    assert [block["name"] for block in answer["blocks"]] == [f"blocks.{i}" for i in range(12)]
    assert all(b["bytes"] == 1000 * MIB and b["tensors"] == 2 for b in answer["blocks"])
    card, idle, ram = answer["devices"]
    assert card == {"name": "cuda:0", "bytes": 2000 * MIB, "blocks": 2,
                    "share": pytest.approx(1 / 6), "share_of_device": pytest.approx(2000 / 24576),
                    "free_after": 24 * GIB - 2000 * MIB}
    assert idle["bytes"] == idle["blocks"] == 0 and idle["free_after"] == 12 * GIB
    assert ram["name"] == "cpu" and ram["bytes"] == 10000 * MIB
    assert answer["bytes_moved_per_pass"] == 10000 * MIB
    assert answer["floor_ms"] is None and answer["warnings"] == []


def test_five_strings_of_the_help_are_planned_as_it_says(flux, tmp_path):
    text = plan("--help").stdout
    sizes = plan_json(flux, "cuda:0,6gb;cpu,*", "--devices", CARDS)
    assert "'cuda:0,6gb;cpu,*'" in text
    assert blocks_of(sizes)[0][0] == "cuda:0" and blocks_of(sizes)[-1][0] == "cpu"
    assert 6 * GIB - 340 * MIB < sizes["devices"][0]["bytes"] <= 6 * GIB
    assert "'cuda:0,10gb;cuda:1,8gb'" in text
    two = plan_json(flux, "cuda:0,10gb;cuda:1,8gb", "--devices", CARDS)
    assert [run[0] for run in blocks_of(two)] == ["cuda:0", "cuda:1"]
    assert "'cuda:0,60%;cuda:1,40%'" in text
    ratio = plan_json(flux, "cuda:0,60%;cuda:1,40%", "--devices", CARDS)
    assert ratio["devices"][0]["share"] == pytest.approx(0.6, abs=0.02)
    assert "  auto" in text
    auto = plan_json(flux, "auto", "--devices", "cuda:0=8GiB,cpu=64GiB")
    assert 0.85 < auto["devices"][0]["share_of_device"] <= 0.9 and not auto["warnings"]
    assert "'unet=cuda:0,6gb;cpu,*|clip=cpu|vae=cuda:0'" in text
    tensors = {f"model.diffusion_model.input_blocks.{i}.w": GIB for i in range(8)}
    tensors |= {"conditioner.embedders.0.transformer.w": 200 * MIB,
                "first_stage_model.decoder.w": 100 * MIB}
    checkpoint = write_header(tmp_path / "checkpoint.safetensors", tensors)
    parts = plan_json(checkpoint, "unet=cuda:0,6gb;cpu,*|clip=cpu|vae=cuda:0", "--devices", CARDS)
    assert blocks_of(parts) == [["cuda:0", 6], ["cpu", 3], ["cuda:0", 1]]


def test_a_table_for_people_has_bars_runs_and_warnings(twelve):
    done = plan(twelve, "cuda:0", "--devices", "cuda:0=12GiB,ram=64GiB")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "twelve.safetensors: 11.7G in 12 blocks, computes on cuda:0"
    assert "DEVICE" in lines[2] and "FREE AFTER" in lines[2]
    assert lines[3].startswith("cuda:0") and "████████████ 98 %" in lines[3]
    assert lines[4].startswith("ram") and "░░░░░░░░░░░░ 0 %" in lines[4]
    assert "cuda:0  blocks.0 … blocks.11" in lines
    assert "warning: 11.7G of 12.0G of cuda:0 are in use then: over 90 %; the least virtual VRAM " \
        "that is enough is 0.98G" in done.stderr
    wide = plan(twelve, "cuda:0,1g;cpu,*", "--devices", CARDS, "-o", "wide").stdout
    assert "blocks.11" in wide and "TENSORS" in wide
    quiet = plan(twelve, "cuda:0,1g;cpu,*", "--devices", CARDS, "-q").stdout
    assert len(quiet.splitlines()) == 4
    rows = list(csv.DictReader(io.StringIO(
        plan(twelve, "cuda:0,25%;cpu,75%", "--devices", CARDS, "-o", "csv").stdout)))
    assert [row["DEVICE"] for row in rows] == ["cuda:0", "cuda:1", "cpu"]
    assert float(rows[0]["MODEL"]) == 0.25 and int(rows[0]["SIZE"]) == 3000 * MIB


@pytest.mark.daemon("sim.count=1", "sim.memory=64M")
def test_the_title_is_the_same_with_and_without_a_daemon(daemon, make_model):
    path = make_model("m.safetensors", size=MIB)
    title = plan(path, "sim:0", "--devices", "sim:0=64M,cpu=1G").stdout.splitlines()[0]
    assert title.startswith("m.safetensors: ") and title.endswith(" computes on sim:0")
    said = [ctl(daemon, "plan", path, "sim:0").stdout.splitlines()[0]]
    assert ctl(daemon, "load", path).returncode == 0
    said.append(ctl(daemon, "plan", path, "sim:0").stdout.splitlines()[0])
    assert said == [f"{title} (Simulated device)"] * 2, "planned here, and by the daemon"


def test_cards_stand_before_ram_however_they_were_typed(twelve):
    answer = plan_json(twelve, "cuda:0,25%;cpu,75%", "--devices", "cuda:1=9G,ram=64G,cuda:0=12G")
    assert [(device["name"], device["blocks"]) for device in answer["devices"]] == [
        ("cuda:1", 0), ("cuda:0", 3), ("cpu", 9)]
    assert blocks_of(answer) == [["cuda:0", 3], ["cpu", 9]]
    lines = plan(twelve, "cpu", "--devices", "cpu=64G,x:0=1G").stdout.splitlines()
    assert [line.split()[0] for line in lines[3:5]] == ["x:0", "ram"]
    assert [device["name"] for device in plan_json(twelve, "cpu", "--devices", "cpu=64G")["devices"]
            ] == ["cpu"]


def test_the_least_virtual_vram_that_it_names_is_enough(twelve):
    cards = ("--devices", "cuda:0=12GiB,cpu=64GiB")
    assert plan_json(twelve, "cuda:0", *cards)["warnings"]
    enough = plan_json(twelve, "--virtual-vram", "0.98", *cards)
    assert not enough["warnings"] and enough["devices"][0]["blocks"] == 11
    assert plan_json(twelve, "--virtual-vram", "0.97", *cards)["warnings"]
    four = plan_json(twelve, "--virtual-vram", "4GiB", "--donors", "ram", *cards)
    assert four["devices"][1]["blocks"] == 4 and len(blocks_of(four)) == 9, "spread"
    runs = plan_json(twelve, "--virtual-vram", "4", "--strategy", "contiguous", *cards)
    assert blocks_of(runs) == [["cuda:0", 8], ["cpu", 4]]


def test_what_does_not_fit_is_refused_with_what_would_do(twelve, tmp_path):
    few = plan(twelve, "--virtual-vram", "1", "--devices", "cuda:0=8GiB,cpu=64GiB")
    assert few.returncode == 6 and "ask for more virtual VRAM: 4.89G are enough" in few.stderr
    assert not plan_json(twelve, "--virtual-vram", "4.89", "--devices", "cuda:0=8GiB,cpu=64GiB"
                         )["warnings"]
    host = plan(twelve, "cpu", "--devices", "cpu=8GiB")
    assert host.returncode == 6 and "let other devices take more" in host.stderr
    headed = tmp_path / "headed.safetensors"
    make_safetensors(headed, {"head": ("F32", [1024, 1024]), "layers.0.w": ("F32", [16, 16])})
    for words in (("cuda:0,0.5;cpu,*",), ("--virtual-vram", "1")):
        head = plan(headed, *words, "--devices", "cuda:0=2M,cpu=64M")
        assert head.returncode == 6 and "with its head, which stays where it computes: 4.0M" in head.stderr
        assert "let another device compute" in head.stderr
    tiny = tmp_path / "tiny.safetensors"
    make_safetensors(tiny, {f"layers.{i}.w": ("F32", [16, 16]) for i in range(4)})
    said = plan(tiny, "cuda:0", "--devices", "cuda:0=4M,cpu=64M")
    assert said.returncode == 6 and "8.0M of it, its blocks rounded up, would be on" in said.stderr


def test_a_shortage_is_told_to_programs_too(twelve):
    error = plan_json(twelve, "cuda:1,*", "--devices", "cuda:1=8GiB,ram=4GiB", status=6)["error"]
    assert error["retryable"] is False, "the card never has so much"
    assert error["detail"] == {"device": "cuda:1", "need": 12000 * MIB, "free": 8 * GIB,
                               "evictable": 0, "foreign": 0}
    error = plan_json(twelve, "auto", "--devices", "cuda:0=4GiB,cpu=4GiB", status=6)["error"]
    assert error["detail"] == {"need": 12000 * MIB} and error["retryable"] is True
    error = plan_json(twelve, "cuda:7", "--devices", CARDS, status=2)["error"]
    assert error["detail"] == {} and error["retryable"] is False


@pytest.mark.daemon("sim.count=1", "sim.memory=64M", "gpu.budget=100%", "memory.ram=1G",
                    "memory.reserve=0")
def test_a_shortage_of_the_daemons_devices_is_told_as_load_tells_it(daemon, make_model, tmp_path):
    there = make_model("there.safetensors", size=4 * MIB)
    assert ctl(daemon, "load", there, "--to", "sim:0").returncode == 0
    big = write_header(tmp_path / "big.safetensors", {f"blocks.{i}.w": 8 * MIB for i in range(20)})
    planned = ctl_json(daemon, "plan", big, "sim:0", status=6)["error"]
    refused = ctl_json(daemon, "load", big, "--to", "sim:0", status=6)["error"]
    assert planned["detail"]["evictable"] > 0 and planned["retryable"] is False
    assert planned["detail"].items() <= refused["detail"].items()
    assert planned["message"] in refused["message"]


@pytest.mark.parametrize(("allocation", "hint"), [
    ("cuda:0,10g;cpu,*", "less there: the host takes the rest already"),
    ("cuda:0,10g", "less there: the host takes the rest already"),
    ("unet=cuda:0,10g;RAM , *", "less there: the host takes the rest already"),
    ("cuda:0", "less there, or let the host take the rest: cpu,*"),
    ("cpu,1g;cuda:0,*", "less there, or let the host take the rest: cpu,*"),
    ("cuda:0,90%;cuda:1,10%", "less there, or let the host take the rest: cpu,*"),
])
def test_nobody_is_told_to_say_what_he_said(tmp_path, allocation, hint):
    path = write_header(tmp_path / "unet.safetensors",
                        {f"model.diffusion_model.input_blocks.{i}.w": GIB for i in range(12)})
    done = plan(path, allocation, "--devices", "cuda:0=8GiB,cuda:1=8GiB,cpu=64GiB")
    assert done.returncode == 6 and done.stderr.splitlines()[1] == f"hint:  {hint}"


@pytest.mark.parametrize(("words", "status", "code", "text"), [
    (("cuda:0,6gb;cuda:7,*",), 2, "bad-argument", 'item 2 (column 12) "cuda:7,*"'),
    (("cuda:0,2,5gb;cpu,*",), 2, "bad-argument", "two commas"),
    (("cuda:1",), 0, None, None),
    (("cuda:1,*", "--devices", "cuda:1=8GiB"), 6, "no-memory", "8.0G can be had"),
    (("auto", "--devices", "cuda:0=4GiB,cpu=4GiB"), 6, "no-memory",
     "fit nowhere: room for 4.0G on cuda:0 (410M stay free to compute), 4.0G on ram"),
    ((), 2, "bad-argument", "say where it is to go"),
    (("auto", "--virtual-vram", "4"), 2, "bad-argument", "say the same thing twice"),
    (("cuda:0", "--donors", "cpu"), 2, "bad-argument", "donors belong to virtual VRAM"),
    (("--virtual-vram", "much"), 2, "bad-argument", "--virtual-vram"),
    (("--virtual-vram", "0"), 2, "bad-argument", "moves nothing"),
    (("--virtual-vram", "4", "--donors", "RTX 4090"), 2, "bad-argument", '"RTX 4090"'),
    (("--virtual-vram", "4", "--donors", ",".join(["cpu"] * 17)), 2, "bad-argument",
     "more than 16"),
    (("auto", "--compute", "None"), 2, "bad-argument", 'compute: there is no device "None"'),
    (("auto", "--strategy", "best"), 2, "bad-argument", "contiguous or spread"),
    (("auto", "--granularity", "layer"), 2, "bad-argument", "block or tensor"),
    (("auto", "--format", "pickle"), 2, "bad-argument", "safetensors, gguf or raw"),
    (("auto", "--devices", "cuda:0"), 2, "bad-argument", "is not like cuda:0=24GiB"),
    (("auto", "--devices", "cuda:0=1g,cuda:0=2g"), 2, "bad-argument", "cuda:0 stands twice"),
    (("auto", "--devices", "ram=1g,cpu=2g"), 2, "bad-argument", "cpu stands twice"),
    (("auto", "--devices", "cuda:0=24,cpu=64"), 2, "bad-argument", "has no unit: 24GiB?"),
    (("cuda:0,33.33333333333333%;cpu,*",), 2, "bad-argument", "at most 9 decimals"),
    (("cuda:0,1.33333333333333gb;cpu,*",), 2, "bad-argument", "at most 9 decimals"),
    (("cuda:0,1*;cpu,1g",), 2, "bad-argument", "1 has no unit: 1gb*?"),
    (("auto", "--devices", "cuda:0=much"), 2, "bad-argument", '"much" is not a size'),
    (("auto", "--devices", ","), 2, "bad-argument", "names none"),
    (("auto", "--devices", ",".join(f"x:{i}=1g" for i in range(17))), 2, "bad-argument",
     "more than 16"),
    (("auto", "--devices", "x" * 40 + "=1g"), 2, "bad-argument", "a name has"),
    (("auto", "--devices", "\033" * 80), 2, "bad-argument", '"' + "\033" * 64 + '" is not like'),
])
def test_what_cannot_be_is_refused_in_words(twelve, words, status, code, text):
    cards = () if "--devices" in words else ("--devices", CARDS)
    answer = plan_json(twelve, *words, *cards, status=status)
    if status:
        assert answer["error"]["code"] == code and text in answer["error"]["message"]
        done = plan(twelve, *words, *cards)
        assert done.returncode == status and done.stderr.startswith("error: ")
        assert not done.stdout


def test_bad_files_are_refused_as_load_refuses_them(tmp_path):
    cards = ("auto", "--devices", CARDS)
    assert plan_json(tmp_path / "none", *cards, status=4)["error"]["code"] == "not-found"
    assert plan_json(tmp_path, *cards, status=7)["error"]["code"] == "bad-file"
    os.mkfifo(tmp_path / "pipe")
    assert plan_json(tmp_path / "pipe", *cards, status=7)["error"]["code"] == "bad-file"
    (tmp_path / "pickle.pt").write_bytes(b"PK\x03\x04" + b"x" * 100)
    assert plan_json(tmp_path / "pickle.pt", *cards, status=7)["error"]["code"] == "unsupported"
    raw = plan_json(tmp_path / "pickle.pt", *cards, "--format", "raw")
    assert raw["blocks"][0]["bytes"] == 104
    whole = write_header(tmp_path / "cut.safetensors", {"blocks.0.w": GIB})
    os.truncate(whole, os.stat(whole).st_size - 1)
    assert plan_json(whole, *cards, status=7)["error"]["code"] == "bad-file"


def test_a_path_is_no_name_of_a_model(daemon, tmp_path):
    for path, status, text in ((tmp_path / "none", 4, f"there is no file {tmp_path}/none"),
                               (tmp_path, 7, "is no regular file"),
                               ("none", 4, "no model is called none")):
        done = ctl(daemon, "plan", str(path), "cpu")
        assert done.returncode == status and text in done.stderr, done.stderr


def test_only_the_header_is_read(tmp_path):
    """What this process and the children it waited for have read, as the kernel counts it."""
    def read_so_far():
        fields = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())
        return int(fields["rchar"])

    big = write_header(tmp_path / "big.safetensors", {f"blocks.{i}.w": GIB for i in range(30)})
    before = read_so_far()
    answer = plan_json(big, "cuda:0,10gb;cpu,*", "--devices", CARDS)
    assert read_so_far() - before < 2 * MIB, "the libraries, the answer and one header"
    assert blocks_of(answer) == [["cuda:0", 10], ["cpu", 20]]


def test_tensors_can_be_the_blocks(twelve, tmp_path):
    answer = plan_json(twelve, "cuda:0,2.5gb;cpu,*", "--devices", CARDS, "--granularity", "tensor")
    assert blocks_of(answer) == [["cuda:0", 5], ["cpu", 19]]
    assert answer["blocks"][1]["name"] == "blocks.0.b"
    tensors = {"blocks.10.w": MIB, "embed.weight": MIB, "blocks.2.w": MIB}
    mixed = write_header(tmp_path / "mixed.safetensors", tensors)
    answer = plan_json(mixed, "cpu,*", "--compute", "cuda:0", "--devices", CARDS, "--granularity",
                       "tensor")
    assert [(block["name"], block["device"]) for block in answer["blocks"]] == [
        ("blocks.2.w", "cpu"), ("blocks.10.w", "cpu"), ("embed.weight", "cuda:0")]


@pytest.mark.daemon("sim.count=1", "sim.memory=64M", "memory.ram=256M", "memory.reserve=0")
def test_tensors_of_a_resident_file_are_planned_for_the_host_too(daemon, tmp_path):
    path = tmp_path / "m.safetensors"
    make_safetensors(path, {f"blocks.{i}.{part}": ("F32", [256, 256]) for i in range(3)
                            for part in "ab"})
    assert ctl(daemon, "load", path).returncode == 0
    for allocation in "cpu", "cpu,*", "sim:0,600k;cpu,*":
        blocks = ctl_json(daemon, "plan", path, allocation, "--granularity", "tensor")["blocks"]
        assert [block["name"] for block in blocks] == [f"blocks.{i}.{part}" for i in range(3)
                                                       for part in "ab"], allocation
    assert len(ctl_json(daemon, "plan", path, "cpu")["blocks"]) == 3


def test_what_a_card_gives_is_counted_in_its_pages(tmp_path):
    small = write_header(tmp_path / "small.safetensors", {f"b.{i}.w": 1000 for i in range(5)})
    answer = plan_json(small, "cuda:0,3000;cpu,*", "--devices", "cuda:0=6MiB,cpu=1GiB")
    card, ram = answer["devices"]
    assert card["bytes"] == 3000 and card["free_after"] == 0
    assert ram["free_after"] == GIB - 2 * 4096
    refused = plan_json(small, "cuda:0,4000;cpu,*", "--devices", "cuda:0=6MiB,cpu=1GiB", status=6)
    assert refused["error"]["code"] == "no-memory"


def test_a_block_without_bytes_takes_a_page_of_a_card_as_in_the_daemon(tmp_path):
    path = write_header(tmp_path / "empty.safetensors", {"b.0.w": 1000, "b.1.w": 0, "b.2.w": 1000})
    for unit in ("block", "tensor"):
        card = plan_json(path, "cuda:0", "--devices", "cuda:0=8MiB,cpu=1GiB", "--granularity",
                         unit)["devices"][0]
        assert card["blocks"] == 3 and card["free_after"] == 2 * MIB


def test_several_files_are_one_model(tmp_path):
    sharded = Sharded(tmp_path / "m", n=3, each=2, bytes=1 << 20)
    for path in (sharded.index, sharded.paths[1]):
        answer = plan_json(path, "cuda:0,34%;cpu,66%", "--devices", CARDS)
        assert [block["name"] for block in answer["blocks"]] == [f"model.layers.{i}"
                                                                  for i in range(3)]
        assert blocks_of(answer) == [["cuda:0", 1], ["cpu", 2]]
    os.unlink(sharded.paths[2])
    assert plan_json(sharded.index, "cpu", "--devices", CARDS, status=4)["error"]["code"] == "not-found"


def test_a_gguf_file_is_planned_alike(tmp_path):
    gguf = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("token_embd.weight", numpy.zeros(2048, "float32"))
    for i in (0, 1, 2, 10):
        writer.add_tensor(f"blk.{i}.w", numpy.zeros(1024, "uint8"),
                          raw_dtype=gguf.GGMLQuantizationType.I8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    answer = plan_json(tmp_path / "m.gguf", "cuda:0,9k;cpu,*", "--devices", CARDS)
    assert [(block["name"], block["bytes"], block["device"]) for block in answer["blocks"]] == [
        ("(head)", 8192, "cuda:0"), ("blk.0", 1024, "cuda:0"), ("blk.1", 1024, "cpu"),
        ("blk.2", 1024, "cpu"), ("blk.10", 1024, "cpu")]


def test_names_in_a_file_harm_no_terminal(tmp_path):
    path = write_header(tmp_path / "odd.safetensors", {"a\x1b[31m\n.1.w": MIB, "b.2.w": MIB})
    done = plan(path, "cpu", "--devices", CARDS, "-o", "wide")
    assert done.returncode == 0 and "\x1b" not in done.stdout
    assert plan_json(path, "cpu", "--devices", CARDS)["blocks"][0]["name"] == "a\x1b[31m\n.1"


def test_without_devices_it_says_what_to_do(twelve):
    done = plan(twelve, "auto")
    assert done.returncode in (1, 3), "the daemon is not there, or cannot"
    assert "error: " in done.stderr and "hint: " in done.stderr


def test_what_the_page_cache_has_is_no_room_that_could_be_had(start_daemon, make_model, tmp_path):
    daemon = start_daemon("memory.backing=auto", "memory.ram=4M", "memory.reserve=0")
    cached = make_model()
    assert ctl(daemon, "load", str(cached)).returncode == 0
    big = write_header(tmp_path / "big.safetensors", {f"blocks.{i}.w": MIB for i in range(8)})
    done = ctl(daemon, "plan", str(big), "cpu")
    assert done.returncode == 6 and "evictable" not in done.stdout, done.stdout
    assert ctl(daemon, "unload", "--all").returncode == 0
    done = ctl(daemon, "plan", cached.name, "cpu")
    assert f"{cached.name} is known but not in memory" in done.stderr and "load it first" in done.stderr
