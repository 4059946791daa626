"""Inputs and outputs in object storage, which nodes reach by themselves; and several rules as one job."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cloud.conftest import IMAGE
from tests.cloud.lab import SERVED_AT, Lab, Start, free_port, listens, wait_for

pytestmark = pytest.mark.pods

# S3's protocol; moto's packages are not to be had beside SkyPilot's.
PLUGIN, SERVER = "snakemake-storage-plugin-s3==0.3.6", ["moto[s3]==5.2.5", "flask>=3,<4", "flask-cors>=6,<7"]
KEYS = {"SNAKEMAKE_STORAGE_S3_ACCESS_KEY": "made-up-id", "SNAKEMAKE_STORAGE_S3_SECRET_KEY": "made-up-secret-of-a-test"}
BUCKET = "s3://made-up-bucket"


class ObjectStorage(NamedTuple):
    """A bucket on this machine."""

    url: str
    """Where it is served."""
    plugin: Path
    """The folder of Snakemake's storage plugin."""


@pytest.fixture
def storage(lab: Lab) -> Iterator[ObjectStorage]:
    """Object storage that all pods reach; its packages are installed once and kept."""
    plugin, server = IMAGE.parent / PLUGIN, IMAGE.parent / SERVER[0]
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if not plugin.exists():
        # What it stands on is there: SkyPilot wants it too.
        subprocess.run([sys.executable, *install, "--no-deps", "--target", plugin, PLUGIN], check=True)
    # Pods see no cache of this account, but this folder.
    extra = lab.folder / "extra/storage-plugin"
    shutil.copytree(plugin, extra)
    if not (server / "installed").exists():
        venv.create(server, with_pip=True, clear=True)
        subprocess.run([server / "bin/python", *install, *SERVER], check=True)
        (server / "installed").touch()
    subprocess.run(["ip", "addr", "add", f"{SERVED_AT}/32", "dev", "lo"], capture_output=True)
    port = free_port()
    with (lab.folder / "storage.log").open("w") as log:
        command = [server / "bin/python", "-m", "moto.server", "--host", SERVED_AT, "--port", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(lambda: listens(SERVED_AT, port), seconds=60)
        yield ObjectStorage(f"http://{SERVED_AT}:{port}", extra)
    finally:
        process.terminate()
        process.wait()


def test_object_storage(lab: Lab, folder: Path, start: Start, storage: ObjectStorage) -> None:
    """A job of several rules takes its input from the bucket and leaves its outputs there; its log comes back."""
    boto3 = pytest.importorskip("boto3", reason="comes with SkyPilot")
    names = dict(zip(("aws_access_key_id", "aws_secret_access_key"), KEYS.values(), strict=True))
    client = boto3.client("s3", endpoint_url=storage.url, region_name="us-east-1", **names)
    client.create_bucket(Bucket=BUCKET.removeprefix("s3://"))
    n_before = len(lab.events("created"))
    arguments = ["--default-storage-provider", "s3", "--default-storage-prefix", BUCKET]
    arguments += ["--storage-s3-endpoint-url", storage.url, "--groups", "work_shortly=one", "join_shorts=one"]
    prelude = f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH=/opt/extra/{storage.plugin.name}"
    arguments += ["--skypilot-prelude", prelude]
    driver = start("results/joined.txt", *arguments, PYTHONPATH=str(storage.plugin), **KEYS)
    assert driver.wait() == 0, driver.all_said

    def stored(name: str) -> bytes:
        return client.get_object(Bucket=BUCKET.removeprefix("s3://"), Key=f"results/{name}.txt")["Body"].read()

    assert stored("joined") == stored("short-1") + stored("short-2") and stored("short-1").startswith(b"pod")
    assert not (folder / "results").exists(), "nothing of it came by the executor"
    assert len(lab.events("created")) == n_before + 1, "one node for the group"
    assert lab.pods == []
    secret = KEYS["SNAKEMAKE_STORAGE_S3_SECRET_KEY"].encode()
    assert not [path for path in folder.rglob("*") if path.is_file() and secret in path.read_bytes()]
