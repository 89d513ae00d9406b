# SPDX-License-Identifier: Apache-2.0
"""The dashboard and the alerts of docs/monitoring: every number in them is one that the daemon gives,
the rules say what they are for, and a real Prometheus can evaluate all of it."""
import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request

import metrics
import pytest
from conftest import BUILD, ROOT, RawError, slowness, wait_until
from test_ctl import ctl

FOLDER = ROOT / "docs" / "monitoring"
ALERTS = FOLDER / "distorchd-alerts.yml"
NAME = re.compile(r"\b(?:distorchd|process)_\w+")
needs_promtool = pytest.mark.skipif(not shutil.which("promtool"),
                                    reason="needs promtool, of the package prometheus")


def dashboard():
    return json.loads((FOLDER / "distorchd-dashboard.json").read_text())


def expressions(rate="1m", over="5m"):
    """{title and letter: expression} of the panels, as Grafana would send them."""
    found = {}
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            text = target["expr"]
            for name, value in (("$__rate_interval", rate), ("$__range", over), ("$instance", ".*")):
                text = text.replace(name, value)
            assert "$" not in text, text
            found[f"{panel['title']} {target['refId']}"] = text
    return found


def rules():
    """[(name, expression)] of the alerts; a file of this form needs no library to be read."""
    return re.findall(r"- alert: (\w+)\n\s+expr: (.+)\n", ALERTS.read_text())


def names_of(families):
    """Every name that a sample may have, and the labels of each."""
    found = {}
    for family in families.values():
        for suffix in metrics.SUFFIXES[family.kind]:
            found[family.name + suffix] = {name for key in family.samples for name, _ in key} - {""}
    return found


@pytest.mark.daemon("sim.count=1")
def test_every_metric_and_label_in_them_is_one_that_the_daemon_gives(daemon):
    assert ctl(daemon, "ping").returncode == 0  # a request that has been counted
    there = names_of(metrics.read(ctl(daemon, "metrics").stdout))
    there.setdefault("distorchd_swapped_bytes", set())  # not every kernel tells it
    texts = [*expressions().values(), *(expression for _name, expression in rules()),
             dashboard()["annotations"]["list"][0]["expr"],
             dashboard()["templating"]["list"][1]["query"]["query"]]
    used = set()
    for text in texts:
        for name in NAME.findall(text):
            assert name in there, f"{name}: {text}"
            used.add(name)
        for name, labels in re.findall(r"\b((?:distorchd|process)_\w+)\{([^}]*)\}", text):
            wanted = set(re.findall(r"(\w+)[=!]~?=?\"", labels)) - {"instance", "job"}
            assert wanted <= there[name], f"{name}: {wanted}"
        by = re.search(r"\bby \(([^)]*)\)", text)
        for label in by[1].split(", ") if by else []:
            name = NAME.findall(text)[0]
            assert label in there[name] | {"instance"}, f"{text}: no label {label}"
    assert len(used) > 15


def test_the_dashboard_is_whole():
    board = dashboard()
    places = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & places and place["x"] + place["w"] <= 24, panel["title"]
        places |= cells
        assert panel["title"] and (panel["type"] == "row" or panel["targets"])
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert [panel["title"] for panel in board["panels"] if panel["type"] == "row"] == \
        ["What it saves", "Loads and evictions", "Clients and the daemon itself"]
    assert board["uid"] == "distorchd" and board["schemaVersion"] >= 36


@needs_promtool
def test_promtool_reads_the_rules_and_the_expressions(tmp_path):
    lines = ["groups:", "  - name: panels", "    rules:"]
    for number, text in enumerate(expressions().values()):
        lines += [f"      - record: panel_{number}", f"        expr: {json.dumps(text)}"]
    panels = tmp_path / "panels.yml"
    panels.write_text("\n".join(lines) + "\n")
    for file, count in ((ALERTS, len(rules())), (panels, len(expressions()))):
        done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True,
                              timeout=60)
        assert done.returncode == 0 and f"{count} rules found" in done.stdout, done.stderr
    assert len(rules()) == 8


# What the rules are for, as series of a value a minute, and when they say so.
STORIES = {
    "DistorchdDown": ("up{job='distorchd'}", "1 1 0x10", 3, 6),
    "DistorchdRefusesLoads": ("distorchd_loads_total{result='refused',source='disk'}", "0x9 1x9", 5, 11),
    "DistorchdVerifyFailed": ("distorchd_verify_failures_total{tier='ram'}", "0x9 1x9", 5, 11),
    "DistorchdNotRestartSafe": ("distorchd_store_fds", "8x4 0x30", 6, 17),
    "DistorchdSwapped": ("distorchd_swapped_bytes", "0x4 100000000x30", 6, 17),
    "DistorchdDeviceDown": ("distorchd_device_up{tier='cuda:0'}", "1x4 0x30", 5, 8),
    "DistorchdFault": ("distorchd_faults{what='config'}", "0x4 1x30", 6, 17),
}
HEALTHY = {"up{job='distorchd'}": "1x40", "distorchd_start_time_seconds": "1700000000x40",
           "distorchd_loads_total{result='refused',source='disk'}": "3x40",
           "distorchd_verify_failures_total{tier='ram'}": "1x40", "distorchd_store_fds": "8x40",
           "distorchd_device_up{tier='cuda:0'}": "1x40",
           "distorchd_swapped_bytes": "1000x40", "distorchd_faults{what='config'}": "0x40",
           "distorchd_loop_lag_seconds_bucket{le='0.1'}": "0+100x40",
           "distorchd_loop_lag_seconds_bucket{le='0.3'}": "0+100x40",
           "distorchd_loop_lag_seconds_bucket{le='+Inf'}": "0+100x40"}


@needs_promtool
def test_each_alert_is_raised_by_what_it_is_for_and_by_nothing_else(tmp_path):
    def story(series, name, minute, is_raised):
        listed = [{"series": key, "values": value} for key, value in series.items()]
        case = {"eval_time": f"{minute}m", "alertname": name}
        if is_raised:
            case["exp_alerts"] = [{}]
        return {"interval": "1m", "input_series": listed, "alert_rule_test": [case],
                "promql_expr_test": [{"expr": f"count(ALERTS{{alertname='{name}',alertstate='firing'}})",
                                      "eval_time": f"{minute}m",
                                      "exp_samples": [{"labels": "{}", "value": 1}]
                                      if is_raised else []}]}

    stories = dict(STORIES)
    cases = []
    for name, (series, values, before, after) in stories.items():
        ill = {**HEALTHY, series: values}
        cases += [story(HEALTHY, name, 30, False), story(ill, name, before, False),
                  story(ill, name, after, True)]
    slow = {**HEALTHY, "distorchd_loop_lag_seconds_bucket{le='0.1'}": "0+90x40"}
    cases += [story(HEALTHY, "DistorchdLoopLag", 30, False), story(slow, "DistorchdLoopLag", 30, True),
              story({}, "DistorchdDown", 5, True)]
    assert {*stories, "DistorchdLoopLag"} == {name for name, _ in rules()}
    for case in cases:  # what is said in the annotations is tried elsewhere
        del case["alert_rule_test"]
    path = tmp_path / "test.yml"
    path.write_text(json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "1m",
                                "tests": cases}))  # JSON is YAML
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- in a real Prometheus ----------------------------------------------------------------


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Prometheus:
    def __init__(self, folder, target):
        self.url = f"http://127.0.0.1:{free_port()}"
        config = folder / "prometheus.yml"
        config.write_text(json.dumps({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(ALERTS)],
            "scrape_configs": [{"job_name": "distorchd", "static_configs": [{"targets": [target]}]}]}))
        self.log = open(folder / "log", "w+")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address={self.url[7:]}"], stdout=self.log, stderr=self.log)

    def ask(self, path, **query):
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}",
                                    timeout=20) as answer:
            result = json.load(answer)
        assert result["status"] == "success", result
        return result["data"]

    def value(self, expression):
        try:
            found = self.ask("query", query=expression)["result"]
        except OSError:
            assert self.process.poll() is None, "Prometheus has ended"
            return None
        return float(found[0]["value"][1]) if found else None

    def end(self):
        self.process.terminate()
        self.process.wait(30)
        self.log.close()


@pytest.mark.seconds(180)
@pytest.mark.skipif(not shutil.which("prometheus"), reason="needs prometheus")
def test_a_real_prometheus_scrapes_it_and_evaluates_every_panel_and_rule(
        start_daemon, make_model, tmp_path):
    target = f"127.0.0.1:{free_port()}"
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", f"metrics.listen={target}")
    path = make_model()
    with daemon.raw() as raw:
        raw.load(path)
        with pytest.raises(RawError):
            raw.call("show", {"model": "nosuch"})
        prometheus = Prometheus(tmp_path, target)
        try:
            up = 'up{job="distorchd"}'
            wait_until(lambda: prometheus.value(up) == 1, 30 * slowness(), "a first scrape")
            before = prometheus.value("count_over_time(distorchd_hits_total[5m])")
            raw.load(path)
            wait_until(lambda: prometheus.value("count_over_time(distorchd_hits_total[5m])")
                       >= before + 3, 30 * slowness(), "some scrapes")
            empty = {name for name, text in expressions().items()
                     if not prometheus.ask("query", query=text)["result"]}
            groups = prometheus.ask("rules")["groups"]
        finally:
            prometheus.end()
    assert empty <= {"Swapped out A"}, empty
    found = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert set(found) == {name for name, _ in rules()}
    for name, rule in found.items():
        assert rule["health"] == "ok", rule
        # Nobody keeps this daemon's descriptors: the rule has seen it, and bides its time.
        assert rule["state"] == ("pending" if name == "DistorchdNotRestartSafe" else "inactive")


def test_they_are_installed(tmp_path):
    done = subprocess.run(["cmake", "--install", BUILD, "--prefix", tmp_path / "usr"],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    there = tmp_path / "usr" / "share" / "doc" / "distorchd" / "monitoring"
    for file in FOLDER.iterdir():
        assert (there / file.name).read_bytes() == file.read_bytes()
