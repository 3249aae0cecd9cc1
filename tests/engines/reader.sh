#!/usr/bin/env bash
# What the commands of a document find: the programs, an administrator's rights, and the archive $1 where
# `cargo xtask image` leaves it. (`cargo xtask engines` has made it by the same command.)
set -euo pipefail
exec 2>&1
cd "$PAUSE_PROJECT"
PATH=/opt/kubernetes:$PATH
archive=$1
cargo() { install -D "$archive" target/image/pause.tar; }
sudo() { "$@"; }
systemctl() { test "$*" = "restart containerd" && bash tests/engines/kubernetes/node.sh containerd; }
