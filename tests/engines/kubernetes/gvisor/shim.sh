#!/bin/sh
# Starts gVisor's shim, also where root lacks CAP_SYS_RESOURCE. The shim lowers its OOM score, and goes on
# after a refusal only in a user namespace, which it recognizes by the file that is covered here. The
# mount goes with this process.
set -eu
echo 0 0 1 > /run/kubernetes/uid_map
mount --bind /run/kubernetes/uid_map /proc/$$/uid_map
exec /opt/kubernetes/containerd-shim-runsc-v1 "$@"
