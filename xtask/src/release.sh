# Runs in a PID namespace of its own, which ends with it. Pushes an image to a registry on the loopback
# by the command of the workflow, and pulls it back with skopeo and with containerd.
#
#     release.sh PUSH-SCRIPT PORT      (in a folder that has dist/pause.tar)
set -euo pipefail
work=$PWD
programs=$(dirname "$work")/programs
mount -t tmpfs tmpfs /run

# What the machine lacks is unpacked from the packages of Debian 12; nothing is installed.
PATH=$PATH:$programs/usr/bin
export LD_LIBRARY_PATH=$programs/usr/lib/$(uname --machine)-linux-gnu
if ! type docker-registry skopeo containerd ctr &>/dev/null; then
  mkdir -p "$programs/packages"
  (cd "$programs/packages" && apt-get -o APT::Sandbox::User=root download --quiet \
    docker-registry skopeo containerd libassuan0 libdevmapper1.02.1 libgpgme11 libsubid4 >&2)
  for package in "$programs"/packages/*.deb; do
    dpkg --extract "$package" "$programs"
  done
fi

digest=$(tar --extract --to-stdout --file dist/pause.tar index.json | grep -o 'sha256:[0-9a-f]*')

wait_for() { for _ in {1..600}; do "$@" 2>/dev/null && return; sleep 0.1; done; "$@"; }
listens() { (: <"/dev/tcp/127.0.0.1/$1"); }

cat >registry.yml <<CONF
version: 0.1
log: { level: error, accesslog: { disabled: true } }
storage: { filesystem: { rootdirectory: $work/registry } }
http: { addr: "127.0.0.1:$2" }
CONF
docker-registry serve registry.yml &
wait_for listens "$2"

# Both are found below $HOME, as is what the login writes.
mkdir -p "$HOME/.config/containers"
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
root = "$work/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
plugins."io.containerd.internal.v1.opt".path = "$work/opt"
CONF
containerd --config containerd.toml --log-level error &
wait_for test -S /run/containerd/containerd.sock
ctr images pull --plain-http --all-platforms --snapshotter native "$name" >/dev/null
ctr images list "name==$name" | grep " $digest "
echo "containerd pulls the same digest"
