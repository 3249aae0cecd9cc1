#!/usr/bin/env bash
# Builds Kubernetes from Debian 12's source package, in a Debian system that is thrown away, and puts
# its programs into FOLDER, which it makes. Takes 10 minutes of CPU time; installs nothing on the host.
#
#     tests/engines/kubernetes/build.sh FOLDER MIRROR      (of Debian: http://.../debian)
set -euo pipefail
programs=(kube-apiserver kube-controller-manager kube-scheduler kubectl kubelet)

if test "${1-}" = --inside; then
  apt-get update --quiet
  mkdir --parents /go/src/k8s.io /out
  cd /go/src/k8s.io
  apt-get source --quiet kubernetes
  mv kubernetes-*/ kubernetes
  cd kubernetes
  version=$(dpkg-parsechangelog --show-field Version)
  export GOPATH=/go GO111MODULE=off CGO_ENABLED=0
  export KUBE_GIT_VERSION="v${version%%[+-]*}" KUBE_GIT_TREE_STATE=archive
  make WHAT="${programs[*]/#/cmd/}"
  cp "${programs[@]/#/_output/bin/}" /out
  exit
fi

# What an earlier build may have left, and mmdebstrap's system while it is there.
rm --recursive --force "$1".*
mkdir --parents "$(dirname "$1")"
TMPDIR=$(mktemp --directory "$1.XXXXXX")
export TMPDIR
trap 'rm --recursive --force "$TMPDIR"' EXIT
mmdebstrap --variant=minbase --mode=root --format=null --aptopt='Acquire::Check-Valid-Until "false"' \
  --include=ca-certificates,dpkg-dev,gcc,golang-go,jq,libc6-dev,make,patch,rsync,xz-utils \
  --customize-hook="copy-in '$(realpath "$0")' /" \
  --customize-hook='chroot "$1" /build.sh --inside' \
  --customize-hook="mkdir '$TMPDIR/out'" --customize-hook="sync-out /out '$TMPDIR/out'" \
  bookworm /dev/null "deb $2 bookworm main" "deb-src $2 bookworm main"
mv "$TMPDIR/out" "$1"
