#!/bin/bash
# What a pod has beside this machine's own root, built once from PyPI: uv, and the Python environment in which SkyPilot's
# runtime lives (ray, skylet), so that a pod without a network has all that SkyPilot would download into it.
# usage: image.sh FOLDER PYTHON SKYPILOT_VERSION RAY_VERSION
set -euo pipefail
folder=$1 python=$2 skypilot=$3 ray=$4
done="$folder/made-of-$skypilot-$ray-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
[ -e "$done" ] && exit 0

making="$folder.making"
rm -rf "$making" "$folder"
mkdir -p "$making/root/.local/bin"
runtime="$making/root/skypilot-runtime"
"$python" -m venv --copies "$runtime"
pip=("$runtime/bin/python" -m pip install --quiet --disable-pip-version-check)
# The versions that SkyPilot's own set-up of a node asks for (sky/skylet/constants.py).
"${pip[@]}" "ray[default]==$ray" "pydantic-core==2.41.1" "click<8.3.0" "setuptools<70" "skypilot[runpod,remote]==$skypilot" uv
mv "$runtime/bin/uv" "$making/root/.local/bin/uv"
# SkyPilot brings its own wheel.
"$runtime/bin/python" -m pip uninstall --quiet --yes skypilot uv
# The folder's name is in its scripts; in a pod it is /root.
grep -rlIZ "^#!$making" "$runtime/bin" | xargs -0 sed -i "1s|^#!$making|#!|"
sed -i "s|$making/root|/root|g" "$runtime"/bin/activate* "$runtime/pyvenv.cfg"
mv "$making" "$folder"
touch "$done"
