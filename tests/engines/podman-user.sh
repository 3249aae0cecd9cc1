#!/bin/sh
# Prepares the system for an ordinary user's Podman. $1 is how it is called.
set -eu
useradd --uid 1000 --create-home --home-dir /var/lib/user user
for file in /etc/subuid /etc/subgid; do echo user:1000000:65536 > $file; done
install -d -o user -g user /run/user/1000
# pasta wants an interface that leads somewhere.
ip link add outside type veth peer name outside-peer
ip link set outside-peer up
ip address add 192.0.2.1/24 dev outside
ip link set outside up
ip route add default via 192.0.2.254
cd /var/lib/user
$1 info > /dev/null
