//! Tells the tests whether the kernel they are built on mounts EROFS from files.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(erofs_on_files)");
    // The file itself looks changed whenever /proc is mounted anew. That it is the same kernel which
    // runs the tests is itself tested.
    println!("cargo::rerun-if-changed=build.rs");
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|number| number.parse().ok());
    let version: (u32, u32) = (number().unwrap_or(0), number().unwrap_or(0));
    if version >= (6, 12) {
        println!("cargo::rustc-cfg=erofs_on_files");
    }
}
