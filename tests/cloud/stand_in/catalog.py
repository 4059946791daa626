"""A small price list in the form of SkyPilot's own catalogue (v8), for the stand-in.

usage: catalog.py HOME
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

COLUMNS = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Region,SpotPrice,Price,AvailabilityZone,GpuInfo"
).split(",")
# On demand and spot, dollars an hour; memory of the card and beside it, GiB; virtual CPUs. Made up.
CARDS = {
    "RTX4090": (0.69, 0.55, 24, 41, 6),
    "A100-80GB": (1.39, 1.19, 80, 117, 8),
    "A100-80GB-SXM": (1.49, 1.22, 80, 117, 8),
    "H100": (2.39, 2.03, 80, 176, 16),
    "H100-SXM": (3.29, 2.80, 80, 125, 20),
    "H200-SXM": (3.99, 3.10, 141, 188, 12),
}
PLACES = (("US", "US-KS-2"), ("RO", "EU-RO-1"))


def write_catalog(home: Path) -> None:
    """Write the price list where SkyPilot keeps its own."""
    folder = home / ".sky/catalogs/v8"
    rows = []
    for name, (price, spot_price, memory, host_memory, n_cpus) in CARDS.items():
        for count in (1, 2, 4, 8):
            cards = [
                {"Name": name, "Manufacturer": "Nvidia", "Count": count, "MemoryInfo": {"SizeInMiB": 1024 * memory}}
            ]
            info = str({"Gpus": cards, "TotalGpuMemoryInMiB": 1024 * memory * count})
            size = (float(count), float(n_cpus * count), float(host_memory * count))
            prices = (round(spot_price * count, 4), round(price * count, 4))
            for region, zone in PLACES:
                rows.append([f"{count}x_{name}_SECURE", name, *size, region, *prices, zone, info])
    _write(folder / "runpod/vms.csv", COLUMNS, rows)
    _write(folder / "common/accelerators.csv", ["AcceleratorName", "Clouds"], [[name, "['RunPod']"] for name in CARDS])
    metadata = [[name, figures[2], "NVIDIA"] for name, figures in CARDS.items()]
    _write(folder / "common/metadata.csv", ["GPU", "MemoryGB", "Manufacturer"], metadata)


def _write(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


if __name__ == "__main__":
    write_catalog(Path(sys.argv[1]))
