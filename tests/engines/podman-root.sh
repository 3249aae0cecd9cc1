#!/bin/sh
# Prepares the system for root's Podman. $1 is how it is called.
set -eu
# What Podman and CNI leave when the last pod goes has to be there before the first.
mkdir -p /run/netns
mountpoint -q /run/netns || mount --bind /run/netns /run/netns
if [ "$($1 info --format '{{.Host.NetworkBackend}}')" = cni ]; then
    ip link add cni-podman0 type bridge
fi
