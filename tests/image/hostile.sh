#!/bin/sh
# Runs the command $@ in the copy of the sources $0, in an environment where everything is different that
# should not matter. What is needed has been fetched already.
set -e
cd "$0/src"
umask 077
unset PAUSE_PROJECT CARGO_TARGET_DIR
export CARGO_NET_OFFLINE=true LC_ALL=tr_TR.UTF-8 TZ=Asia/Kathmandu
export RUSTC_WRAPPER=false RUSTC_WORKSPACE_WRAPPER=false CARGO_BUILD_TARGET=none
export RUSTFLAGS=-Copt-level=3 CARGO_BUILD_RUSTFLAGS=-Copt-level=3
export CARGO_INCREMENTAL=1 CARGO_PROFILE_RELEASE_OPT_LEVEL=3
exec "$@"
