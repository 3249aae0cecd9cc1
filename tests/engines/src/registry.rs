//! A registry on the loopback.

use crate::daemon::Daemon;
use crate::engine::Skip;
use crate::wait::script;
use anyhow::{Result, ensure};
use std::fs;
use std::net::TcpStream;
use std::path::Path;

/// The name of the registry, as in the documents.
pub const HOST: &str = "registry.example";

const SETTINGS: &str = "\
version: 0.1
log: { level: warn, accesslog: { disabled: true } }
storage: { filesystem: { rootdirectory: /var/lib/registry } }
http: { addr: '127.0.0.1:443', tls: { certificate: /etc/ssl/certs/registry.pem, key: /etc/registry.key } }
";

/// Makes the registry $1 known: its address, its certificate, and to critest's containerd as the place of
/// all images. Accepts images without signatures.
const CLIENTS: &str = r#"
    grep -q "$1" /etc/hosts || echo "127.0.0.1 $1" >> /etc/hosts
    test -e /etc/registry.key || openssl req -x509 -newkey rsa:2048 -noenc -days 30 -subj "/CN=$1" \
        -addext "subjectAltName=DNS:$1" -keyout /etc/registry.key -out /etc/ssl/certs/registry.pem
    mkdir -p /etc/containers /etc/node/certs.d/_default /etc/node/conf.d
    echo '{ "default": [{ "type": "insecureAcceptAnything" }] }' > /etc/containers/policy.json
    printf 'server = "https://%s"\n' "$1" > /etc/node/certs.d/_default/hosts.toml
"#;

/// Starts a registry, which is empty the first time.
pub fn start() -> Result<Daemon> {
    let reason = "today's containerd is not built: run cargo xtask engines kubernetes";
    ensure!(Path::new("/opt/kubernetes/containerd").exists(), Skip(reason));
    script(CLIENTS, &[HOST])?;
    fs::write("/etc/registry.yml", SETTINGS)?;
    Daemon::start(&["docker-registry", "serve", "/etc/registry.yml"], || {
        TcpStream::connect((HOST, 443)).is_ok()
    })
}
