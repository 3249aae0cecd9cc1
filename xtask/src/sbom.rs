//! `cargo xtask sbom`: a bill of materials of what ships, in CycloneDX 1.5.

use crate::image::{Selection, sha256, write};
use anyhow::{Context, Result, bail, ensure};
use harness::build;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::{env, fs};
use toml_edit::{DocumentMut, Table};

/// The command line of `cargo xtask sbom`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    selection: Selection,
    /// File to write [default: target/image/pause.cdx.json]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Builds the binaries and writes their bill of materials.
pub fn run(args: &Args) -> Result<()> {
    let bill = bill_of_materials(&args.selection)?;
    let default = || build::project().join("target/image/pause.cdx.json");
    let output = args.output.clone().unwrap_or_else(default);
    write(&output, format!("{bill:#}\n").as_bytes())?;
    println!("{}", output.display());
    Ok(())
}

/// The same sources give the same bill, so it has neither a time nor a serial number.
fn bill_of_materials(selection: &Selection) -> Result<Value> {
    let lock = fs::read_to_string(build::project().join("Cargo.lock"))?;
    let lock: DocumentMut = lock.parse().context("cannot read Cargo.lock")?;
    let mut components = Vec::new();
    let mut depends_on = Vec::new();
    // Cargo marks a package that it has listed before.
    for line in tree()?.lines().filter(|line| !line.ends_with(" (*)")) {
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
            component["hashes"] = hashes(&checksum(&lock, name, version)?);
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
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "dependencies": [{ "ref": application["bom-ref"], "dependsOn": depends_on }],
        "metadata": { "component": application },
        "components": components,
    }))
}

/// The product, and then everything that it needs when it is built without features: a line each, with
/// depth, name and version, and license.
fn tree() -> Result<String> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(build::project()).args(["tree", "--package=pause", "--edges=normal"]);
    cargo.args(["--prefix=depth", "--format=|{p}|{l}"]).stderr(Stdio::inherit());
    let output = cargo.output().context("cannot run cargo tree")?;
    ensure!(output.status.success(), "cargo tree: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// The checksum of a library's source.
fn checksum(lock: &DocumentMut, name: &str, version: &str) -> Result<String> {
    let locked = lock["package"].as_array_of_tables().context("Cargo.lock has no packages")?;
    let is_it =
        |it: &&Table| it["name"].as_str() == Some(name) && it["version"].as_str() == Some(version);
    let checksum = locked.iter().find(is_it).and_then(|it| it.get("checksum")?.as_str());
    Ok(checksum.with_context(|| format!("Cargo.lock has no checksum of {name}"))?.to_owned())
}

fn hashes(sha256: &str) -> Value {
    json!([{ "alg": "SHA-256", "content": sha256 }])
}
