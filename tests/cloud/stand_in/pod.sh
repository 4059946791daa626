#!/bin/bash
# A pod of the stand-in: this machine's root under an overlay, in mount, process, host name, IPC and network namespaces of
# its own, running the script that SkyPilot hands to RunPod as the pod's command, sshd included. Its only network is a veth
# pair to this machine. Needs root, overlayfs, iproute2 and openssh-server.
# usage: pod.sh start FOLDER NUMBER | stop FOLDER NUMBER | cut NUMBER SECONDS
# Environment: POD_IMAGE (what image.sh made), POD_HIDES (folders of this machine that a pod must not see),
# POD_API_PORT (where the stand-in listens)
set -euo pipefail

start() {
    local folder=$1 number=$2 namespace=cloudpod$2
    mkdir -p "$folder"/{upper/root,work,merged,runtime-upper,runtime-work}
    # What a fresh pod does not have of this machine's home: in an overlay's upper layer a device 0,0 hides a name.
    for name in .ssh .sky .runpod .cache .netrc .aws; do mknod "$folder/upper/root/$name" c 0 0; done
    # uv asks the index even for what is installed, unless it knows that there is no network.
    mkdir -p "$folder/upper/root/skypilot-runtime" "$folder/upper/root/.config/uv"
    printf 'offline = true\nno-index = true\nfind-links = ["/opt/extra/wheelhouse"]\n' >"$folder/upper/root/.config/uv/uv.toml"
    cp -a "$POD_IMAGE/root/.local" "$folder/upper/root/.local"
    ip netns add "$namespace"
    ip link add "cloudpod$number" type veth peer name eth0 netns "$namespace"
    ip addr add "10.77.$number.1/30" dev "cloudpod$number"
    ip link set "cloudpod$number" up
    ip -n "$namespace" addr add "10.77.$number.2/30" dev eth0
    ip -n "$namespace" link set eth0 up
    ip -n "$namespace" link set lo up
    # One address of this machine that is the same for all pods: that of what tests serve to them (object storage).
    ip addr add 10.77.0.1/32 dev lo 2>/dev/null || true
    ip -n "$namespace" route add 10.77.0.1 via "10.77.$number.1"
    setsid ip netns exec "$namespace" unshare -m -p -u -i --fork --kill-child bash "$0" inside "$folder" "$number" \
        </dev/null >"$folder/console.log" 2>&1 &
    echo $! >"$folder/pid"
    for _ in $(seq 300); do
        (exec 3<>"/dev/tcp/10.77.$number.2/22") 2>/dev/null && exit 0
        sleep 0.2
    done
    echo "sshd did not come up" >&2
    exit 1
}

inside() {
    local folder=$1 number=$2 root=$1/merged
    hostname "pod$number"
    mount --make-rprivate /
    mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$root"
    mount -t overlay overlay -o \
        "lowerdir=$POD_IMAGE/root/skypilot-runtime,upperdir=$folder/runtime-upper,workdir=$folder/runtime-work" \
        "$root/root/skypilot-runtime"
    mount -t proc proc "$root/proc"
    mount -t sysfs sysfs "$root/sys"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs tmpfs "$root/dev/shm"
    mount -t tmpfs tmpfs "$root/run"
    cp "$folder/init.sh" "$root/init.sh"
    echo "127.0.0.1 localhost pod$number" >"$root/etc/hosts"
    mkdir -p "$root/opt/extra"
    mount --bind "$folder/../../extra" "$root/opt/extra"
    for hidden in $POD_HIDES; do mount -t tmpfs tmpfs "$root$hidden"; done
    exec chroot "$root" /usr/bin/env -i HOME=/root USER=root TERM=xterm LANG=C.UTF-8 \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        RUNPOD_POD_ID="$(basename "$folder")" RUNPOD_API_BASE_URL="http://10.77.$number.1:$POD_API_PORT" bash /init.sh
}

stop() {
    local folder=$1 number=$2 namespace=cloudpod$2 unshare
    # With --kill-child the end of unshare ends the process namespace and all in it.
    unshare=$(cat "$folder/pid" 2>/dev/null || true)
    if [ -n "$unshare" ]; then
        pkill -KILL -P "$unshare" || true
        kill -KILL "$unshare" 2>/dev/null || true
    fi
    sleep 0.3
    ip link del "cloudpod$number" 2>/dev/null || true
    ip netns del "$namespace" 2>/dev/null || true
    mv "$folder" "$folder.gone" 2>/dev/null && rm -rf "$folder.gone"/{upper,work,merged,runtime-upper,runtime-work} || true
}

cut() {
    local number=$1 seconds=$2
    ip link set "cloudpod$number" down
    sleep "$seconds"
    ip link set "cloudpod$number" up
    ip addr add "10.77.$number.1/30" dev "cloudpod$number" 2>/dev/null || true
}

"$@"
