#!/usr/bin/env bash
# Writes go.mod and go.sum for a version of Kubernetes, into this folder or FOLDER.
#
#     tests/engines/kubernetes/pin.sh 1.37.2 [FOLDER]
#
# Kubernetes requires the modules of its own repository with version 0.0.0 and replaces them with
# folders. Go ignores what a dependency replaces, so they are replaced here, with what is published.
set -euo pipefail
version=$1
cd "${2-$(dirname "$0")}"

rm --force go.mod go.sum
go mod init pause/kubernetes
file=$(go mod download -json "k8s.io/kubernetes@v$version" | sed --quiet 's/.*"GoMod": "\(.*\)".*/\1/p')
own=$(sed --quiet "s/^\t\(k8s.io\/[^ ]*\) v0.0.0\$/-replace=\1=\1@v0.${version#*.}/p" "$file")
# shellcheck disable=SC2086 # one word each
go mod edit -require="k8s.io/kubernetes@v$version" $own
go get -tool "k8s.io/kubernetes/cmd/"{kube-{apiserver,controller-manager,scheduler},kubectl,kubelet}"@v$version" \
  github.com/containerd/containerd/v2/cmd/{containerd,containerd-shim-runc-v2,ctr}@v2.4.2 \
  sigs.k8s.io/cri-tools/cmd/crictl@v1.37.0 \
  go.etcd.io/etcd/server/v3@v3.7.3 \
  github.com/containernetworking/plugins/plugins/{main/{bridge,loopback},ipam/host-local,meta/portmap}@v1.10.0
go mod tidy
