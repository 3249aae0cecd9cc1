//! The configuration files that people copy. Only real engines show that they work, and the manifests of
//! `examples/`, too: `cargo xtask engines`.

use harness::build::project;
use std::fs;

/// All settings of the files that `cargo xtask engines` does not try.
const UNTRIED: &[(&str, &[&str])] = &[
    (
        "cri-dockerd.conf",
        &[
            "[Service]",
            // The empty value takes back the unit's own command; systemd refuses a second one without it.
            "ExecStart=",
            // The command of cri-dockerd's own unit, 0.2.4 to 0.4.1. No package of Debian has that unit.
            "ExecStart=/usr/bin/cri-dockerd --container-runtime-endpoint fd:// \
             --pod-infra-container-image=localhost/pause:VERSION",
        ],
    ),
    (
        "crio-load.conf",
        &[
            "[Service]",
            "ExecStartPre=-/usr/bin/skopeo copy oci-archive:/usr/local/share/pause.tar \
             containers-storage:localhost/pause:VERSION",
        ],
    ),
    (
        "crio.conf",
        &[
            "[crio.image]",
            "pause_image = \"localhost/pause:VERSION\"",
            "pause_command = \"/pause\"",
        ],
    ),
    ("k3s.yaml", &["pause-image: localhost/pause:VERSION"]),
    // To RKE2 only a name with a dot is a registry's.
    ("rke2.yaml", &["pause-image: pause.internal/pause:VERSION"]),
];

#[test]
fn untried_files_have_these_settings() {
    for (name, expected) in UNTRIED {
        let text = fs::read_to_string(project().join("deploy").join(name)).unwrap();
        let settings = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let settings = settings.map(|line| line.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
        assert_eq!(settings.collect::<Vec<_>>(), *expected, "{name}");
    }
    let rke2 = fs::read_to_string(project().join("deploy/rke2.yaml")).unwrap();
    assert!(rke2.contains("image --tag pause.internal/pause:"), "made under another name");
}

#[test]
fn every_file_says_where_it_goes_and_what_it_was_run_with() {
    for file in fs::read_dir(project().join("deploy")).unwrap() {
        let path = file.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let is_tried = text.contains("by `cargo xtask engines`");
        assert!(is_tried || UNTRIED.iter().any(|(name, _)| path.ends_with(name)), "{path:?}");
        for line in ["# Copy this to /etc/", "# Run with: "] {
            assert!(text.lines().any(|it| it.starts_with(line)), "{path:?} has no line {line:?}");
        }
    }
}
