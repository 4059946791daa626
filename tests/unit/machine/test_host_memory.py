"""What a control group leaves of the machine's memory, in both versions of Linux's files."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from outlier_moe.machine.host_memory import available_bytes

MIB = 2**20


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content + "\n")


@pytest.fixture
def membership(tmp_path: Path) -> Path:
    path = tmp_path / "cgroup"
    path.write_text("4:memory,hugetlb:/jobs/seven\n1:cpu:/\n0::/user.slice/job seven\n")
    return path


def free(membership: Path, tmp_path: Path) -> int:
    return available_bytes(membership=membership, groups=tmp_path / "groups")


def test_without_groups_it_is_the_machines(tmp_path: Path, membership: Path) -> None:
    for there in (membership, tmp_path / "nowhere"):
        assert free(there, tmp_path) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_the_narrowest_group_of_version_2_counts(tmp_path: Path, membership: Path) -> None:
    of_job = tmp_path / "groups/user.slice/job seven"
    cached = f"anon {5 * MIB}\ninactive_file {2 * MIB}\nactive_file 9"
    group(of_job, memory__max="max", memory__current=str(8 * MIB), memory__stat=cached)
    assert free(membership, tmp_path) > 100 * MIB
    group(of_job, memory__max=str(20 * MIB))
    assert free(membership, tmp_path) == 14 * MIB, "20 less the 6 that are no cached file"
    group(of_job.parent, memory__max=str(11 * MIB), memory__current=str(9 * MIB), memory__stat="inactive_file 0")
    assert free(membership, tmp_path) == 2 * MIB


def test_version_1_has_other_names(tmp_path: Path, membership: Path) -> None:
    files = {"memory__limit_in_bytes": str(4 * MIB), "memory__usage_in_bytes": str(5 * MIB)}
    group(tmp_path / "groups/memory/jobs/seven", **files, memory__stat=f"cache 1\ntotal_inactive_file {3 * MIB}")
    assert free(membership, tmp_path) == 2 * MIB


def test_a_container_sees_its_group_where_the_hosts_would_be(tmp_path: Path, membership: Path) -> None:
    group(tmp_path / "groups", memory__max=str(3 * MIB), memory__current=str(7 * MIB), memory__stat="inactive_file 0")
    assert free(membership, tmp_path) == 0, "more than it may have, as after its limit was lowered"
