//! A registry on the loopback, and a second containerd that pulls from it, for critest.

use crate::containerd::{deployed, is_ready, remove_sandboxes};
use crate::daemon::Daemon;
use crate::engine::Skip;
use crate::host;
use crate::wait::script;
use anyhow::{Result, ensure};
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
    mkdir -p /etc/containers /etc/node/certs.d/_default /etc/node/conf.d
    echo '{ "default": [{ "type": "insecureAcceptAnything" }] }' > /etc/containers/policy.json
    printf 'server = "https://%s"\n' "$1" > /etc/node/certs.d/_default/hosts.toml
"#;

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
        let config = include_str!("../kubernetes/critest.toml");
        fs::write(
            "/etc/node/config.toml",
            format!("{config}restrict_oom_score_adj = {restrict}\n"),
        )?;
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
