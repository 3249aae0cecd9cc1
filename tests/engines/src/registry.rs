//! A registry on the loopback, and a node that pulls from it: today's containerd, with the drop-in in
//! `deploy/` that people copy.

use crate::containerd::{NETWORK, crictl, deployed, file, is_ready, sandbox_config};
use crate::daemon::Daemon;
use crate::engine::Skip;
use crate::host;
use crate::scenario::Run;
use crate::wait::{ensure_eq, script};
use anyhow::{Context, Result, ensure};
use harness::build::project;
use harness::sandbox::USER;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Where the registry listens.
pub const ADDRESS: &str = "127.0.0.1:5000";

/// The programs that are built for it, as `xtask engines` shows them to this system.
const PROGRAMS: &str = "/opt/kubernetes";

const SETTINGS: &str = "\
version: 0.1
log: { level: warn, accesslog: { disabled: true } }
storage: { filesystem: { rootdirectory: /var/lib/registry } }
http: { addr: '127.0.0.1:5000' }
";

/// Names the registry to skopeo, which wants one that speaks TLS, and to containerd in the place of all
/// others, and accepts images without signatures.
const CLIENTS: &str = r#"
    mkdir -p /etc/containers/registries.conf.d /etc/node/certs.d/_default /etc/node/cni /etc/node/conf.d
    printf '[[registry]]\nlocation = "%s"\ninsecure = true\n' "$1" > /etc/containers/registries.conf.d/loopback.conf
    echo '{ "default": [{ "type": "insecureAcceptAnything" }] }' > /etc/containers/policy.json
    printf 'server = "http://%s"\n[host."http://%s"]\n' "$1" "$1" > /etc/node/certs.d/_default/hosts.toml
"#;

/// The node's own configuration, besides what is imported.
const NODE: &str = "
version = 3
imports = ['/etc/node/conf.d/*.toml']
root = '/var/lib/node'
state = '/run/node'
[grpc]
address = '/run/node/containerd.sock'
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = '/etc/node/certs.d'
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['/usr/lib/cni']
conf_dir = '/etc/node/cni'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
runtime_path = '/opt/kubernetes/containerd-shim-runc-v2'
[plugins.'io.containerd.cri.v1.runtime']
";

/// How crictl and critest reach the node.
pub const NODE_SOCKET: &str = "unix:///run/node/containerd.sock";

/// Starts a registry, which is empty the first time.
pub fn start() -> Result<Daemon> {
    let reason = "today's containerd is not built: run cargo xtask engines kubernetes";
    ensure!(Path::new(PROGRAMS).join("containerd").exists(), Skip(reason));
    script(CLIENTS, &[ADDRESS])?;
    fs::write("/etc/registry.yml", SETTINGS)?;
    Daemon::start(&["docker-registry", "serve", "/etc/registry.yml"], || {
        let fetch = "busybox wget -q -O - http://$1/v2/";
        script(fetch, &[ADDRESS]).is_ok()
    })
}

/// Today's containerd, with folders and a socket of its own.
pub struct Node {
    daemon: Daemon,
}

impl Node {
    /// Starts it with `image` for the sandboxes, and nothing in its store.
    pub fn start(image: &str) -> Result<Self> {
        let restrict = !host::has_cap_sys_resource()?;
        fs::write("/etc/node/config.toml", format!("{NODE}restrict_oom_score_adj = {restrict}\n"))?;
        // With the host's ports, as a kubelet asks for them.
        let network: Value = serde_json::from_str(NETWORK)?;
        let ports = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
        let plugins = json!({ "cniVersion": "0.4.0", "name": "node", "plugins": [network, ports] });
        fs::write("/etc/node/cni/10-node.conflist", plugins.to_string())?;
        use_image(image)?;
        let command = &["/opt/kubernetes/containerd", "--config", "/etc/node/config.toml"];
        Ok(Self { daemon: Daemon::start(command, answers)? })
    }

    /// Restarts it with another image for the sandboxes.
    fn change(&mut self, image: &str) -> Result<()> {
        use_image(image)?;
        // What docs and deploy/ tell people to look at before they do the same.
        let dump = "/opt/kubernetes/containerd --config /etc/node/config.toml config dump";
        let shown = script(&format!("{dump} 2> /dev/null | grep sandbox"), &[])?;
        ensure!(shown.contains(image), "the configuration has {shown}");
        self.daemon.restart(answers)
    }

    /// Starts a pod and returns its ID; the image is the one of the configuration.
    fn pod(&self, name: &str) -> Result<String> {
        let config = file(&sandbox_config(name, json!({})))?;
        self.crictl(&["runp", &config.path().to_string_lossy()])
    }

    /// The same, and its pause has to sleep. The image is checked, too.
    fn pod_on(&self, name: &str, image: &str, run: &Run) -> Result<(String, i32)> {
        let pod = self.pod(name)?;
        let shown = self.inspect("inspectp", &pod)?;
        ensure_eq("the image of the pod", &shown["info"]["image"], &json!(image))?;
        let pid = shown["info"]["pid"].as_i64().context("no pid")? as i32;
        host::asleep(pid, &run.binary, USER)?;
        Ok((pod, pid))
    }

    fn crictl(&self, arguments: &[&str]) -> Result<String> {
        crictl([&["--runtime-endpoint", NODE_SOCKET], arguments].concat())
    }

    fn inspect(&self, verb: &str, name: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.crictl(&[verb, "--output=json", name])?)?)
    }

    /// Removes all pods, stops it, and removes what it has stored.
    pub fn end(mut self) -> Result<()> {
        self.crictl(&["rmp", "--force", "--all"])?;
        self.daemon.stop()?;
        script("rm -r /var/lib/node /run/node", &[]).map(drop)
    }
}

/// Installs the drop-in with `image` in the place of its example.
fn use_image(image: &str) -> Result<()> {
    fs::create_dir_all("/etc/node/conf.d")?;
    Ok(fs::write("/etc/node/conf.d/20-pause.toml", deployed("containerd-2.toml", image)?)?)
}

fn answers() -> bool {
    is_ready(NODE_SOCKET)
}

/// What docs/install.md and README tell people to run, with the names that they have to fill in.
const PUSH: &str = "skopeo copy --all --preserve-digests oci-archive:target/image/pause.tar \
                    docker://registry.example/infra/pause:0.1.0";

/// Pushes an image that is another version by its label, made from the archive $1, as $2.
const NEXT: &str = r#"
    folder=$(mktemp --directory --tmpdir=/var/tmp)
    skopeo copy --quiet "oci-archive:$1" "oci:$folder:next"
    umoci config --image "$folder:next" --config.label org.opencontainers.image.version=next
    skopeo copy --quiet "oci:$folder:next" "docker://$2"
"#;

/// Lists the sandboxes whose image has a label.
const LIST: &str = r#"
    ctr() { /opt/kubernetes/ctr --address /run/node/containerd.sock --namespace k8s.io "$@" 2> /dev/null; }
    ctr containers list --quiet "labels.\"io.cri-containerd.kind\"==sandbox,$1"
"#;

/// What a pod is refused with while the registry is down, as docs/troubleshooting.md quotes it.
const UNREACHABLE: [&str; 3] = [
    "failed to resolve image: failed to do request: Head",
    ": dial tcp ",
    "connect: connection refused",
];

/// The operator's path: push, first pod, registry down, upgrade, way back.
pub fn test(run: &Run) -> Result<()> {
    let all = run.candidate.all()?;
    let mut registry = start()?;
    let example = "registry.example/infra/pause:0.1.0";
    let [old, new] = ["0.1.0", "next"].map(|tag| format!("{ADDRESS}/infra/pause:{tag}"));

    let page = fs::read_to_string(project().join("docs/install.md")).unwrap_or_default();
    ensure!(page.contains(PUSH), "docs/install.md does not say {PUSH}");
    let push = PUSH.replace("target/image/pause.tar", &all.display().to_string());
    script(&push.replace(example, &old), &[])?;
    let archive = "tar --extract --to-stdout --file \"$1\" index.json";
    let index: Value = serde_json::from_str(&script(archive, &[&all.to_string_lossy()])?)?;
    let digest = index["manifests"][0]["digest"].as_str().context("the archive has no digest")?;
    let inspect = "skopeo inspect --format '{{.Digest}}' \"docker://$1\"";
    ensure_eq("the digest in the registry", script(inspect, &[&old])?.as_str(), digest)?;

    let mut node = Node::start(&old)?;
    let (first, pid) = node.pod_on("first", &old, run)?;
    let image = node.inspect("inspecti", &old)?;
    ensure_eq("whether it is pinned", &image["status"]["pinned"], &json!(true))?;
    let whole = format!("{ADDRESS}/infra/pause@{digest}");
    ensure_eq("the digest on the node", &image["status"]["repoDigests"], &json!([whole]))?;

    // The way to the next version and back.
    script(NEXT, &[&run.candidate.archive.to_string_lossy(), &new])?;
    node.change(&new)?;
    let (second, _) = node.pod_on("second", &new, run)?;
    let listed = "labels.\"org.opencontainers.image.version\"==next";
    let listed = script(LIST, &[listed])?;
    ensure_eq("the pods on the next version", listed, second.clone())?;
    let now = node.inspect("inspectp", &first)?;
    ensure_eq("the process of the old pod", now["info"]["pid"].as_i64(), Some(pid.into()))?;
    ensure_eq("the state of the old pod", &now["status"]["state"], &json!("SANDBOX_READY"))?;
    node.change(&old)?;
    node.pod_on("third", &old, run)?;
    node.crictl(&["rmp", "--force", &second])?;
    let image = node.inspect("inspecti", &new)?;
    ensure_eq("whether the other one is still pinned", &image["status"]["pinned"], &json!(true))?;
    node.crictl(&["rmi", &new])?;
    ensure!(node.inspect("inspecti", &new).is_err(), "it cannot be removed");

    // A node that has lost the image while nobody serves it.
    node.crictl(&["rmp", "--force", "--all"])?;
    node.crictl(&["rmi", &old])?;
    registry.stop()?;
    let refusal = node.pod("refused").err().context("there is a pod without an image")?;
    let page = fs::read_to_string(project().join("docs/troubleshooting.md"))?;
    for words in UNREACHABLE {
        ensure!(format!("{refusal:#}").contains(words), "another error: {refusal:#}");
        ensure!(page.contains(words), "docs/troubleshooting.md does not quote {words:?}");
    }
    let mut registry = start()?;
    node.pod_on("recovered", &old, run)?;

    node.end()?;
    registry.stop()
}
