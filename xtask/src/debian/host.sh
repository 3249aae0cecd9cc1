#!/bin/bash
# Prints what a run could change on this host, in a line for each thing. First removes the control groups
# of this run and of those whose runners have ended, and fails while a process is in one.
#
#     host.sh PID_OF_RUNNER
set -euo pipefail

find /sys/fs/cgroup -ignore_readdir_race -depth -type d | while read -r group; do
    case $group in
    */pause-debian-*)
        runner=${group#*/pause-debian-}
        runner=${runner%%/*}
        # What another run has is not the business of this one.
        if [ "$runner" = "$1" ] || [ ! -e "/proc/$runner" ]; then
            rmdir "$group" || [ ! -e "$group" ]
        fi
        ;;
    *) echo "control group $group" ;;
    esac
done
dpkg --get-selections | sed 's/^/package /'
sed 's/^/mount /' /proc/self/mounts
for interface in /sys/class/net/*; do
    echo "network interface $interface"
done
# What cannot be written are counters, and ns_last_pid counts as well.
find /proc/sys -ignore_readdir_race -type f -perm -200 ! -name ns_last_pid | while read -r setting; do
    value=()
    # Some can only be written.
    mapfile -t value 2>/dev/null <"$setting" || true
    echo "setting $setting: ${value[*]}"
done
