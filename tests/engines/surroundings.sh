#!/bin/sh
# Prints, a line each, what comes and goes with a pod: processes, mounts, network interfaces, control groups.
for process in /proc/[0-9]*; do
    # A thread of the kernel has no command line.
    words=$(tr '\0' ' ' 2>/dev/null <"$process/cmdline") || continue
    [ -z "$words" ] || [ "$process" = "/proc/$$" ] || echo "process ${process#/proc/} $words"
done 2>/dev/null
awk '{ print "mount " $5 }' /proc/self/mountinfo
for link in /sys/class/net/*; do echo "network interface ${link##*/}"; done
# In each hierarchy, engines keep a group at the top; Podman and Docker keep two below it. Slices and scopes
# are systemd's.
if [ -e /sys/fs/cgroup/cgroup.procs ]; then set -- /sys/fs/cgroup/*/; else set -- /sys/fs/cgroup/*/*/; fi
for top in "$@"; do
    case $top in *.slice/ | *.scope/ | *'*'*) continue ;; esac
    find "$top" -mindepth 1 -type d ! -name conmon ! -name buildkit -printf 'control group %f\n' 2>/dev/null || :
done
