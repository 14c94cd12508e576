#!/usr/bin/env python3
"""Figures of routers and mirrors, each against fresh clusters of three members on this machine:

  catch-up   records per second that a new mirror takes over
  lag        time from the first write to its copy in the other cluster, at a steady rate
  fan-out    CPU per source record of local routers to many topics, against none

    benches/mirrors.py [--antiphon target/release/antiphon] [--records 1000000] [--destinations 100]

It prints rows for the table of benches/README.md. Only the standard library is used.
"""
import argparse
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request

SECRET = "a secret of the benchmark only"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def call(url, method="GET", body=None, timeout_s=40):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return json.load(answer)


def until(what, is_so, timeout_s=120, interval_s=0.05):
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {timeout_s} s: {what}")
        time.sleep(interval_s)


class Cluster:
    """Three members with their data in a directory of their own."""

    def __init__(self, antiphon, name):
        self.dir = tempfile.mkdtemp(prefix=f"antiphon-bench-{name}-")
        ports = [(free_port(), free_port()) for _ in range(3)]
        members = ",".join(f"m{i}=127.0.0.1:{peer}" for i, (_, peer) in enumerate(ports, 1))
        self.urls = [f"http://127.0.0.1:{client}" for client, _ in ports]
        self.processes = []
        for i, (client, peer) in enumerate(ports, 1):
            arguments = [antiphon, "serve", "--cluster", name, "--member", f"m{i}", "--port", str(client)]
            arguments += ["--peer-listen", f"127.0.0.1:{peer}", "--members", members]
            arguments += ["--data-dir", f"{self.dir}/m{i}"]
            environment = {**os.environ, "ANTIPHON_CLUSTER_SECRET": SECRET}
            log = open(f"{self.dir}/m{i}.log", "w")
            self.processes.append(subprocess.Popen(arguments, env=environment, stderr=log))
        for url in self.urls:
            until(f"{url} is ready", lambda url=url: self.is_ready(url))

    @staticmethod
    def is_ready(url):
        try:
            return call(f"{url}/v0/ready") is not None
        except OSError:
            return False

    def cpu_s(self):
        total = 0
        for process in self.processes:
            with open(f"/proc/{process.pid}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")

    def written_bytes(self):
        total = 0
        for process in self.processes:
            with open(f"/proc/{process.pid}/io") as io:
                total += next(int(line.split()[1]) for line in io if line.startswith("write_bytes"))
        return total

    def topic(self, name):
        return call(f"{self.urls[0]}/v0/topics/{name}?touch=false")

    def head(self, name):
        try:
            return self.topic(name)["head_seq"]
        except OSError:
            return 0

    def stop(self):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        shutil.rmtree(self.dir)


def append(antiphon, cluster, arguments):
    """Runs the project's own load; gives the name of its topic and its report."""
    command = [antiphon, "bench", "append", "--keep", "--json", "--topics", "1", *arguments]
    for url in cluster.urls:
        command += ["--url", url]
    before = {topic["topic"] for topic in call(f"{cluster.urls[0]}/v0/topics?page_size=1000")["topics"]}
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    after = {topic["topic"] for topic in call(f"{cluster.urls[0]}/v0/topics?page_size=1000")["topics"]}
    [topic] = after - before
    return topic, report


def mirror(dest, source, start="earliest"):
    body = {"source": "*", "dest": "*", "start": start, "remote": {"urls": source.urls}}
    call(f"{dest.urls[0]}/v0/routers/mirror", "PUT", body)


def catch_up(antiphon, records):
    east, west = Cluster(antiphon, "east"), Cluster(antiphon, "west")
    try:
        seconds = max(3, records // 300_000)
        load = ["--batch", "100", "--connections", "16", "--payload-bytes", "256"]
        topic, _ = append(antiphon, east, [*load, "--duration-s", str(seconds), "--warmup-s", "0"])
        head = east.head(topic)
        cpu = east.cpu_s() + west.cpu_s()
        begin = time.monotonic()
        mirror(west, east)
        until("the mirror has caught up", lambda: west.head(topic) >= head, interval_s=0.02)
        took = time.monotonic() - begin
        cpu = east.cpu_s() + west.cpu_s() - cpu
        rate = head / took
        print(f"| mirror, catch-up of {head} records (256 bytes) | {rate:,.0f} records/s; {1e6 * cpu / head:.1f} CPU s/M (both clusters) |")
    finally:
        east.stop()
        west.stop()


def lag(antiphon, rate):
    east, west = Cluster(antiphon, "east"), Cluster(antiphon, "west")
    try:
        mirror(west, east)
        time.sleep(1)
        load = ["--batch", "1", "--connections", "8", "--rate", str(rate), "--payload-bytes", "256"]
        topic, _ = append(antiphon, east, [*load, "--duration-s", "10", "--warmup-s", "2"])
        head = east.head(topic)
        until("the mirror is level", lambda: west.head(topic) >= head)
        lags_ms, cursor = [], 0
        while cursor < head:
            body = {"from_seq": cursor, "limit": 1000, "include_origin": True}
            page = call(f"{west.urls[0]}/v0/topics/{topic}/diff", "POST", body)
            lags_ms += [record["$ts"] - record["$origin"]["ts"] for record in page["records"]]
            cursor = page["next_from_seq"]
        lags_ms.sort()
        part = lambda share: lags_ms[min(len(lags_ms) - 1, int(share * len(lags_ms)))]
        print(f"| mirror, lag at {rate} records/s | p50 {part(0.5)} ms, p99 {part(0.99)} ms, most {lags_ms[-1]} ms of {len(lags_ms)} |")
    finally:
        east.stop()
        west.stop()


def fan_out(antiphon, destinations, batch, seconds):
    """CPU and bytes written per source record, without routers and with them."""
    figures = []
    for count in (0, destinations):
        cluster = Cluster(antiphon, "one")
        try:
            load = ["--batch", str(batch), "--connections", "64", "--payload-bytes", "256", "--warmup-s", "0"]
            topic, _ = append(antiphon, cluster, [*load, "--duration-s", "1"])
            for i in range(count):
                body = {"source": topic, "dest": f"copy-{i}"}
                call(f"{cluster.urls[0]}/v0/routers/copy-{i}", "PUT", body)
            begin, cpu, written = cluster.head(topic), cluster.cpu_s(), cluster.written_bytes()
            # The same topic again, so that the routers' source is what the load writes.
            records = write_to(cluster, topic, batch, seconds)
            level = lambda i: cluster.head(f"copy-{i}") >= records
            for i in range(count):
                until(f"copy-{i} is level", lambda i=i: level(i))
            cpu, written = cluster.cpu_s() - cpu, cluster.written_bytes() - written
            records = cluster.head(topic) - begin
            figures.append((1e6 * cpu / records, written / records))
        finally:
            cluster.stop()
    (cpu_0, bytes_0), (cpu_n, bytes_n) = figures
    print(
        f"| fan-out to {destinations}, batch {batch} | {cpu_n:.1f} against {cpu_0:.1f} CPU s/M source records: {cpu_n / cpu_0:.1f}x;"
        f" bytes written {bytes_n:.0f} against {bytes_0:.0f} per record |"
    )


def write_to(cluster, topic, batch, seconds):
    """Writes from threads of this process for so long; how many records that were."""
    import http.client
    import threading

    body = json.dumps({"records": [{"data": "x" * 254}] * batch}).encode()
    done, deadline = [0] * 16, time.monotonic() + seconds

    def write(i):
        host = cluster.urls[i % 3].removeprefix("http://")
        connection = http.client.HTTPConnection(host)
        while time.monotonic() < deadline:
            path = f"/v0/topics/{topic}?return_seqs=false"
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            done[i] += batch if answer.status == 200 else 0

    threads = [threading.Thread(target=write, args=(i,)) for i in range(len(done))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return sum(done)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--antiphon", default="target/release/antiphon")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--destinations", type=int, default=100)
    parser.add_argument("--only", choices=["catch-up", "lag", "fan-out"])
    options = parser.parse_args()
    wants = lambda name: options.only in (None, name)
    print("| what | measured |\n|---|---|")
    if wants("catch-up"):
        catch_up(options.antiphon, options.records)
    if wants("lag"):
        lag(options.antiphon, options.rate)
    if wants("fan-out"):
        fan_out(options.antiphon, options.destinations, 100, 5)
        fan_out(options.antiphon, options.destinations, 1, 5)


if __name__ == "__main__":
    main()
