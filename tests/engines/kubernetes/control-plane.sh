#!/usr/bin/env bash
# A Kubernetes of one node on the containerd that runs, in a Debian system that is thrown away.
#
#     control-plane.sh start                  everything but the kubelet
#     control-plane.sh kubelet OPTION...      the kubelet, anew if it runs, with further options
#     control-plane.sh stop
#
# Each returns when it is done. Logs are in /run/kubernetes.
set -euo pipefail
mkdir --parents /run/kubernetes
cd /run/kubernetes
config=/root/.kube/config
address=192.0.2.1

# Starts a program in the background; nothing of what it inherits keeps the caller waiting.
daemon() {
  setsid "$@" >>"$1.log" 2>&1 </dev/null &
  echo $! >"$1.pid"
}

# Waits until a command succeeds, or the daemon that it asks has ended.
answers() {
  local daemon=$1
  shift
  until "$@" >answer 2>&1; do
    kill -0 "$(cat "$daemon.pid")" || { cat answer; tail "$daemon.log"; exit 1; } >&2
    sleep 1
  done
}

kubelet() {
  daemon kubelet --config kubelet.yaml --kubeconfig "$config" --hostname-override node --node-ip "$address" \
    --container-runtime remote --container-runtime-endpoint unix:///run/containerd/containerd.sock "$@"
  # Of an earlier one, the API server believes for a while that it is ready.
  answers kubelet busybox wget -q -O - http://127.0.0.1:10248/healthz
  answers kubelet kubectl wait --for condition=Ready --timeout 1s node/node
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
kubelet)
  stop kubelet
  kubelet "${@:2}"
  exit
  ;;
stop)
  for program in kube-{controller-manager,scheduler,apiserver} kubelet etcd; do stop "$program"; done
  exit
  ;;
esac

ln --symbolic --force /opt/kubernetes/* /usr/local/bin/

# The API server wants an interface with a default route.
ip link set lo up
ip link add node type veth peer name wire
ip link set wire up
ip address add "$address/24" dev node
ip link set node up
ip route add default dev node

daemon etcd --data-dir etcd --log-level warn
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
daemon kube-apiserver --etcd-servers http://127.0.0.1:2379 --secure-port 6443 --advertise-address "$address" \
  --service-cluster-ip-range 10.96.0.0/24 --cert-dir certificates --token-auth-file tokens \
  --service-account-key-file certificates/apiserver.key \
  --service-account-signing-key-file certificates/apiserver.key --service-account-issuer https://pause \
  --authorization-mode AlwaysAllow --disable-admission-plugins ServiceAccount --allow-privileged \
  --kubelet-preferred-address-types InternalIP
answers kube-apiserver kubectl get --raw /readyz

daemon kube-scheduler --kubeconfig "$config" --leader-elect=false
daemon kube-controller-manager --kubeconfig "$config" --leader-elect=false \
  --controllers deployment,replicaset,daemonset,garbagecollector,nodelifecycle

# The kubelet changes settings of the whole host, which are not to be written here: it finds them as
# it wants them.
for setting in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do
  file=${setting%=*}
  echo "${setting#*=}" >"${file#*/}"
  mount --bind "${file#*/}" "/proc/sys/$file"
done

cat >kubelet.yaml <<KUBELET
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: { anonymous: { enabled: true }, webhook: { enabled: false } }
authorization: { mode: AlwaysAllow }
cgroupDriver: cgroupfs
failSwapOn: false
evictionHard: { memory.available: 1Mi }
kubeAPIQPS: 50
kubeAPIBurst: 100
KUBELET
