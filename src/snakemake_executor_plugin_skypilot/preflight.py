"""What is checked before anything is rented: keys, tools, SkyPilot's own check, prices, nodes that were left."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dotenv import load_dotenv

from snakemake_executor_plugin_skypilot.errors import RentalError, rental_error
from snakemake_executor_plugin_skypilot.nodes_wanted import WantedNode
from snakemake_executor_plugin_skypilot.prices import Prices, cheapest, known_cloud, place_of

RUNPOD_KEY = "RUNPOD_API_KEY"
# A private key to use in place of the one that SkyPilot makes.
SSH_KEY = "SKYPILOT_SSH_KEY"
WHERE = "Set it in the environment or in .env"
# SkyPilot tells in words alone why a cloud cannot be used: these are of the way there, and of a server out of order.
NO_ANSWER = re.compile(
    "ConnectionError|Timeout|timed out|Max retries exceeded|Failed to resolve|Connection (refused|reset|aborted)"
    "|JSONDecodeError|Bad Gateway|Service Unavailable"
)


class Planned(NamedTuple):
    """A job of the run."""

    job: str
    """Rule and wildcards."""
    wanted: WantedNode
    """Its node."""
    minutes: float
    """Its resource `runtime`; 0 if it has none."""


def load_environment(file: Path) -> None:
    """Add the variables of a file to this process's environment; those that are set stay as they are.

    Raises:
        RentalError: If there is one that cannot be read.
    """
    remedy = "Make it a text file in UTF-8 that you may read, with lines NAME=VALUE, remove it, or name another."
    # An empty setting `env-file` leaves the working folder itself: there is to be none.
    if file.is_dir() and not file.samefile(Path.cwd()):
        raise rental_error("The file of environment variables is a folder.", key="env-file", got=file, remedy=remedy)
    try:
        load_dotenv(file, override=False)
    except ValueError as error:
        # Also zeros, of UTF-16, which no variable may have. The error's own text has the file's, keys among it.
        got = f"{file} ({type(error).__name__})"
        problem = "The file of environment variables is not in UTF-8."
        raise rental_error(problem, key="env-file", got=got, remedy=remedy) from None
    except OSError as error:
        got = f"{file} ({error.strerror})"
        problem = "The file of environment variables cannot be read."
        raise rental_error(problem, key="env-file", got=got, remedy=remedy) from None


def secret_values(names: str | None) -> dict[str, str]:
    """The variables of a list by comma that are set."""
    wanted = [name.strip() for name in (names or "").split(",") if name.strip()]
    return {name: os.environ[name] for name in wanted if os.environ.get(name)}


def check_access(sky: Any, infra: str) -> None:
    """Refuse a cloud that cannot be used.

    Raises:
        RentalError: If a tool, a key or SkyPilot's leave is missing, or the key is refused.
    """
    for tool in ("ssh", "rsync"):
        if shutil.which(tool) is None:
            raise rental_error(
                f"SkyPilot wants {tool}.", got="it is not installed", remedy="apt-get install openssh-client rsync"
            )
    _refuse_old_rsync()
    cloud = place_of(infra).cloud
    if cloud == "runpod":
        ensure_runpod_config(Path.home() / ".runpod/config.toml", os.environ)
    ensure_ssh_key(sky, os.environ.get(SSH_KEY))
    _refuse_bad_credentials(sky, cloud)
    if cloud not in _enabled(sky):
        # Its verdict is kept by SkyPilot until it is asked again.
        sky.get(sky.client.sdk.check((cloud,), verbose=False))
        if cloud not in _enabled(sky):
            raise rental_error(
                "SkyPilot may not use this cloud.", key="infra", got=infra, remedy=f"Run: sky check {cloud}"
            )


def _refuse_old_rsync() -> None:
    """Files of a job are copied back with options that are as old as rsync 3.1; macOS brings an older one."""
    said = subprocess.run(["rsync", "--version"], capture_output=True, text=True).stdout
    found = re.search(r"protocol version (\d+)", said)
    if found is None or int(found.group(1)) < 31:
        version = said.splitlines()[0] if said else "nothing"
        raise rental_error(
            "rsync is too old.", got=version, remedy="Install rsync 3.1 or newer (macOS: brew install rsync)."
        )


def ensure_runpod_config(path: Path, environment: Mapping[str, str]) -> None:
    """Write the file that SkyPilot insists on from the key, or compare the two.

    A node ends itself with the key of the file: one that is not the key it was rented with would leave it running.

    Raises:
        RentalError: If there is no key, or the two differ.
    """
    key = environment.get(RUNPOD_KEY)
    if not path.exists():
        if not key:
            remedy = f"{WHERE}; RunPod makes one at console.runpod.io/user/settings."
            raise rental_error("There is no key for RunPod.", key=RUNPOD_KEY, remedy=remedy)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A string of JSON is one of TOML, where it is left in UTF-8.
        text = f"[default]\napi_key = {json.dumps(key, ensure_ascii=False)}\n"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text.encode())
        return
    try:
        kept = tomllib.loads(path.read_text(encoding="utf-8"))["default"]["api_key"]
    except (OSError, ValueError, KeyError, TypeError):
        raise rental_error(
            "The file with RunPod's key cannot be read.", got=path, remedy="Remove it: it is written anew."
        ) from None
    if key and key != kept:
        remedy = f"Remove {path}, which is then written from {RUNPOD_KEY}, or unset {RUNPOD_KEY}."
        raise rental_error(
            "There are two keys for RunPod, and they differ.", got=f"{RUNPOD_KEY} and {path}", remedy=remedy
        )


def ensure_ssh_key(sky: Any, chosen: str | None) -> None:
    """Have SkyPilot use a chosen private key; without one it makes a pair of its own.

    Raises:
        RentalError: If the key is missing, or SkyPilot has another one already.
    """
    if not chosen:
        return
    private = Path(chosen).expanduser()
    public = private.with_name(private.name + ".pub")
    for path in (private, public):
        if not path.is_file():
            raise rental_error(
                "An ssh key is missing.", key=SSH_KEY, got=path, remedy="Make one with ssh-keygen, or unset it."
            )
    auth = sky.utils.auth_utils
    kept_private, kept_public, _ = auth.get_ssh_key_and_lock_path(sky.utils.common_utils.get_user_hash())
    target = Path(kept_private).expanduser()
    if target.exists() and target.read_bytes() != private.read_bytes():
        raise rental_error("SkyPilot has another ssh key already.", key=SSH_KEY, got=target, remedy=f"Unset {SSH_KEY}.")
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(public, Path(kept_public).expanduser())
        with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(private.read_bytes())


def _refuse_bad_credentials(sky: Any, cloud: str) -> None:
    """Ask the cloud itself: what SkyPilot found out some day may hold no more."""
    from sky.clouds.cloud import CloudCapability  # pyright: ignore[reportMissingImports]
    from sky.server.common import is_api_server_local  # pyright: ignore[reportMissingImports]

    if not is_api_server_local():
        return
    known = known_cloud(cloud)
    try:
        may, reason = known.check_credentials(CloudCapability.COMPUTE)
    except OSError as error:
        may, reason = False, f"{type(error).__name__}: {error}"
    if may:
        return
    # Of some clouds it is a reason for each account. What follows the first line is how to set up a key.
    reasons = list(reason.values()) if isinstance(reason, Mapping) else [str(reason)]
    got = "; ".join(line.splitlines()[0].strip() for line in reasons if line.strip())
    if NO_ANSWER.search(got):
        remedy = "Try again when it can be reached: this asks for a network."
        raise rental_error(f"{known} does not answer.", key="infra", got=got, remedy=remedy)
    raise rental_error(
        "The cloud refuses the key, or there is none.", key="infra", got=got, remedy=f"Run: sky check {cloud}"
    )


def _enabled(sky: Any) -> set[str]:
    return {name.lower() for name in sky.get(sky.client.sdk.enabled_clouds())}


def expected_cost(jobs: Iterable[Planned], prices: Prices, *, max_price_total: float | None) -> list[str]:
    """Lines that say what a run is going to rent and cost, and what it would on demand and on spot nodes alone.

    Raises:
        RentalError: If a job wants what is not sold or costs too much, or all together cost too much.
    """
    lines, total, all_alike = [], 0.0, {False: 0.0, True: 0.0}
    for job, wanted, minutes in jobs:
        price = price_per_hour(job, wanted, prices)
        dollars = minutes / 60 * price
        total += dollars
        for spot in all_alike:
            all_alike[spot] += minutes / 60 * (prices.lowest(wanted._replace(spot=spot)) or price)
        takes = f", {minutes:.0f} min: ${dollars:.2f}" if minutes else ""
        lines.append(f"  {job}: {wanted}, from ${price:.2f} an hour{takes}")
    if max_price_total is not None and total > max_price_total:
        remedy = f"Raise it to at least {total:.2f}, or run a part of it."
        raise rental_error(
            f"The run may not cost more than ${max_price_total:g}.",
            key="max-price-total",
            got=f"${total:.2f}",
            remedy=remedy,
        )
    cap = f" of at most ${max_price_total:g}" if max_price_total is not None else ""
    kinds = f"all on demand ${all_alike[False]:.2f}, all spot ${all_alike[True]:.2f}"
    return [f"To be rented, if all goes as expected, for ${total:.2f}{cap} ({kinds}):", *lines]


def prices_per_hour(job: str, wanted: WantedNode, prices: Prices) -> dict[bool, float]:
    """Dollars of the cheapest node for a job, by whether it may be taken away; raises as `price_per_hour`."""
    price = price_per_hour(job, wanted, prices)
    other = prices.lowest(wanted._replace(spot=not wanted.spot))
    return {wanted.spot: price, not wanted.spot: price if other is None else other}


def price_per_hour(job: str, wanted: WantedNode, prices: Prices) -> float:
    """Dollars of the cheapest node for a job.

    Raises:
        RentalError: If it wants what is not sold or costs too much.
    """
    try:
        if not wanted.accelerators:
            return prices.of_cpus(wanted)
        return cheapest(prices.offers(wanted.accelerators), wanted)
    except RentalError as error:
        raise RentalError(f"{job}: {error}") from None
