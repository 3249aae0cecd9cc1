//! `cargo xtask sbom`: a bill of materials of what ships, in CycloneDX 1.5.

use crate::image::{Selection, sha256, write};
use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, MetadataCommand, Package};
use harness::build;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use toml_edit::DocumentMut;

/// The command line of `cargo xtask sbom`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub selection: Selection,
    /// File to write [default: target/image/pause.cdx.json]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
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
    let metadata = MetadataCommand::new().current_dir(build::project()).exec()?;
    let product = metadata.root_package().context("the project has no product")?;
    let mut binaries = Vec::new();
    for target in selection.targets()? {
        let name = format!("pause for {}", target.platform.context("a target has no platform")?);
        binaries.push(json!({
            "type": "file",
            "bom-ref": name,
            "name": name,
            "version": product.version,
            "hashes": hashes(sha256(&fs::read(target.build()?)?).trim_start_matches("sha256:")),
        }));
    }
    let mut application = component("application", product);
    application["components"] = json!(binaries);

    // Everything that the product needs when it is built without features.
    let resolve = metadata.resolve.as_ref().context("cargo resolved nothing")?;
    let lock = fs::read_to_string(build::project().join("Cargo.lock"))?;
    let lock: DocumentMut = lock.parse().context("cannot read Cargo.lock")?;
    let mut packages = vec![product];
    let mut libraries = Vec::new();
    let mut dependencies = Vec::new();
    let mut next = 0;
    while let Some(&package) = packages.get(next) {
        next += 1;
        let node = resolve.nodes.iter().find(|node| node.id == package.id);
        let mut names = Vec::new();
        for dependency in &node.with_context(|| format!("no node {}", package.id))?.deps {
            if dependency.dep_kinds.iter().any(|it| it.kind == DependencyKind::Normal) {
                let dependency = &metadata[&dependency.pkg];
                names.push(reference(dependency));
                if !packages.iter().any(|known| known.id == dependency.id) {
                    packages.push(dependency);
                    libraries.push(library(dependency, &lock)?);
                }
            }
        }
        dependencies.push(json!({ "ref": reference(package), "dependsOn": names }));
    }
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": application },
        "components": libraries,
        "dependencies": dependencies,
    }))
}

/// A package that was compiled into the binaries, with the checksum of its source.
fn library(package: &Package, lock: &DocumentMut) -> Result<Value> {
    let version = package.version.to_string();
    let locked = lock["package"].as_array_of_tables().context("Cargo.lock has no packages")?;
    let locked = locked.iter().find(|it| {
        it["name"].as_str() == Some(&package.name) && it["version"].as_str() == Some(&version)
    });
    let checksum = locked.and_then(|it| it.get("checksum")?.as_str());
    let checksum = checksum.with_context(|| format!("{} has no checksum", package.name))?;
    let mut library = component("library", package);
    library["hashes"] = hashes(checksum);
    library["purl"] = json!(format!("pkg:cargo/{}", reference(package)));
    Ok(library)
}

fn component(kind: &str, package: &Package) -> Value {
    json!({
        "type": kind,
        "bom-ref": reference(package),
        "name": package.name,
        "version": package.version,
        "description": package.description,
        "licenses": [{ "expression": package.license }],
    })
}

fn reference(package: &Package) -> String {
    format!("{}@{}", package.name, package.version)
}

fn hashes(sha256: &str) -> Value {
    json!([{ "alg": "SHA-256", "content": sha256 }])
}
