#!/bin/bash
# A cluster of one machine under Debian's Slurm, on loopback, with all its files in a folder; two cards that are none.
# Needs root, slurm-wlm and munge.
# usage: slurm.sh start FOLDER | stop FOLDER
set -euo pipefail
folder=$2 host=$(hostname -s)

start() {
    local memory
    memory=$(awk '/MemTotal/ { print int($2 / 1024 * 0.9) }' /proc/meminfo)
    mkdir -p "$folder"/{state,spool,log} /run/munge
    if [ ! -f /etc/munge/munge.key ]; then
        dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 2>/dev/null
        chown munge: /etc/munge/munge.key
        chmod 400 /etc/munge/munge.key
    fi
    chown munge: /run/munge
    chmod 755 /run/munge
    [ -S /run/munge/munge.socket.2 ] && pgrep -x munged >/dev/null || runuser -u munge -- /usr/sbin/munged --force
    # A card's file has to be a device node.
    for card in 0 1; do [ -e "$folder/card$card" ] || mknod "$folder/card$card" c 1 3; done
    printf 'Name=gpu Type=made-up File=%s/card[0-1]\n' "$folder" >"$folder/gres.conf"
    cat >"$folder/slurm.conf" <<CONF
ClusterName=lab
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc --all) RealMemory=$memory Gres=gpu:made-up:2 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
    # The plugin's inner process forgets SLURM_CONF, so the configuration lies where Slurm looks by itself.
    mkdir -p /etc/slurm
    ln -sf "$folder/slurm.conf" "$folder/gres.conf" /etc/slurm/
    slurmctld -f "$folder/slurm.conf"
    slurmd -f "$folder/slurm.conf"
    for _ in $(seq 100); do
        sinfo -h -o %t 2>/dev/null | grep -q idle && exit 0
        sleep 0.2
    done
    cat "$folder"/log/*.log >&2
    exit 1
}

stop() {
    for daemon in slurmd slurmctld; do kill "$(cat "$folder/$daemon.pid")" 2>/dev/null || true; done
    rm -f /etc/slurm/slurm.conf /etc/slurm/gres.conf
}

"$1"
