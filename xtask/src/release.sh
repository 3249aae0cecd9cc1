# Runs in a Debian system of its own, see release.rs. Pushes an image to a registry on the loopback by the
# command of the workflow, and pulls it back with skopeo and with containerd.
#
#     release.sh PUSH-SCRIPT      (in /work, which has dist/pause.tar)
set -euo pipefail
cd /work
export HOME=/work/home GITHUB_OUTPUT=/work/output
mkdir --parents "$HOME/.config/containers"

digest=$(tar --extract --to-stdout --file dist/pause.tar index.json | grep -o 'sha256:[0-9a-f]*')

wait_for() { for _ in {1..600}; do "$@" 2>/dev/null && return; sleep 0.1; done; "$@"; }
listens() { (: <"/dev/tcp/${REGISTRY/://}"); }

cat >registry.yml <<CONF
version: 0.1
log: { level: error, accesslog: { disabled: true } }
storage: { filesystem: { rootdirectory: $PWD/registry } }
http: { addr: "$REGISTRY" }
CONF
# (It logs an error for each blob that it does not have yet.)
docker-registry serve registry.yml &>registry.log &
wait_for listens || { cat registry.log; exit 1; }

# Both are found below $HOME, as is what the login writes.
echo '{ "default": [{ "type": "insecureAcceptAnything" }] }' >"$HOME/.config/containers/policy.json"
printf '[[registry]]\nlocation = "%s"\ninsecure = true\n' "$REGISTRY" >"$HOME/.config/containers/registries.conf"
bash -e -o pipefail "$1"
grep --line-regexp "digest=$digest" "$GITHUB_OUTPUT"

name=$REGISTRY/${GITHUB_REPOSITORY,,}:${GITHUB_REF_NAME#v}
skopeo copy --quiet --all --preserve-digests "docker://$name" oci:back
grep --quiet "\"$digest\"" back/index.json
echo "skopeo pulls the same digest"

cat >containerd.toml <<CONF
version = 2
root = "$PWD/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
plugins."io.containerd.internal.v1.opt".path = "$PWD/opt"
CONF
containerd --config containerd.toml --log-level error &
wait_for test -S /run/containerd/containerd.sock
ctr images pull --plain-http --all-platforms --snapshotter native "$name" >/dev/null
ctr images list "name==$name" | grep " $digest "
echo "containerd pulls the same digest"
