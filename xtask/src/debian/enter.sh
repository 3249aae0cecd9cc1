#!/bin/sh
# Runs a command in a Debian system that is thrown away. xtask/src/debian/mod.rs starts this as PID 1
# of new namespaces, so that the kernel ends everything in them when it ends.
#
#     enter.sh FOLDER PID_OF_RUNNER FOLDER_TO_SHOW:PLACE,... COMMAND...
#
# FOLDER has the root folder in root/, and what a run changes in run/.
set -eu

if [ "$1" != inside ]; then
    # Control groups of its own, as the root of a cgroup namespace. host.sh removes them.
    while IFS=: read -r _ controllers path; do
        case $controllers in
        '') hierarchy=/sys/fs/cgroup/unified path= ;;
        *) hierarchy=/sys/fs/cgroup/${controllers#name=} ;;
        esac
        [ -d "$hierarchy" ] || hierarchy=/sys/fs/cgroup
        group=$hierarchy$path/pause-debian-$2
        mkdir "$group"
        # A new group in this hierarchy of version 1 may use nothing yet.
        for file in cpuset.cpus cpuset.mems; do
            [ "$controllers" != cpuset ] || cat "$hierarchy$path/$file" > "$group/$file"
        done
        echo 0 > "$group/cgroup.procs"
    done < /proc/self/cgroup
    exec unshare --cgroup -- sh "$0" inside "$@"
fi
folder=$2 show=$4
shift 4

cd "$folder/run"
mkdir -p upper work merged
# Engines make overlays themselves, which an overlay does not allow.
cp -a "$folder/root/var/lib" lib
mount -t overlay -o "lowerdir=$folder/root,upperdir=upper,workdir=work" overlay merged
mount --bind lib merged/var/lib
cd merged

echo "$show" | tr , '\n' | while IFS=: read -r source place; do
    [ -n "$source" ] || continue
    mkdir -p ".$place"
    mount --bind "$source" ".$place"
    mount -o remount,bind,ro ".$place"
done

# Settings of the kernel belong to the host; those of its network only to this network namespace.
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,rw proc/sys/net
# A user namespace may only mount its own where one is visible that has nothing mounted over it.
mkdir -p mnt/proc
mount -t proc proc mnt/proc
mount -t tmpfs -o mode=755 tmpfs run
# What changes the system that it runs on looks for this first.
: > run/thrown-away
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/mqueue dev/net dev/pts dev/shm
mount -t devpts -o newinstance,gid=5,mode=620,ptmxmode=666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t mqueue mqueue dev/mqueue
while read -r name major minor; do
    mknod -m 666 "dev/$name" c "$major" "$minor"
done <<DEVICES
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
kmsg 1 11
tty 5 0
fuse 10 229
net/tun 10 200
DEVICES
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr

mount -t sysfs sysfs sys
if [ -e /sys/fs/cgroup/cgroup.procs ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    # Only groups without processes can have children with controllers.
    mkdir sys/fs/cgroup/init
    echo 0 > sys/fs/cgroup/init/cgroup.procs
    for controller in $(cat sys/fs/cgroup/cgroup.controllers); do
        echo "+$controller" > sys/fs/cgroup/cgroup.subtree_control
    done
else
    # Without the hierarchies that have no controller: crun and Podman expect systemd behind them.
    mount -t tmpfs tmpfs sys/fs/cgroup
    while IFS=: read -r _ controllers _; do
        case $controllers in '' | name=*) continue ;; esac
        mkdir "sys/fs/cgroup/$controllers"
        mount -t cgroup -o "$controllers" cgroup "sys/fs/cgroup/$controllers"
    done < /proc/self/cgroup
fi

mkdir .old
pivot_root . .old
cd /
umount -l /.old
rmdir /.old
ip link set lo up
echo 1 > /proc/sys/net/ipv4/ip_forward

# Not exec: the shell, as PID 1, reaps what engines leave to it.
status=0
"$@" || status=$?
exit "$status"
