//! `cargo xtask sbom`: what the image is made of, as a bill of materials in CycloneDX.

use crate::image::{Selection, digest, write};
use anyhow::{Context, Result, ensure};
use cargo_metadata::{DependencyKind, MetadataCommand, Package};
use cyclonedx_bom::external_models::normalized_string::NormalizedString;
use cyclonedx_bom::external_models::spdx::SpdxExpression;
use cyclonedx_bom::models::component::{Classification, Component, Components};
use cyclonedx_bom::models::dependency::{Dependencies, Dependency};
use cyclonedx_bom::models::hash::{Hash, HashAlgorithm, HashValue, Hashes};
use cyclonedx_bom::models::license::{LicenseChoice, Licenses};
use cyclonedx_bom::models::metadata::Metadata;
use cyclonedx_bom::prelude::{Bom, Purl, SpecVersion, Validate};
use std::fs;
use std::path::PathBuf;
use support::artifact;
use toml_edit::DocumentMut;

/// The command line of `cargo xtask sbom`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    selection: Selection,
    /// Where to write it [default: target/image/pause.cdx.json]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Builds the binaries and writes the bill: the same bytes from the same sources. So it has neither a
/// time nor a serial number, which would have to be another one each time.
///
/// # Errors
///
/// When a binary cannot be built, the bill is not valid, or cannot be written.
pub fn run(args: &Args) -> Result<()> {
    let bom = bill(&args.selection)?;
    let validity = bom.validate_version(SpecVersion::V1_5);
    ensure!(validity.passed(), "the bill of materials is not valid: {validity:?}");
    let mut bytes = Vec::new();
    bom.output_as_json_v1_5(&mut bytes)?;
    bytes.push(b'\n');
    let default = || artifact::project().join("target/image/pause.cdx.json");
    let output = args.output.clone().unwrap_or_else(default);
    write(&output, &bytes).with_context(|| format!("cannot write to {}", output.display()))?;
    println!("{}", output.display());
    Ok(())
}

/// The product, its binary for each platform, and the crates that are compiled into it.
fn bill(selection: &Selection) -> Result<Bom> {
    let cargo = MetadataCommand::new().current_dir(artifact::project()).exec()?;
    let product = cargo.root_package().context("the project has no product")?;
    let mut root = component(Classification::Application, product);
    let mut binaries = Vec::new();
    for target in selection.targets()? {
        let platform = target.platform.context("this target has no platform of its own")?;
        let bytes = fs::read(target.build()?)?;
        let name = format!("pause for {platform}");
        let version = product.version.to_string();
        let mut binary = Component::new(Classification::File, &name, &version, Some(name.clone()));
        binary.hashes = Some(sha256(digest(&bytes).digest()));
        binaries.push(binary);
    }
    root.components = Some(Components(binaries));

    let lock: DocumentMut = fs::read_to_string(artifact::project().join("Cargo.lock"))?
        .parse()
        .context("Cargo.lock")?;
    let locked = lock["package"].as_array_of_tables().context("Cargo.lock has no packages")?;
    let resolve = cargo.resolve.as_ref().context("cargo resolved nothing")?;
    let node = resolve.nodes.iter().find(|node| node.id == product.id).context("no product")?;
    let mut crates = Vec::new();
    for dependency in &node.deps {
        if !dependency.dep_kinds.iter().any(|it| it.kind == DependencyKind::Normal) {
            continue;
        }
        let package = &cargo[&dependency.pkg];
        // What only a feature brings in does not ship.
        let declared = product.dependencies.iter().find(|it| it.name == *package.name);
        if declared.is_some_and(|it| it.optional) {
            continue;
        }
        let mut library = component(Classification::Library, package);
        let (name, version) = (package.name.as_str(), package.version.to_string());
        let entry = locked.iter().find(|it| {
            it["name"].as_str() == Some(name) && it["version"].as_str() == Some(&version)
        });
        let checksum = entry.and_then(|it| it.get("checksum")?.as_str());
        library.hashes = Some(sha256(checksum.with_context(|| format!("{name} has no checksum"))?));
        library.purl = Some(Purl::new("cargo", name, &version)?);
        crates.push(library);
    }

    let reference = |it: &Component| it.bom_ref.clone().unwrap_or_default();
    let of_product = Dependency {
        dependency_ref: reference(&root),
        dependencies: crates.iter().map(reference).collect(),
    };
    let of_crates = crates
        .iter()
        .map(|it| Dependency { dependency_ref: reference(it), dependencies: Vec::new() });
    Ok(Bom {
        serial_number: None,
        metadata: Some(Metadata { component: Some(root), ..Metadata::default() }),
        dependencies: Some(Dependencies([of_product].into_iter().chain(of_crates).collect())),
        components: Some(Components(crates)),
        spec_version: SpecVersion::V1_5,
        ..Bom::default()
    })
}

/// A package as the bill has it.
fn component(kind: Classification, package: &Package) -> Component {
    let version = package.version.to_string();
    let name = format!("{}@{version}", package.name);
    let mut component = Component::new(kind, &package.name, &version, Some(name));
    component.description = package.description.as_deref().map(NormalizedString::new);
    component.licenses = package
        .license
        .as_deref()
        .map(|it| Licenses(vec![LicenseChoice::Expression(SpdxExpression::new(it))]));
    component
}

fn sha256(hex: &str) -> Hashes {
    Hashes(vec![Hash { alg: HashAlgorithm::SHA_256, content: HashValue(hex.to_owned()) }])
}
