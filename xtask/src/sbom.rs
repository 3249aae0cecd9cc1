//! `cargo xtask sbom`: a bill of materials of what ships, in CycloneDX 1.5.

use crate::image::{Selection, sha256};
use anyhow::{Context, Result, bail};
use harness::build;
use serde_json::{Value, json};
use std::fs;

/// Builds the binaries and prints their bill of materials. The same sources give the same bill, so it has
/// neither a time nor a serial number.
pub fn run(selection: &Selection) -> Result<()> {
    let lock = fs::read_to_string(build::project().join("Cargo.lock"))?;
    let mut components = Vec::new();
    let mut depends_on = Vec::new();
    // The product, and then everything that it needs when it is built without features: a line each,
    // with depth, name and version, and license. Cargo marks a package that it has listed before.
    let mut tree = build::cargo("tree");
    tree.args(["--package=pause", "--edges=normal", "--prefix=depth", "--format=|{p}|{l}"]);
    for line in build::stdout_of(&mut tree)?.lines().filter(|line| !line.ends_with(" (*)")) {
        let [depth, package, license] = *line.split('|').collect::<Vec<_>>() else {
            bail!("cargo tree printed {line:?}");
        };
        let mut words = package.split_whitespace();
        let (name, version) = words.next().zip(words.next()).context("a package has no name")?;
        let version = version.trim_start_matches('v');
        let reference = format!("{name}@{version}");
        let mut component = json!({
            "type": if depth == "0" { "application" } else { "library" },
            "bom-ref": reference,
            "name": name,
            "version": version,
            "licenses": [{ "expression": license }],
        });
        if depth != "0" {
            component["hashes"] = hashes(checksum(&lock, name, version)?);
            component["purl"] = json!(format!("pkg:cargo/{reference}"));
        }
        if depth == "1" {
            depends_on.push(reference);
        }
        components.push(component);
    }
    let mut application = components.remove(0);
    let mut binaries = Vec::new();
    for target in selection.targets()? {
        let name = format!("pause for {}", target.platform);
        let digest = sha256(&fs::read(target.build()?)?);
        binaries.push(json!({
            "type": "file",
            "bom-ref": name,
            "name": name,
            "version": application["version"],
            "hashes": hashes(digest.trim_start_matches("sha256:")),
        }));
    }
    application["components"] = json!(binaries);
    let bill = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "dependencies": [{ "ref": application["bom-ref"], "dependsOn": depends_on }],
        "metadata": { "component": application },
        "components": components,
    });
    println!("{bill:#}");
    Ok(())
}

/// The checksum of a library's source.
fn checksum<'a>(lock: &'a str, name: &str, version: &str) -> Result<&'a str> {
    let start = format!("\nname = \"{name}\"\nversion = \"{version}\"\n");
    let locked = lock.split("[[package]]").find(|package| package.starts_with(&start));
    let checksum =
        locked.and_then(|package| package.split("checksum = \"").nth(1)?.split('"').next());
    checksum.with_context(|| format!("Cargo.lock has no checksum of {name}"))
}

fn hashes(sha256: &str) -> Value {
    json!([{ "alg": "SHA-256", "content": sha256 }])
}
