//! What `cargo xtask bench --images` needs of the library and none of its own examples does:
//!
//! ```sh
//! images make LAYOUT LAYERS FILES BYTES     # an image of so many layers, with so many files of so many bytes each
//! images inflate LAYOUT                     # inflate its layers one after the other, and nothing else
//! images look-up LAYOUT STORE ROUNDS        # print the median time to find it in a store, in microseconds
//! ```

use std::error::Error;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use oci_image::{
    ImageBuilder, LayoutWriter, PackOptions, Platform, Reference, Store, UnpackOptions, Whiteouts,
    open,
};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["make", layout, layers, files, bytes] => make(layout, layers, files, bytes),
        ["inflate", layout] => inflate(layout.as_ref()),
        ["look-up", layout, store, rounds] => look_up(layout.as_ref(), store.as_ref(), rounds),
        _ => Err(
            "usage: images make LAYOUT LAYERS FILES BYTES | inflate LAYOUT | look-up LAYOUT STORE ROUNDS"
                .into(),
        ),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("images: {error}");
            ExitCode::FAILURE
        }
    }
}

fn make(layout: &str, layers: &str, files: &str, bytes: &str) -> Result<(), Box<dyn Error>> {
    let (layers, files, bytes): (usize, usize, usize) =
        (layers.parse()?, files.parse()?, bytes.parse()?);
    let mut layout = LayoutWriter::open(layout)?;
    let mut image = ImageBuilder::new(&Platform::host().without_level()).cmd(["/bin/true"]);
    for layer in 0..layers {
        let numbers = layer * files..(layer + 1) * files;
        let entries = benches::entries(numbers, bytes).map(Ok);
        image = image.layer(layout.layer(entries, &PackOptions::new())?, "bench");
    }
    layout.image(Some("latest"), image)?;
    Ok(())
}

fn inflate(layout: &Path) -> Result<(), Box<dyn Error>> {
    let mut buffer = vec![0; 256 << 10];
    for layer in open(layout)?.layers() {
        let digest = &layer.descriptor().digest;
        let blob = layout.join("blobs/sha256").join(digest.hex());
        let blob = BufReader::with_capacity(buffer.len(), File::open(blob)?);
        let mut decoder = flate2::bufread::GzDecoder::new(blob);
        while decoder.read(&mut buffer)? > 0 {}
    }
    Ok(())
}

fn look_up(layout: &Path, store: &Path, rounds: &str) -> Result<(), Box<dyn Error>> {
    let (store, name) = (Store::open(store)?, "bench".parse::<Reference>()?);
    let options = UnpackOptions::new(Whiteouts::Overlay);
    drop(store.unpack(&store.add(&open(layout)?, &name)?, &options)?);
    let mut times = Vec::new();
    for _ in 0..rounds.parse::<usize>()? {
        let start = Instant::now();
        let unpacked = store.unpack(&store.image(&name, &Platform::host())?, &options)?;
        times.push(start.elapsed());
        assert!(!unpacked.layers.is_empty());
    }
    times.sort();
    let median = times.get(times.len() / 2).ok_or("there are no rounds")?;
    writeln!(std::io::stdout(), "{}", median.as_micros())?;
    Ok(())
}
