//! A registry on the loopback, and a second containerd that pulls from it, for critest.

use crate::containerd::{NETWORK, deployed, is_ready, remove_sandboxes};
use crate::daemon::Daemon;
use crate::engine::Skip;
use crate::host;
use crate::wait::script;
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::net::TcpStream;
use std::path::Path;

/// The name of the registry, as in the documents.
pub const HOST: &str = "registry.example";

/// The programs that are built for it, as `xtask engines` shows them to this system.
const PROGRAMS: &str = "/opt/kubernetes";

const SETTINGS: &str = "\
version: 0.1
log: { level: warn, accesslog: { disabled: true } }
storage: { filesystem: { rootdirectory: /var/lib/registry } }
http: { addr: '127.0.0.1:443', tls: { certificate: /etc/ssl/certs/registry.pem, key: /etc/registry.key } }
";

/// Makes the registry $1 known: its address, its certificate, and to the second containerd as the place of
/// all images. Accepts images without signatures.
const CLIENTS: &str = r#"
    grep -q "$1" /etc/hosts || echo "127.0.0.1 $1" >> /etc/hosts
    test -e /etc/registry.key || openssl req -x509 -newkey rsa:2048 -noenc -days 30 -subj "/CN=$1" \
        -addext "subjectAltName=DNS:$1" -keyout /etc/registry.key -out /etc/ssl/certs/registry.pem
    mkdir -p /etc/containers /etc/node/certs.d/_default /etc/node/cni /etc/node/conf.d
    echo '{ "default": [{ "type": "insecureAcceptAnything" }] }' > /etc/containers/policy.json
    printf 'server = "https://%s"\n' "$1" > /etc/node/certs.d/_default/hosts.toml
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
    script(CLIENTS, &[HOST])?;
    fs::write("/etc/registry.yml", SETTINGS)?;
    Daemon::start(&["docker-registry", "serve", "/etc/registry.yml"], || {
        TcpStream::connect((HOST, 443)).is_ok()
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
        fs::write("/etc/node/conf.d/20-pause.toml", deployed("containerd-2.toml", image)?)?;
        let command = &["/opt/kubernetes/containerd", "--config", "/etc/node/config.toml"];
        Ok(Self { daemon: Daemon::start(command, answers)? })
    }

    /// Removes all pods, stops it, and removes what it has stored.
    pub fn end(mut self) -> Result<()> {
        remove_sandboxes(NODE_SOCKET)?;
        self.daemon.stop()?;
        script("rm -r /var/lib/node /run/node", &[]).map(drop)
    }
}

fn answers() -> bool {
    is_ready(NODE_SOCKET)
}
