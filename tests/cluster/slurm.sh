#!/usr/bin/env bash
# A real SLURM on this machine: a controller and two nodes, started in seconds, as root, without systemd or accounting.
#
#   tests/cluster/slurm.sh start | stop
#
# The configuration goes to /etc/slurm/slurm.conf, because Snakemake's plugin clears SLURM_CONF. One that is not ours is
# left alone, and this script refuses. Logs lie in /var/log/slurm.
set -euo pipefail

conf=/etc/slurm/slurm.conf
mark="# made by appssl's tests/cluster/slurm.sh"

refuse() {
    echo "$1" >&2
    exit 1
}

start() {
    [ "$(id -u)" -eq 0 ] || refuse "a SLURM of its own needs root."
    for command in munged slurmctld slurmd sbatch; do
        command -v "$command" >/dev/null || refuse "$command is missing: apt-get install slurm-wlm munge"
    done
    if [ -e "$conf" ] && ! grep -qF "$mark" "$conf"; then refuse "$conf is there and is not ours; this host has a SLURM."; fi
    stop
    local host memory
    host=$(hostname -s) memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
    mkdir -p /etc/slurm /var/log/slurm /var/spool/slurmctld /run/munge /var/log/munge /var/lib/munge
    rm -rf /var/spool/slurmctld/* /var/spool/slurmd-n*
    cat >"$conf" <<EOF
$mark
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd-%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd-%n.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
JobRequeue=1
KillWait=10
MinJobAge=600
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=2 RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
    chown -R munge: /run/munge /var/log/munge /var/lib/munge /etc/munge
    [ -s /etc/munge/munge.key ] || (dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 2>/dev/null &&
        chown munge: /etc/munge/munge.key && chmod 400 /etc/munge/munge.key)
    su -s /bin/sh munge -c munged
    slurmctld
    slurmd -N n1
    slurmd -N n2
    for _ in $(seq 60); do
        if [ "$(sinfo --noheader --states=idle --format=%D 2>/dev/null)" = 2 ]; then return; fi
        sleep 0.5
    done
    sinfo >&2 || true
    refuse "the nodes did not come up; see /var/log/slurm"
}

stop() {
    for signal in TERM KILL; do
        for _ in $(seq 40); do
            local left=""
            for name in slurmd slurmctld munged; do
                if pkill "-$signal" -x "$name"; then left=yes; fi
            done
            [ -n "$left" ] || return 0
            sleep 0.25
        done
    done
}

case ${1:-} in
start | stop) "$1" ;;
*) refuse "usage: $0 start | stop" ;;
esac
