#!/usr/bin/env bash
# A Kubernetes of one node, in a Debian system that is thrown away.
#
#     node.sh start CONFIG DROP_IN        containerd, with its configuration, and the network
#     node.sh control-plane
#     node.sh kubelet OPTION...           starts or restarts the kubelet, with further options
#     node.sh containerd                  restarts containerd
#     node.sh stop
#
# Each returns when it is done. Logs are in /run/kubernetes.
set -euo pipefail
mkdir --parents /run/kubernetes
cd /run/kubernetes
# Where the scenarios look for the events of containerd.
ln --symbolic --force /var/log/ctr.log events.log
config=/root/.kube/config
address=192.0.2.1
export PATH=/opt/kubernetes:$PATH

# Starts a program in the background; nothing of what it inherits keeps the caller waiting.
daemon() {
  setsid "${@:2}" >>"$1.log" 2>&1 </dev/null &
  echo $! >"$1.pid"
}

# Waits until a command succeeds. The error has the log of the daemon, if that has ended, or does not
# answer for minutes.
answers() {
  local daemon=$1 i
  shift
  for ((i = 0; i < 300; i++)); do
    timeout 10 "$@" >answer 2>&1 && return
    kill -0 "$(cat "$daemon.pid")" || break
    sleep 1
  done
  { echo "$daemon does not answer:"; cat answer; tail --lines=20 "$daemon.log"; } >&2
  exit 1
}

containerd() {
  daemon containerd containerd
  answers containerd crictl info
  daemon events ctr --namespace k8s.io events
}

# The kubelet changes settings of the whole host, which are not to be written here: it finds them as it
# wants them. In a mount namespace of its own, for a user namespace may not mount a /proc that is covered.
kubelet() {
  daemon kubelet unshare --mount --propagation unchanged sh -euc '
    mount --make-rprivate /proc
    for setting in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do
      file=${setting%=*}
      echo "${setting#*=}" >"${file#*/}"
      mount --bind "${file#*/}" "/proc/sys/$file"
    done
    exec "$@"' sh kubelet --config kubelet.yaml --hostname-override node --node-ip "$address" "$@"
  answers kubelet busybox wget -q -O - http://127.0.0.1:10248/healthz
}

control_plane() {
  daemon etcd etcd --data-dir etcd --log-level warn
  answers etcd busybox wget -q -O - http://127.0.0.1:2379/health

  # With all rights for whoever has the token, and no accounts for pods.
  echo token,admin,admin >tokens
  mkdir --parents "${config%/*}"
  cat >"$config" <<CONFIG
apiVersion: v1
kind: Config
current-context: pause
contexts: [{ name: pause, context: { cluster: pause, user: pause } }]
clusters: [{ name: pause, cluster: { server: "https://$address:6443", insecure-skip-tls-verify: true } }]
users: [{ name: pause, user: { token: token } }]
CONFIG
  daemon kube-apiserver kube-apiserver --etcd-servers http://127.0.0.1:2379 --secure-port 6443 \
    --advertise-address "$address" --service-cluster-ip-range 10.96.0.0/24 --cert-dir certificates \
    --token-auth-file tokens --service-account-key-file certificates/apiserver.key \
    --service-account-signing-key-file certificates/apiserver.key --service-account-issuer https://pause \
    --authorization-mode AlwaysAllow --disable-admission-plugins ServiceAccount --allow-privileged \
    --kubelet-preferred-address-types InternalIP
  answers kube-apiserver kubectl get --raw /readyz
  answers kube-apiserver kubectl get namespace default

  daemon kube-scheduler kube-scheduler --kubeconfig "$config" --leader-elect=false
  daemon kube-controller-manager kube-controller-manager --kubeconfig "$config" --leader-elect=false \
    --controllers deployment-controller,replicaset-controller,daemonset-controller,garbage-collector-controller,node-lifecycle-controller,namespace-controller,taint-eviction-controller
}

# Stops a daemon and waits until it has ended.
stop() {
  local pid
  pid=$(cat "$1.pid" 2>/dev/null) || return 0
  kill "$pid" || { tail "$1.log"; exit 1; } >&2
  while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
  rm "$1.pid"
}

case $1 in
control-plane)
  control_plane
  exit
  ;;
kubelet)
  stop kubelet
  if [[ -e kube-apiserver.pid ]]; then
    kubelet "${@:2}" --kubeconfig "$config"
    # After the health check, because the API server still takes the node of the kubelet before for ready.
    answers kubelet kubectl wait --for condition=Ready --timeout 1s node/node
  else
    kubelet "${@:2}"
  fi
  exit
  ;;
containerd)
  stop events
  stop containerd
  containerd
  exit
  ;;
stop)
  for program in kubelet kube-{controller-manager,scheduler,apiserver} etcd events containerd; do
    stop "$program"
  done
  ip link delete node
  ip link delete pods
  exit
  ;;
esac

# The API server wants an interface with a default route, and the bridge of pods has to be there before
# the first of them.
ip link add node type veth peer name wire
ip link set wire up
ip address add "$address/24" dev node
ip link set node up
ip route add default dev node
ip link add pods type bridge

# Of version 1 of control groups, containerd and gVisor's shim look for the hierarchy that systemd keeps.
# The other engines, which run before, would expect systemd behind it. It is there if a node has run before.
if grep --quiet :name=systemd: /proc/self/cgroup && [[ ! -e /sys/fs/cgroup/systemd ]]; then
  mkdir /sys/fs/cgroup/systemd
  mount --types cgroup --options none,name=systemd cgroup /sys/fs/cgroup/systemd
fi

# What the kubelet mounts for pods has to reach containerd.
mount --make-rshared /

mkdir --parents /etc/containerd/conf.d /etc/containerd/cni /etc/kubernetes/manifests
printf '%s' "$2" >/etc/containerd/config.toml
printf '%s' "$3" >/etc/containerd/conf.d/10-pause.toml
cat >/etc/containerd/gvisor.toml <<GVISOR
[runsc_config]
platform = "systrap"
network = "sandbox"
ignore-cgroups = "true"
GVISOR
cat >/etc/containerd/cni/pods.conflist <<CNI
{
  "cniVersion": "1.0.0", "name": "kubernetes", "plugins": [
    { "type": "bridge", "bridge": "pods", "isGateway": true, "ipMasq": false, "hairpinMode": true,
      "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.244.0.0/16" }]] } },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}
CNI
printf '%s\n' 'runtime-endpoint: unix:///run/containerd/containerd.sock' 'timeout: 120' >/etc/crictl.yaml
containerd

cat >kubelet.yaml <<KUBELET
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
staticPodPath: /etc/kubernetes/manifests
fileCheckFrequency: 1s
authentication: { anonymous: { enabled: true }, webhook: { enabled: false } }
authorization: { mode: AlwaysAllow }
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
localStorageCapacityIsolation: true
evictionHard: { memory.available: 1Mi, nodefs.available: 1Mi, imagefs.available: 1Mi }
imageMinimumGCAge: 1s
kubeAPIQPS: 50
kubeAPIBurst: 100
KUBELET
