# SPDX-License-Identifier: Apache-2.0
"""metrics.listen: GET /metrics by HTTP, for scrapers, and everything else that may come there."""
import array
import contextlib
import os
import shutil
import socket
import stat
import subprocess
import threading
import time

import metrics
import pytest
from conftest import BUILD, HeldDaemon, slowness, wait_until
from test_ctl import ctl
from test_wire_hostile import as_nobody, needs_root

needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
SOON_MS = 1000 * slowness()  # within which a scraper on a busy machine has asked


class Scraped:
    """A daemon whose metrics are fetched beside its socket, as the system's are."""

    def __init__(self, daemon, path=None):
        self.daemon = daemon
        self.path = path or daemon.folder / "metrics.sock"

    def connect(self, timeout=10.0):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(self.path))  # waits while the queue is full
        sock.settimeout(timeout * slowness())
        return sock

    def ask(self, request=GET):
        """(status, headers, body) of the answer to these bytes."""
        with self.connect() as sock:
            sock.sendall(request)
            return parse(read_all(sock))

    def families(self):
        status, headers, body = self.ask()
        assert status == 200
        assert headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        return metrics.read(body.decode())


@pytest.fixture
def scraped(start_daemon):
    def start(*settings, **options):
        environment = {"DISTORCHD_TEST_SCRAPE_MS": str(SOON_MS), **options.pop("environment", {})}
        daemon = start_daemon("memory.ram=1G", "memory.reserve=0", *settings,
                              environment=environment, **options)
        return Scraped(daemon)

    if os.geteuid() != 0:
        pytest.skip("only the system's daemon has it beside its socket")
    return start


def read_all(sock):
    data = b""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while chunk := sock.recv(65536):
            data += chunk
    return data


def parse(data):
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    version, status, _reason = first.split(" ", 2)
    assert version == "HTTP/1.1"
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert headers["connection"] == "close"
    return int(status), headers, body


def serves_at_once(daemon):
    with daemon.raw() as raw:
        begun = time.monotonic()
        raw.call("ping")
        assert time.monotonic() - begun < 1.0 * slowness()


def end(daemon):
    daemon.check()
    daemon.is_checked = False
    daemon.stop()


# ---- what scrapers do --------------------------------------------------------------------


@needs_curl
def test_curl_gets_what_the_verb_prints(scraped, make_model):
    one = scraped()
    assert ctl(one.daemon, "load", make_model()).returncode == 0
    done = subprocess.run(["curl", "-sSi", "--fail", "--unix-socket", one.path,
                           "http://localhost/metrics"], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    status, headers, body = parse(done.stdout)
    assert status == 200 and int(headers["content-length"]) == len(body)
    fetched = metrics.read(body.decode())
    printed = metrics.read(ctl(one.daemon, "metrics").stdout)
    assert set(fetched) == set(printed)
    assert fetched["distorchd_models"][{"tier": "ram", "state": "resident"}] == 1
    head = subprocess.run(["curl", "-sSI", "--unix-socket", one.path, "http://localhost/metrics"],
                          capture_output=True, timeout=60)
    assert head.returncode == 0 and parse(head.stdout)[2] == b""
    missing = subprocess.run(["curl", "-sS", "--fail", "--unix-socket", one.path,
                              "http://localhost/"], capture_output=True, timeout=60)
    assert missing.returncode == 22 and b"404" in missing.stderr


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool, of the package prometheus")
def test_promtool_finds_nothing_in_what_is_fetched(scraped):
    _status, _headers, body = scraped().ask()
    done = subprocess.run(["promtool", "check", "metrics"], input=metrics.older(body.decode()),
                          text=True, capture_output=True, timeout=60)
    assert done.returncode == 0 and not done.stdout + done.stderr, done.stdout + done.stderr


def free_port(family=socket.AF_INET, host="127.0.0.1"):
    with socket.socket(family) as sock:
        try:
            sock.bind((host, 0))
        except OSError as error:
            pytest.skip(f"this machine has no {host}: {error}")
        return sock.getsockname()[1]


@needs_curl
@pytest.mark.parametrize("family, host", [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_loopback_address_is_served_where_it_is_said(start_daemon, family, host):
    port = free_port(family, host)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", f"metrics.listen={address}")
    assert not (daemon.folder / "metrics.sock").exists()
    done = subprocess.run(["curl", "-sSg", "--fail", f"http://{address}/metrics"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "distorchd_build_info" in metrics.read(done.stdout)
    daemon.stop()
    daemon.start()  # at once, with connections of before still about to end


def test_a_reader_that_takes_its_time_gets_all(scraped):
    one = scraped(environment={"DISTORCHD_TEST_SCRAPE_MS": "20000"})
    with one.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        for byte in GET:
            sock.send(bytes([byte]))
        data = b""
        while chunk := sock.recv(100):
            data += chunk
            time.sleep(0.001)
    status, headers, body = parse(data)
    assert status == 200 and int(headers["content-length"]) == len(body)
    metrics.read(body.decode())


@pytest.mark.fault("U09")
def test_a_scrape_among_500_clients_takes_little_time(scraped, make_model):
    one = scraped("limits.connections=1100", "limits.connections-per-user=1100")
    path = make_model()
    clients = [one.daemon.raw() for _ in range(500)]
    try:
        for raw in clients:
            raw.load(path)
        times = []
        for _ in range(20):
            begun = time.monotonic()
            families = one.families()
            times.append(time.monotonic() - begun)
    finally:
        for raw in clients:
            raw.close()
    assert families["distorchd_clients"][{}] == 500
    assert min(times) < 0.02 * slowness(), "the least: the machine may be busy with others"


# ---- who may, and where it is ------------------------------------------------------------


def test_it_lies_beside_the_daemons_socket_with_its_rights_and_goes_with_it(scraped):
    one = scraped()
    status = os.stat(one.path)
    assert stat.S_ISSOCK(status.st_mode) and status.st_mode & 0o777 == 0o660
    assert status.st_gid == os.stat(one.daemon.socket).st_gid
    one.families()
    end(one.daemon)
    assert not one.path.exists()


@needs_root
def test_who_is_not_in_the_group_cannot_connect(scraped):
    one = scraped()

    def connect():
        try:
            one.connect().close()
        except PermissionError:
            return "not allowed"
        return "connected"

    os.chmod(one.daemon.folder, 0o755)
    assert as_nobody(one.daemon, connect) == "not allowed"


@pytest.mark.parametrize("listen", ["off", "", None])
def test_it_can_be_left_out_and_a_users_daemon_does_so_unasked(start_daemon, listen):
    settings = [] if listen is None else [f"metrics.listen={listen}"]
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", *settings,
                          arguments=["--user"] if listen is None else [])
    assert not (daemon.folder / "metrics.sock").exists() and "metrics can" not in daemon.log()


def test_a_users_daemon_has_it_where_it_is_told_and_for_him_alone(start_daemon, tmp_path):
    path = tmp_path / "m.sock"
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", f"metrics.listen={path}",
                          arguments=["--user"])
    assert os.stat(path).st_mode & 0o777 == 0o600
    Scraped(daemon, path).families()


def test_it_is_there_again_after_a_kill(scraped):
    one = scraped(kind=HeldDaemon)
    before = one.families()["distorchd_restarts"][{}]
    one.daemon.kill_daemon()
    assert one.families()["distorchd_restarts"][{}] == before + 1


def test_what_is_in_the_way_is_left_alone_and_the_daemon_serves_without(start_daemon, tmp_path):
    taken = tmp_path / "file"
    taken.write_text("somebody's")
    lively = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    lively.bind(str(tmp_path / "sock"))
    lively.listen()
    tcp = socket.socket()
    tcp.bind(("127.0.0.1", 0))
    tcp.listen()
    for listen, said in ((taken, "exists and is not a socket"),
                         (tmp_path / "sock", "somebody answers"),
                         (f"127.0.0.1:{tcp.getsockname()[1]}", "Address already in use"),
                         (tmp_path / "no" / "such" / "folder", "cannot make the folder")):
        daemon = start_daemon("memory.ram=64M", "memory.reserve=0", f"metrics.listen={listen}")
        serves_at_once(daemon)
        assert f"metrics cannot be fetched at {listen}: " in daemon.log()
        assert said in daemon.log(), daemon.log()
    assert taken.read_text() == "somebody's" and (tmp_path / "sock").exists()
    lively.close()
    tcp.close()


def test_an_address_that_others_could_reach_is_refused_with_its_place(tmp_path):
    config = tmp_path / "d.conf"
    config.write_text("[metrics]\nlisten = 0.0.0.0:9477\n")
    done = subprocess.run([BUILD / "bin" / "distorchd", "--config", config, "--check-config"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"{config}:2: metrics.listen: 0.0.0.0:9477 can be reached from elsewhere" in done.stderr


# ---- what else may come ------------------------------------------------------------------

ODD = {
    "nothing but lines": (b"\n" * 10, 400),
    "another protocol": (b"\x16\x03\x01\x02\x00\x01\x00\n\n", 400),
    "the daemon's own protocol": (b"\x94\x00\x01\xa5hello\x80\n\r\n", 400),
    "another path": (b"GET /etc/passwd HTTP/1.1\r\n\r\n", 404),
    "another method": (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 405),
    "a head without end": (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 5000, 431),
    "endless zeros": (b"\0" * 100000, 431),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_no_scrape_is_told_so_and_ended(scraped, case):
    one = scraped()
    request, wanted = ODD[case]
    with one.connect() as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(request)
        data = read_all(sock)
    if data or len(request) < 5000:  # what was sent behind the answer may have cost it
        status, _headers, body = parse(data)
        assert status == wanted and body.endswith(b".\n")
    one.families()


@pytest.mark.parametrize("sent", [b"", b"GET /met", GET[:-1]])
def test_who_does_not_finish_is_ended_in_time(scraped, sent):
    one = scraped()
    begun = time.monotonic()
    with one.connect() as sock:
        sock.sendall(sent)
        assert read_all(sock) == b""
        assert SOON_MS / 1000 * 0.9 < time.monotonic() - begun < SOON_MS / 1000 + 5 * slowness()


def test_who_drips_and_who_never_reads_is_ended_in_time_too(scraped):
    one = scraped()
    end = time.monotonic() + 10 * slowness()
    with one.connect() as sock:
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while time.monotonic() < end:
                sock.sendall(b"G")
                time.sleep(0.01)
    with one.connect() as sock:
        sock.sendall(GET)  # and reads nothing, closes nothing
        wait_until(lambda: n_connections(one.daemon) == 0, 10.0 * slowness(), "its end")


def n_connections(daemon):
    """Sockets of the daemon beyond those it has at rest."""
    with daemon.raw() as raw:
        return raw.call("status")["open_fds"] - daemon.baseline_fds


def test_many_at_a_time_wait_for_their_turn_and_all_are_served(scraped):
    one = scraped(environment={"DISTORCHD_TEST_SCRAPE_MS": "20000"})
    answers, most = [], []

    def ask():
        answers.append(one.ask()[0])

    idle = [one.connect() for _ in range(4)]
    threads = [threading.Thread(target=ask) for _ in range(48)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        most.append(n_connections(one.daemon))
        time.sleep(0.001)
    for sock in idle:
        sock.close()
    assert answers == [200] * 48 and max(most, default=0) <= 8


def test_who_takes_all_places_keeps_them_no_longer_than_his_time(scraped):
    one = scraped()
    idle = [one.connect() for _ in range(40)]  # 8 are taken, the rest waits
    try:
        serves_at_once(one.daemon)
        wait_until(lambda: n_connections(one.daemon) == 8)
        one.families()  # after them, as each of them has had its time
    finally:
        for sock in idle:
            sock.close()
    wait_until(lambda: n_connections(one.daemon) == 0, 10.0 * slowness(), "no connection")


def test_a_flood_of_connections_that_end_at_once_is_survived(scraped):
    one = scraped()
    for number in range(500):
        sock = one.connect()
        if number % 3 == 0:
            sock.sendall(GET)
        if number % 3 == 1:
            sock.shutdown(socket.SHUT_WR)
        sock.close()
    one.families()
    serves_at_once(one.daemon)


def test_descriptors_that_are_sent_there_hold_nobody_up(scraped):
    one = scraped()
    daemon = one.daemon
    daemon.tell("fault close:1:delay=60000:ever")  # closing a stranger's may take for ever
    with open("/dev/null", "rb") as file:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()] * 64))]
        for request in (b"G", GET):
            with one.connect() as sock:
                sock.sendmsg([request], rights)
                serves_at_once(daemon)
                assert read_all(sock) == b"", "that is no scrape"
        with one.connect() as sock:  # and behind the request
            sock.sendall(GET)
            sock.sendmsg([b"x"], rights)
            serves_at_once(daemon)
            read_all(sock)
    serves_at_once(daemon)
    daemon.tell("clear")
    wait_until(lambda: n_connections(daemon) == 0, 20.0 * slowness(), "all of them closed")
    one.families()


@pytest.mark.parametrize("fault", ["accept:1:EMFILE", "accept:1:ECONNABORTED", "accept:1:EINTR",
                                   "recvmsg:1:EAGAIN", "recvmsg:1:EINTR"])
def test_a_call_that_fails_once_costs_nobody_the_answer(scraped, fault):
    one = scraped(environment={"DISTORCHD_TEST_SCRAPE_MS": "20000"})
    with one.connect() as early:  # nothing else of the daemon's comes in between
        early.sendall(GET)
        assert parse(read_all(early))[0] == 200
    one.daemon.tell(f"fault {fault}")
    one.families()
    one.daemon.tell("clear")


@pytest.mark.parametrize("fault", ["recvmsg:1:ECONNRESET", "sendmsg:1:EPIPE", "malloc:1:ENOMEM",
                                   "malloc:2:ENOMEM", "malloc:3:ENOMEM"])
def test_a_call_that_fails_ends_one_connection_and_no_more(scraped, fault):
    one = scraped()
    one.daemon.tell(f"fault {fault}")
    with one.connect() as sock:
        with contextlib.suppress(BrokenPipeError):  # it may be ended before
            sock.sendall(GET)
        data = read_all(sock)
        assert data == b"" or parse(data)[0] in (200, 500)
    one.daemon.tell("clear")
    one.families()


def test_the_end_of_the_daemon_is_not_held_up(scraped):
    one = scraped(environment={"DISTORCHD_TEST_SCRAPE_MS": "60000"})
    with one.connect() as silent, one.connect() as half:
        half.sendall(b"GET /met")
        wait_until(lambda: n_connections(one.daemon) == 2)
        one.daemon.is_checked = False
        one.daemon.stop()
        assert read_all(silent) == b"" and read_all(half) == b""
