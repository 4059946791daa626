"""A stand-in for RunPod's GraphQL API on loopback: its pods are namespaces of this machine (pod.sh).

It understands what SkyPilot and the runpod library send, and is steered by tests through plain HTTP:

    GET  /state                      pods and events
    POST /preempt?id=ID[&how=exited] take a pod away: gone from the list, or listed as EXITED as an interrupted one is
    POST /cut?id=ID&seconds=S        no network to a pod for some seconds
    POST /refuse?n=N                 no capacity for the next N requests for a pod
    POST /late?seconds=S             the next request for a pod is answered, and the pod listed, after S seconds
    POST /break?n=N&status=500       answer the next N queries with an error
    POST /break?n=N&seconds=S        answer the next N queries late
    POST /anew                       forget events, and what is still to happen

usage: runpod_api.py PORT KEY FOLDER
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

POD_SCRIPT = Path(__file__).parent / "pod.sh"
NO_CAPACITY = (
    "There are no longer any instances available with the requested specifications. Please refresh and try again."
)


class Account:
    """Pods of one account, and what was done to them."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port = port
        self.folder = folder
        self.public_key = ""
        self.pods: dict[str, dict[str, Any]] = {}
        self.start_anew()
        self._n_pods = 0
        self._boots: dict[str, threading.Thread] = {}
        self._servers: dict[str, ThreadingHTTPServer] = {}
        self._lock = threading.Lock()

    def start_anew(self) -> None:
        """Nothing has happened, and nothing is going to."""
        self.events: list[dict[str, Any]] = []
        self.refusals = self.breaks = 0
        self.late_s = self.break_seconds = 0.0
        self.break_status = 500

    def note(self, event: str, **facts: object) -> None:
        """Add an event, with its time."""
        self.events.append({"time": time.time(), "event": event, **facts})

    def create(self, query: str, *, spot: bool) -> dict[str, Any]:
        """Rent a pod; it boots in the background."""
        fields = _fields(query)
        late_s, self.late_s = self.late_s, 0.0
        if late_s:
            self.note("asked")
            time.sleep(late_s)
        with self._lock:
            if self.refusals > 0:
                self.refusals -= 1
                self.note("refused", name=fields.get("name"), gpu=fields.get("gpuTypeId"))
                return {"errors": [{"message": NO_CAPACITY}]}
            identity = uuid.uuid4().hex[:12]
            self._n_pods += 1
            self.pods[identity] = {
                "id": identity,
                # None a second time: a pod that is being taken away still has its addresses.
                "number": self._n_pods,
                "name": fields.get("name"),
                "gpu": fields.get("gpuTypeId"),
                "gpu_count": int(fields.get("gpuCount", 0)),
                "spot": spot,
                "disk_gb": int(fields.get("containerDiskInGb", 0)),
                "zone": fields.get("dataCenterId"),
                "image": fields.get("imageName"),
                "status": "CREATED",
            }
        self.note("created", **{key: value for key, value in self.pods[identity].items() if key != "status"})
        boot = threading.Thread(
            target=self._boot, args=(self.pods[identity], fields.get("dockerArgs", "")), daemon=True
        )
        self._boots[identity] = boot
        boot.start()
        answer = {
            "id": identity,
            "imageName": fields.get("imageName"),
            "env": [],
            "machineId": "machine",
            "machine": {"podHostId": "host"},
            "desiredStatus": "CREATED",
        }
        kind = "podRentInterruptable" if spot else "podFindAndDeployOnDemand"
        return {"data": {"deployCpuPod" if "deployCpuPod" in query else kind: answer}}

    def _boot(self, pod: dict[str, Any], command: str) -> None:
        identity = pod["id"]
        folder = self.folder / "pods" / identity
        folder.mkdir(parents=True)
        script = re.search(r"echo (\S+) \| base64", command)
        (folder / "init.sh").write_bytes(base64.b64decode(script.group(1)) if script else b"sleep infinity\n")
        started = subprocess.run(
            ["bash", POD_SCRIPT, "start", folder, str(pod["number"])], capture_output=True, text=True
        )
        if started.returncode:
            self.note("boot failed", id=identity, message=started.stderr[-500:])
            return
        # The API on the pod's side of its veth pair, through which a node ends itself.
        server = ThreadingHTTPServer((f"10.77.{pod['number']}.1", self.port), Handler)
        self._servers[identity] = server
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pod["status"] = "RUNNING"
        self.note("running", id=identity)

    def remove(self, identity: str, event: str, **facts: object) -> None:
        """End a pod."""
        pod = self.pods.pop(identity, None)
        if pod is None:
            return
        self.note(event, id=identity, name=pod["name"], **facts)
        self._halt(pod)
        if server := self._servers.pop(identity, None):
            # From another thread: the request that ended it may have come through this server.
            threading.Thread(target=lambda: (time.sleep(1), server.shutdown(), server.server_close())).start()

    def interrupt(self, identity: str) -> None:
        """Stop a pod and leave it in the list."""
        self.pods[identity]["status"] = "EXITED"
        self.note("exited", id=identity)
        self._halt(self.pods[identity])

    def _halt(self, pod: dict[str, Any]) -> None:
        self._boots[pod["id"]].join()
        folder = self.folder / "pods" / pod["id"]
        subprocess.run(["bash", POD_SCRIPT, "stop", folder, str(pod["number"])], capture_output=True)

    def cut(self, identity: str, seconds: str) -> None:
        """No network to a pod for some seconds."""
        self.note("cut", id=identity)
        subprocess.Popen(["bash", POD_SCRIPT, "cut", str(self.pods[identity]["number"]), seconds])

    def answer(self, query: str, caller: str) -> dict[str, Any]:
        """What RunPod answers to a query."""
        if "podRentInterruptable" in query:
            return self.create(query, spot=True)
        if "podFindAndDeployOnDemand" in query or "deployCpuPod" in query:
            return self.create(query, spot=False)
        if "podTerminate" in query:
            found = re.search(r'podId:\s*"([^"]+)"', query)
            self.remove(found.group(1) if found else "", "terminated", by=caller)
            return {"data": {"podTerminate": None}}
        if "updateUserSettings" in query:
            found = re.search(r'pubKey:\s*"([^"]*)"', query)
            self.public_key = found.group(1).replace("\\n", "\n") if found else ""
            return {"data": {"updateUserSettings": self._user()}}
        if "podTemplates" in query:
            return {"data": {"myself": {"podTemplates": []}}}
        if "gpuTypes" in query:
            found = re.search(r'id:\s*"([^"]+)"', query)
            return {"data": {"gpuTypes": [_gpu_type(found.group(1) if found else "GPU")]}}
        if "pods" in query:
            return {"data": {"myself": {"pods": [_listed(pod) for pod in list(self.pods.values())]}}}
        if "myself" in query:
            return {"data": {"myself": self._user()}}
        self.note("not understood", query=query[:300])
        return {"errors": [{"message": "The stand-in does not know this query."}]}

    def _user(self) -> dict[str, Any]:
        return {"id": "user", "pubKey": self.public_key, "networkVolumes": []}

    def state(self) -> dict[str, Any]:
        """Pods and events."""
        return {"pods": list(self.pods.values()), "events": self.events}


def _fields(query: str) -> dict[str, str]:
    """The fields of a mutation's input."""
    found = re.search(r"input:\s*{(.*)}\s*\)", query, re.DOTALL)
    text = found.group(1) if found else ""
    fields = dict(re.findall(r'(\w+):\s*"((?:[^"\\]|\\.)*)"', text))
    for key, value in re.findall(r"(\w+):\s*([\w.]+)", text):
        fields.setdefault(key, value)
    return fields


def _listed(pod: dict[str, Any]) -> dict[str, Any]:
    """A pod as RunPod lists it."""
    address = f"10.77.{pod['number']}.2"
    ports = [{"ip": address, "isIpPublic": True, "privatePort": 22, "publicPort": 22, "type": "tcp"}]
    ports.append({"ip": address, "isIpPublic": False, "privatePort": 8265, "publicPort": 8265, "type": "http"})
    return {
        "id": pod["id"],
        "name": pod["name"],
        "desiredStatus": pod["status"],
        "vcpuCount": 4,
        "memoryInGb": 117,
        "gpuCount": pod["gpu_count"],
        "imageName": pod["image"],
        "runtime": {"ports": ports} if pod["status"] == "RUNNING" else None,
        "machine": {"gpuDisplayName": pod["gpu"]},
    }


def _gpu_type(name: str) -> dict[str, Any]:
    """A kind of card as RunPod describes it; SkyPilot reads its memory."""
    prices = ("securePrice", "communityPrice", "communitySpotPrice", "secureSpotPrice")
    return {
        "id": name,
        "displayName": name,
        "manufacturer": "Nvidia",
        "maxGpuCount": 8,
        "memoryInGb": 80,
        "cudaCores": 0,
        "secureCloud": True,
        "communityCloud": True,
        "oneMonthPrice": None,
        "threeMonthPrice": None,
        "oneWeekPrice": None,
        "lowestPrice": {"minimumBidPrice": 1.0, "uninterruptablePrice": 1.0},
    } | dict.fromkeys(prices, 1.0)


class Handler(BaseHTTPRequestHandler):
    """RunPod's address and the tests'."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: events are what is looked at."""

    def do_GET(self) -> None:
        """The state."""
        self._send(ACCOUNT.state())

    def do_POST(self) -> None:
        """A query, or what a test wants to happen."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urlparse(self.path)
        wanted = {key: values[0] for key, values in parse_qs(address.query).items()}
        match address.path:
            case "/graphql":
                return self._answer(json.loads(body)["query"])
            case "/preempt" if wanted.get("how") == "exited":
                ACCOUNT.interrupt(wanted["id"])
            case "/preempt":
                ACCOUNT.remove(wanted["id"], "preempted")
            case "/cut":
                ACCOUNT.cut(wanted["id"], wanted["seconds"])
            case "/refuse":
                ACCOUNT.refusals = int(wanted["n"])
            case "/anew":
                ACCOUNT.start_anew()
            case "/late":
                ACCOUNT.late_s = float(wanted["seconds"])
            case "/break":
                ACCOUNT.breaks = int(wanted["n"])
                ACCOUNT.break_status = int(wanted.get("status", 500))
                ACCOUNT.break_seconds = float(wanted.get("seconds", 0))
        return self._send({})

    def _answer(self, query: str) -> None:
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            ACCOUNT.note("unauthorized")
            return self._send({"errors": [{"message": "Unauthorized"}]}, status=401)
        if ACCOUNT.breaks > 0:
            ACCOUNT.breaks -= 1
            ACCOUNT.note("broke")
            if not ACCOUNT.break_seconds:
                message = {"errors": [{"message": "Something went wrong. Please try again later."}]}
                return self._send(message, status=ACCOUNT.break_status)
            time.sleep(ACCOUNT.break_seconds)
        return self._send(ACCOUNT.answer(query, self.client_address[0]))

    def _send(self, answer: object, status: int = 200) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except BrokenPipeError:
            return


if __name__ == "__main__":
    PORT, KEY, FOLDER = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    ACCOUNT = Account(PORT, FOLDER)
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
