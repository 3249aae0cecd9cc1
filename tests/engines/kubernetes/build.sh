#!/usr/bin/env bash
# Builds what go.mod and the modules beside it name into target/kubernetes/bin, if it has changed:
# Kubernetes, etcd, containerd, runc, gVisor, CNI plugins, crictl and critest.
#
#     tests/engines/kubernetes/build.sh [crictl]
#
# Needs Go. All that Go writes goes to target/kubernetes.
set -euo pipefail
cd "$(dirname "$0")"
folder=$(realpath ../../..)/target/kubernetes

fail() {
  echo "$1" >&2
  exit 1
}

version=$(go env GOVERSION 2>/dev/null) ||
  fail "Go is needed to build Kubernetes: install Go 1.21 or later from https://go.dev/dl and add it to PATH"
minor=${version#go1.}
((${minor%%[!0-9]*} >= 21)) ||
  fail "$version is too old to build Kubernetes: install Go 1.21 or later, which fetches what go.mod names"

mkdir --parents "$folder"/{bin,locks,sums,tmp}
# What a build has left behind that was killed, which no longer has its lock.
for left in "$folder"/tmp/*; do
  test ! -e "$left" || flock --nonblock "$folder/locks/${left##*/}" rm --recursive "$left" || true
done
export GOPATH=$folder/go GOMODCACHE=$folder/go/pkg/mod GOCACHE=$folder/cache
export GOFLAGS=-modcacherw GOWORK=off CGO_ENABLED=0

# Ends with what the build of $1 may lack.
cannot_build() {
  fail "Cannot build $1: see above. It needs the Go module proxy ($(go env GOPROXY)) and disk in $folder,
which has $(df --output=avail --block-size=M "$folder" | tail -1 | tr --delete ' ') left."
}

# The version of a module.
version_of() { go list -m -f '{{.Version}}' "$1" || cannot_build "$1"; }

# Runs a command that builds PROGRAM in MODULE, unless it was built from the same files.
program() {
  local module=$1 program=$2
  shift 2
  local stamp=$folder/sums/$program sum
  # Another build may be at it.
  exec 9>"$folder/locks/$program"
  flock 9
  sum=$(cat "$module"/go.{mod,sum} build.sh | sha256sum)
  test "$(cat "$stamp" 2>/dev/null)" != "$sum" || test ! -e "$folder/bin/$program" || return 0
  test "$announced" || announce
  echo "Building $program" >&2
  export GOTMPDIR=$folder/tmp/$program
  mkdir --parents "$GOTMPDIR"
  (cd "$module" && "${@:1:$#-1}" -trimpath -ldflags "$flags" -tags "$tags" -o "$GOTMPDIR/$program" "${@: -1}") ||
    cannot_build "$program"
  mv "$GOTMPDIR/$program" "$folder/bin/$program"
  rm --recursive "$GOTMPDIR"
  echo "$sum" >"$stamp"
}

announce() {
  announced=yes
  test "$what" = crictl && amount="1 minute, 1 GB" || amount="25 minutes on two cores, 15 GB"
  echo "Building in $folder (about $amount)" >&2
}

what=${1-all} announced=
containerd=$(version_of github.com/containerd/containerd/v2)
tags=no_btrfs,no_devmapper,no_zfs
flags="-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=$(version_of sigs.k8s.io/cri-tools)"
flags+=" -X k8s.io/component-base/version.gitVersion=$(version_of k8s.io/kubernetes)"
flags+=" -X github.com/containerd/containerd/v2/version.Version=${containerd#v}"

program . crictl go build sigs.k8s.io/cri-tools/cmd/crictl
test "$what" = all || exit 0
for name in containerd containerd-shim-runc-v2 ctr; do
  program . "$name" go build "github.com/containerd/containerd/v2/cmd/$name"
done
program . critest go test -c sigs.k8s.io/cri-tools/cmd/critest
CGO_ENABLED=1 tags=seccomp program runc runc go build github.com/opencontainers/runc
program gvisor runsc go build gvisor.dev/gvisor/runsc
program gvisor containerd-shim-runsc-v1 go build gvisor.dev/gvisor/shim
for plugin in main/{bridge,loopback} ipam/host-local meta/portmap; do
  program . "${plugin#*/}" go build "github.com/containernetworking/plugins/plugins/$plugin"
done
program . etcd go build go.etcd.io/etcd/server/v3
for name in kubelet kubectl kube-apiserver kube-controller-manager kube-scheduler; do
  program . "$name" go build "k8s.io/kubernetes/cmd/$name"
done
# Upstream's pause, to compare with.
go mod download k8s.io/kubernetes || cannot_build "upstream's pause"
install --mode=644 --target-directory="$folder/bin" \
  "$(go list -m -f '{{.Dir}}' k8s.io/kubernetes)/build/pause/linux/pause.c"
