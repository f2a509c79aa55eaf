//! Makes the golden pool of this format version: `cargo run -p store --example golden`. Commit its output only
//! with a new version of the format; the images of earlier versions stay as they are.

#[path = "../tests/golden/mod.rs"]
mod golden;

use std::error::Error;
use std::fs;
use std::path::Path;
use store::format::superblock::VERSION;

fn main() -> Result<(), Box<dyn Error>> {
    let (dev, _) = golden::build()?;
    let bytes = zstd::encode_all(&golden::image_of(&dev)[..], 19)?;
    let name = format!("tests/golden/pool-v{VERSION}.zst");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::write(&path, &bytes)?;
    println!("{}: {} bytes", path.display(), bytes.len());
    Ok(())
}
