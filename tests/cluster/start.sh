#!/usr/bin/env bash
# A real SLURM of one node on this machine, for tests: munge, slurmctld and slurmd.
#   tests/cluster/start.sh DIR         as root; then: export SLURM_CONF=DIR/slurm.conf
#   tests/cluster/start.sh DIR stop
# Debian's packages are installed where they are missing. All that SLURM writes lies in DIR.
set -euo pipefail

dir=${1:?name a folder for the state and logs of SLURM}
stop() {
  for daemon in slurmctld slurmd munged; do
    [ -f "$dir/$daemon.pid" ] && kill "$(cat "$dir/$daemon.pid")" 2>/dev/null || true
  done
}
if [ "${2:-}" = stop ]; then stop; exit 0; fi

[ "$(id -u)" = 0 ] || { echo "error: SLURM's daemons need root here"; exit 1; }
if ! command -v slurmctld >/dev/null || ! command -v slurmd >/dev/null || ! command -v munged >/dev/null; then
  command -v apt-get >/dev/null || { echo "error: no slurmd, and no apt-get to install it"; exit 1; }
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update && apt-get install -y --no-install-recommends slurm-wlm munge; } >/dev/null ||
    { echo "error: apt-get could not install slurm-wlm and munge"; exit 1; }
fi

mkdir -p "$dir/state" "$dir/spool" && chmod 755 "$dir"
dir=$(cd "$dir" && pwd)
head -c 1024 /dev/urandom >"$dir/munge.key" && chmod 400 "$dir/munge.key"
host=$(hostname -s)
cat >"$dir/slurm.conf" <<CONF
ClusterName=lab
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
KillWait=20
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(getconf _NPROCESSORS_ONLN) State=UNKNOWN
PartitionName=low Nodes=$host Default=YES State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=$host State=UP PriorityTier=9 PreemptMode=OFF
CONF

export SLURM_CONF=$dir/slurm.conf
munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
  --log-file="$dir/munged.log" --seed-file="$dir/munged.seed"
slurmctld
slurmd
for _ in $(seq 60); do
  if sinfo --noheader --format %T 2>/dev/null | grep -q idle; then
    sinfo
    exit 0
  fi
  sleep 0.5
done
echo "error: the node does not come up; the last lines of its log:"
tail -n 5 "$dir/slurmctld.log" "$dir/slurmd.log" || true
stop
exit 1
