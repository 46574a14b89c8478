#!/usr/bin/env bash
# A SLURM of one node for tests: munge, slurmctld and slurmd of Debian's packages, all their files in one folder.
#
#   apt-get install --no-install-recommends munge slurmctld slurmd slurm-client
#   tests/slurm/one_node.sh up DIR && export SLURM_CONF=DIR/slurm.conf
#   tests/slurm/one_node.sh down DIR
#
# As root. Nothing outside of DIR is written and no service of the system is used.
set -euo pipefail
command=$1 dir=$2

stop() {
    local file=$dir/$1.pid pid
    pid=$(cat "$file" 2> /dev/null) || return 0
    kill "$pid" 2> /dev/null || return 0
    for _ in $(seq 50); do [ -f "$file" ] || break; sleep 0.1; done  # which a daemon removes as it ends
}

up() {
    mkdir -p "$dir"/state "$dir"/spool
    chmod 755 "$dir"
    dir=$(cd "$dir" && pwd)
    local host cpus memory
    host=$(hostname -s)
    cpus=$(nproc)
    memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.8)}' /proc/meminfo)
    # A requeued job may start again once its credential has expired: 120 s unless told otherwise.
    cat > "$dir/slurm.conf" <<CONF
ClusterName=lab
SlurmctldHost=$host(localhost)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmctldPort=27817
SlurmdPort=27818
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
MpiDefault=none
KillWait=10
NodeName=$host NodeAddr=localhost CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=debug Nodes=$host Default=YES MaxTime=30 State=UP
CONF
    printf 'CgroupPlugin=disabled\nIgnoreSystemd=yes\n' > "$dir/cgroup.conf"
    head -c 128 /dev/urandom > "$dir/munge.key"
    chmod 600 "$dir/munge.key"
    # --force: the folder of a test may be one that others can write to.
    munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
        --log-file="$dir/munged.log" --seed-file="$dir/munged.seed" 2> /dev/null
    export SLURM_CONF=$dir/slurm.conf
    slurmctld
    slurmd
    for _ in $(seq 100); do
        if [ "$(sinfo -h -o %T 2> /dev/null)" = idle ]; then exit 0; fi
        sleep 0.2
    done
    echo "SLURM did not come up; see $dir/*.log" >&2
    exit 1
}

down() {
    export SLURM_CONF=$dir/slurm.conf
    scancel --user root 2> /dev/null || true
    for name in slurmd slurmctld munged; do stop $name; done
}

$command
