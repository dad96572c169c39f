//! Generates the gRPC types when the feature `grpc` asks for them.

#[cfg(feature = "grpc")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["mount", "snapshots", "control"].map(|name| format!("proto/{name}.proto"));
    tonic_prost_build::configure().compile_protos(&files, &["proto".to_owned()])?;
    Ok(())
}

#[cfg(not(feature = "grpc"))]
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
}
